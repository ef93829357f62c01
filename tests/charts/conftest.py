"""The real helm, what it renders of our chart, and an API server of its own to install it into."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from controlplane import ControlPlane

Object = dict[str, Any]
Rendered = dict[tuple[str, str], Object]

CHART = Path(__file__).parent.parent.parent / "charts" / "limbeck"
NAMESPACE = "limbeck-system"


class Helm:
    """The command, and where it installs to."""

    def __init__(self, binary: Path, folder: Path, kubeconfig: Path | None = None) -> None:
        self.binary = binary
        self._folder = folder
        self._kubeconfig = kubeconfig

    def run(self, *arguments: str, values: Object | None = None) -> subprocess.CompletedProcess[str]:
        command = [str(self.binary), *arguments]
        if values:
            file = self._folder / "values.json"
            file.write_text(json.dumps(values), encoding="utf-8")
            command += ["--values", str(file)]
        environment = {"HOME": str(self._folder), "PATH": "/usr/bin:/bin"}
        if self._kubeconfig is not None:
            environment["KUBECONFIG"] = str(self._kubeconfig)
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    def install(self, release: str, values: Object | None = None, command: str = "install") -> str:
        """What it says."""
        place = ("--namespace", NAMESPACE) + (("--create-namespace",) if command == "install" else ())
        done = self.run(command, release, str(CHART), *place, values=values)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture(scope="session")
def chart() -> Path:
    return CHART


@pytest.fixture(scope="session")
def helm_binary() -> Path:
    import gotools

    try:
        return gotools.HELM.build()
    except gotools.CannotBuildError as error:
        pytest.skip(str(error))


@pytest.fixture
def helm(helm_binary: Path, tmp_path: Path) -> Helm:
    return Helm(helm_binary, tmp_path)


@pytest.fixture
def render(helm: Helm) -> Callable[..., Rendered]:
    """`render(values)`: the chart's objects by kind and name, for release `limbeck` unless named otherwise."""

    def rendered(values: Object | None = None, release: str = "limbeck") -> Rendered:
        done = helm.run("template", release, str(CHART), "--namespace", NAMESPACE, values=values)
        assert done.returncode == 0, done.stderr
        objects = [each for each in yaml.load_all(done.stdout, yaml.CSafeLoader) if each]
        found = {(each["kind"], _name(each)): each for each in objects}
        assert len(found) == len(objects), "two objects of one name"
        return found

    return rendered


def _name(item: Object) -> str:
    """With its namespace, where that is not the release's."""
    metadata = item["metadata"]
    place = metadata.get("namespace", NAMESPACE)
    name: str = metadata["name"]
    return name if place == NAMESPACE else f"{place}/{name}"


@pytest.fixture(scope="module")
def own_plane(
    control_plane_binaries: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ControlPlane]:
    """An API server for one file of tests: a release owns things that belong to no namespace."""
    from controlplane import ControlPlane

    plane = ControlPlane(tmp_path_factory.mktemp("plane"), control_plane_binaries)
    try:
        plane.start()
        yield plane
    finally:
        plane.stop()


@pytest.fixture
def cluster_helm(helm_binary: Path, own_plane: ControlPlane, tmp_path: Path) -> Helm:
    """Helm as administrator of `own_plane`."""
    return Helm(helm_binary, tmp_path, own_plane.kubeconfig)
