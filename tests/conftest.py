"""What every test may use: golden files that `make golden` writes anew, and a real Kubernetes API server."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# Modules of the test cluster, which are also commands; importlib mode gives tests no packages of their own.
sys.path.append(str(Path(__file__).parent / "cluster"))

if TYPE_CHECKING:
    from controlplane import ControlPlane

GOLDEN = Path(__file__).parent / "golden"
BUILD_SECONDS = 2400


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write golden files instead of comparing")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The first test that wants an API server may wait for it to be built, which takes minutes."""
    for item in items:
        if item.get_closest_marker("controlplane") is not None:
            item.add_marker(pytest.mark.timeout(BUILD_SECONDS))


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """`golden(name, text)`: text equals tests/golden/NAME, or becomes it under --update-golden."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        assert path.exists(), f"{name} is no golden file yet; run `make golden` and review it"
        assert text == path.read_text(encoding="utf-8"), f"{name} differs; review, then `make golden`"

    return compare


@pytest.fixture(scope="session")
def control_plane_binaries() -> dict[str, Path]:
    from controlplane import control_plane_binaries
    from gotools import CannotBuildError

    try:
        return control_plane_binaries()
    except CannotBuildError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def control_plane(
    control_plane_binaries: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ControlPlane]:
    """Shared by the whole session; not to be stopped. Each test takes a namespace of its own."""
    from controlplane import ControlPlane

    plane = ControlPlane(tmp_path_factory.mktemp("control-plane"), control_plane_binaries)
    try:
        plane.start()
        yield plane
    finally:
        plane.stop()


@pytest.fixture
def namespace(control_plane: ControlPlane) -> str:
    """A fresh one; nothing ever removes it."""
    from limbeck.kube.transport import Resource, Transport

    name = f"test-{uuid.uuid4().hex[:8]}"
    Transport(control_plane.client()).create(Resource("", "v1", "namespaces", False), {"metadata": {"name": name}})
    return name
