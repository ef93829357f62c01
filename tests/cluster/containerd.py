"""containerd with a socket, a state and an image store of our own: the machine's own is not touched."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import processes
from imagearchive import Image, read_archive, write_archive
from layout import Layout
from processes import Daemons

PROGRAM = "containerd"
_START_SECONDS = 30.0
_SHIM = b"containerd-shim-runc-v2"


def configuration(layout: Layout, pause_image: str) -> str:
    """restrict_oom_score_adj: without CAP_SYS_RESOURCE runc cannot write the -998 that kubelet asks for."""
    return f"""version = 2
root = "{layout.images}"
state = "{layout.run}/containerd"
[grpc]
  address = "{layout.containerd_socket}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{layout.run}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause_image}"
  netns_mounts_under_state_dir = true
  restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = "/usr/lib/cni"
  conf_dir = "{layout.run}/cni"
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "overlayfs"
  default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = false
"""


class Containerd:
    def __init__(self, layout: Layout, daemons: Daemons) -> None:
        self._layout = layout
        self._daemons = daemons

    @property
    def ctr(self) -> list[str]:
        """The command line that speaks to it, for whoever imports images in a way of his own."""
        return ["ctr", "--address", str(self._layout.containerd_socket), "--namespace", "k8s.io"]

    def start(self, pause_image: str) -> None:
        file = self._layout.run / "containerd.toml"
        file.write_text(configuration(self._layout, pause_image), encoding="utf-8")
        self._daemons.start(PROGRAM, ["containerd", "--config", file])
        self._daemons.wait(PROGRAM, _START_SECONDS, "an answer on its socket", self._answers)

    def load(self, archive: Path) -> list[str]:
        """Imports an archive unless the names in it stand for just that already; the names that were imported."""
        archived = read_archive(archive)
        missing = self._not_yet(archived.names, archived.digest)
        if missing:
            self._import(archive, archived.names, archived.digest)
        return missing

    def has(self, image: Image) -> bool:
        return not self._not_yet([image.name], image.recipe())

    def make(self, image: Image) -> None:
        """The image out of its files, unless it is there."""
        if not self.has(image):
            with tempfile.TemporaryDirectory(dir=self._layout.run) as folder:
                archive = Path(folder) / "image.tar"
                write_archive(image, archive)
                self._import(archive, [image.name], image.recipe())

    def image_names(self) -> set[str]:
        return set(self._ctr("images", "list", "--quiet").split())

    def stop(self) -> None:
        """Ends every container, forgets it, and then containerd itself; the images stay."""
        if self._daemons.pid(PROGRAM) is not None and self._answers():
            # Their records must go, or the image store remembers pods that the next cluster does not know.
            self._for_all("tasks", "kill", "--all", "--signal", "SIGKILL")
            self._wait_until_stopped()
            self._for_all("tasks", "delete", "--force")
            self._for_all("containers", "delete")
        self._daemons.stop(PROGRAM, signal.SIGTERM)
        for pid in self.shims():
            processes.end(pid)

    def shims(self) -> list[int]:
        """A container's keeper outlives containerd; ours are told by the socket on their command line."""
        address = b"\0-address\0" + os.fsencode(self._layout.containerd_socket)
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit():
                with suppress(FileNotFoundError, ProcessLookupError):
                    line = (folder / "cmdline").read_bytes()
                    if _SHIM in line.split(b"\0")[0] and address + b"\0" in line:
                        found.append(int(folder.name))
        return found

    def _import(self, archive: Path, names: Iterable[str], key: str) -> None:
        self._ctr("images", "import", str(archive), seconds=900)
        imported = self._imported() | dict.fromkeys(names, key)
        unfinished = self._record().with_suffix(".unfinished")
        unfinished.write_text(json.dumps(imported, indent=1), encoding="utf-8")
        unfinished.rename(self._record())

    def _not_yet(self, names: Iterable[str], key: str) -> list[str]:
        """By our record, and by what is really there."""
        imported, there = self._imported(), self.image_names()
        return [name for name in names if imported.get(name) != key or name not in there]

    def _record(self) -> Path:
        return self._layout.images / "imported.json"

    def _imported(self) -> dict[str, str]:
        with suppress(FileNotFoundError):
            names: dict[str, str] = json.loads(self._record().read_text(encoding="utf-8"))
            return names
        return {}

    def _answers(self) -> bool:
        try:
            self._ctr("version")
        except RuntimeError:
            return False
        return True

    def _for_all(self, kind: str, *action: str) -> None:
        """One that has gone by itself is as good."""
        identities = self._ctr(kind, "list", "--quiet").split()

        def act(identity: str) -> None:
            with suppress(RuntimeError):
                self._ctr(kind, *action, identity)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(act, identities))

    def _wait_until_stopped(self) -> None:
        deadline = time.monotonic() + 10
        while "RUNNING" in self._ctr("tasks", "list") and time.monotonic() < deadline:
            time.sleep(0.1)

    def _ctr(self, *arguments: str, seconds: float = 30) -> str:
        command = [*self.ctr, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
        return done.stdout
