"""The images: what they are keyed by and, built for real, what is in them."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from images import Target
    from ocilayout import Image

ROOT = Path(__file__).parents[2]
BUILD_SECONDS = 2400
# In a mount namespace of its own: the image read-only but for /tmp, as uid 1000, with the image's environment only.
INSIDE = """
set -e
root=$1; shift
mount --bind "$root" "$root"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/tmp"
mount -o remount,bind,ro "$root"
exec chroot --userspec=1000:1000 "$root" env -i "$@"
"""

cluster = [pytest.mark.cluster, pytest.mark.timeout(BUILD_SECONDS)]
Inside = Callable[..., "subprocess.CompletedProcess[str]"]


@dataclass(frozen=True)
class Built:
    """An image, its configuration, and what runs a command in it."""

    image: Image
    config: dict[str, Any]
    inside: Inside


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What a build sees, as a copy that a test may change."""
    from images import inputs

    for target in ("operator", "runtime"):
        for path in inputs(target):
            (tmp_path / "checkout" / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, tmp_path / "checkout" / path)
    return tmp_path / "checkout"


@pytest.mark.parametrize(
    "path", ["Dockerfile", "requirements/operator.txt", "pyproject.toml", "operator/limbeck/names.py"]
)
def test_the_key_changes_with_each_thing_that_goes_in(checkout: Path, path: str) -> None:
    from images import build_key

    before = build_key("operator", "base", checkout)
    (checkout / path).write_text((checkout / path).read_text() + "\n")
    assert build_key("operator", "base", checkout) != before


def test_the_key_changes_with_a_new_file_and_with_the_base(checkout: Path) -> None:
    from images import build_key

    before = build_key("operator", "base", checkout)
    assert build_key("operator", "another base", checkout) != before
    (checkout / "operator" / "limbeck" / "new.py").touch()
    assert build_key("operator", "base", checkout) != before


def test_the_key_heeds_neither_byte_code_nor_the_other_images_requirements(checkout: Path) -> None:
    from images import build_key

    before = build_key("operator", "base", checkout)
    (checkout / "operator" / "limbeck" / "__pycache__").mkdir()
    (checkout / "operator" / "limbeck" / "__pycache__" / "names.cpython-311.pyc").touch()
    (checkout / "requirements" / "runtime.txt").write_text("changed")
    assert build_key("operator", "base", checkout) == before


@pytest.mark.parametrize("target", ["operator", "runtime"])
def test_the_key_knows_all_that_the_dockerfile_copies_and_no_more_is_sent_to_it(target: Target) -> None:
    from images import TARGETS, inputs

    copied = [
        source.rstrip("/")
        for line in re.findall(r"^COPY (?!--from)(.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
        for source in line.split()[:-1]
    ]
    others = [f"requirements/{other}.txt" for other in TARGETS if other != target]
    keyed = inputs(target)
    unkeyed = [source for source in copied if not any(f"{path}/".startswith(f"{source}/") for path in keyed)]
    assert unkeyed == others
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    missing = [path for path in keyed if not any(fnmatch.fnmatch(path, pattern + "*") for pattern in sent)]
    assert sorted(missing) == [".dockerignore", "Dockerfile"]


@pytest.mark.parametrize(("target", "unwanted"), [("operator", ["torch", "ray", "numpy", "uv"]), ("runtime", ["uv"])])
def test_requirements_are_those_of_all_and_hold_nothing_unwanted(target: str, unwanted: list[str]) -> None:
    def pins(name: str) -> set[str]:
        return set(re.findall(r"^(\S+==\S+)", (ROOT / "requirements" / f"{name}.txt").read_text(), re.MULTILINE))

    assert pins(target)
    assert pins(target) <= pins("all")
    assert not {pin.partition("==")[0] for pin in pins(target)} & set(unwanted)


def _built(target: Target) -> Iterator[Built]:
    """Skipped where no image can be built. A change of the checkout from now on does not matter to it."""
    from gotools import CannotBuildError
    from images import build, mounted

    try:
        image = build(target)
    except CannotBuildError as error:
        pytest.skip(str(error))
    config = image.config()
    with mounted(image.name) as root:

        def inside(*command: str) -> subprocess.CompletedProcess[str]:
            arguments = ["unshare", "--mount", "sh", "-c", INSIDE, "sh", str(root), *config["Env"], *command]
            return subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=300)

        yield Built(image, config, inside)


@pytest.fixture(scope="module")
def operator() -> Iterator[Built]:
    yield from _built("operator")


@pytest.fixture(scope="module")
def runtime() -> Iterator[Built]:
    yield from _built("runtime")


