"""Pinned Go programs: what their place in the cache depends on."""

from __future__ import annotations

import re
import shutil

import pytest


def test_every_tool_is_pinned_to_the_version_of_the_module_that_holds_it() -> None:
    import gotools

    assert gotools.KUBELET.version() == gotools.KUBE_APISERVER.version() == "v1.34.4"
    assert gotools.KUBERAY.version() == "v1.6.2"
    assert gotools.HELM.version() == "v3.22.0"
    assert gotools.COREDNS.version() == "v1.14.4"


def test_a_module_whose_name_only_begins_like_the_package_does_not_give_its_version() -> None:
    import gotools

    tool = gotools.GoTool("versitygw", "github.com/versity/versitygwx/cmd/versitygwx", "versitygwx")
    with pytest.raises(AssertionError, match=r"requires nothing that holds github\.com/versity/versitygwx"):
        tool.version()


@pytest.mark.controlplane
@pytest.mark.skipif(shutil.which("go") is None, reason="needs Go")
def test_the_place_in_the_cache_names_version_sums_and_go() -> None:
    import gotools

    assert re.fullmatch(r"kubelet-v1\.34\.4-[0-9a-f]{12}-go\S+", gotools.KUBELET.folder().name)


def test_the_folder_of_every_tool_holds_a_module_with_its_sums() -> None:
    import gotools

    modules = {tool.module for tool in vars(gotools).values() if isinstance(tool, gotools.GoTool)}
    assert modules <= {folder.name for folder in gotools.MODULES.iterdir()}
    assert all((gotools.MODULES / name / "go.sum").is_file() for name in modules)