class TestOperatorImage:
    pytestmark = cluster

    @pytest.mark.parametrize("module", ["limbeck.controller.__main__", "limbeck.server.__main__", "limbeck.cli.main"])
    def test_each_of_its_processes_imports_with_a_read_only_root(self, operator: Built, module: str) -> None:
        done = operator.inside("python", "-W", "error", "-c", f"import {module}, os; print(os.getuid())")
        assert (done.stdout, done.stderr) == ("1000\n", "")

    @pytest.mark.parametrize("module", ["torch", "ray", "limbeck_runtime", "pip", "uv"])
    def test_it_does_not_hold(self, operator: Built, module: str) -> None:
        assert f"No module named '{module}'" in operator.inside("python", "-c", f"import {module}").stderr

    def test_the_command_line_prints_the_crd_of_this_checkout(
        self, operator: Built, golden: Callable[[str, str], None]
    ) -> None:
        golden("crd.yaml", operator.inside("limbeck", "crd").stdout)

    def test_the_servers_history_has_a_place_that_belongs_to_its_user(self, operator: Built) -> None:
        assert operator.inside("stat", "--format", "%u", "/var/lib/limbeck").stdout == "1000\n"

    def test_it_says_what_it_is_and_runs_the_operator_as_nobody_special(self, operator: Built) -> None:
        config = operator.config
        assert config["User"] == "1000:1000"
        assert [*config["Entrypoint"], *config["Cmd"]] == ["/opt/venv/bin/python", "-m", "limbeck.controller"]
        labels = {name.rpartition(".")[2]: text for name, text in config["Labels"].items()}
        assert labels["title"] == "limbeck-operator"
        assert labels["licenses"] == "Apache-2.0"
        version = re.findall(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
        assert [labels["version"]] == version


class TestRuntimeImage:
    pytestmark = cluster

    def test_the_runtime_imports(self, runtime: Built) -> None:
        done = runtime.inside(
            "python", "-c", "import ray, torch, limbeck_runtime.driver, tensorboard; print(ray.__version__)"
        )
        assert done.returncode == 0, done.stderr
        assert f"ray=={done.stdout.strip()}" in (ROOT / "pyproject.toml").read_text().replace("[default,train]", "")

    @pytest.mark.parametrize(
        "command",
        [
            "ray --version",
            "wget --version",
            "bash -c true",
            "python -m limbeck_runtime.driver --help",
            "limbeck --help",
        ],
    )
    def test_what_kuberay_and_the_operator_call_is_there(self, runtime: Built, command: str) -> None:
        done = runtime.inside(*command.split())
        assert done.returncode == 0, done.stderr

    def test_its_user_has_a_name_and_a_home(self, runtime: Built) -> None:
        assert runtime.config["User"] == "1000:1000"
        program = "import getpass, os, pathlib; print(getpass.getuser(), os.stat(pathlib.Path.home()).st_uid)"
        assert runtime.inside("python", "-c", program).stdout == "ray 1000\n"


@pytest.mark.parametrize("target", ["operator", "runtime"])
class TestBothImages:
    pytestmark = cluster

    def test_a_second_build_finds_the_first(self, request: pytest.FixtureRequest, target: Target) -> None:
        from images import build

        assert build(target) == request.getfixturevalue(target).image

    def test_each_file_of_ours_is_there_with_its_byte_code(
        self, request: pytest.FixtureRequest, target: Target
    ) -> None:
        from images import SOURCES, inputs

        inside = request.getfixturevalue(target).inside
        packages = SOURCES if target == "runtime" else SOURCES[:1]
        ours = {Path(path).relative_to(Path(path).parts[0]) for path in inputs(target) if path.startswith(packages)}
        compiled = {
            path.parent / "__pycache__" / f"{path.stem}.cpython-311.pyc" for path in ours if path.suffix == ".py"
        }
        folders = [f"/opt/venv/lib/python3.11/site-packages/{Path(package).name}" for package in packages]
        found = inside("find", *folders, "-type", "f").stdout.split()
        assert {Path(path).relative_to(Path(folders[0]).parent) for path in found} == ours | compiled

    def test_nothing_of_this_machine_is_in_it(self, request: pytest.FixtureRequest, target: Target) -> None:
        built = request.getfixturevalue(target)
        assert built.inside("sh", "-c", "cat /etc/pip.conf /etc/uv/uv.toml 2>/dev/null").stdout == ""
        assert not [
            name for name in built.config["Env"] if "CERT" in name or "INDEX" in name or "PROXY" in name.upper()
        ]
