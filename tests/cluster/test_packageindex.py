"""How a build of an image reaches package indices, from what this machine is told about them."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest


@pytest.fixture
def pip_file(tmp_path: Path) -> Path:
    path = tmp_path / "host-pip.conf"
    path.write_text("[global]\nindex-url = https://from-file/simple\nextra-index-url =\n  https://a/\n  https://b/\n")
    return path


def test_a_machine_without_settings_mounts_nothing(tmp_path: Path) -> None:
    from packageindex import mounts, read_settings

    assert mounts(read_settings({}, []), tmp_path / "settings") == {}


def test_pips_file_reaches_pip_and_uv(pip_file: Path, tmp_path: Path) -> None:
    from packageindex import mounts, read_settings

    found = mounts(read_settings({}, [pip_file]), tmp_path / "settings")
    mounted = {inside: Path(host) for host, inside in found.items()}
    assert "https://from-file/simple" in mounted["/etc/pip.conf:ro"].read_text()
    assert tomllib.loads(mounted["/etc/uv/uv.toml:ro"].read_text()) == {
        "index-url": "https://from-file/simple",
        "extra-index-url": ["https://a/", "https://b/"],
    }


@pytest.mark.parametrize(
    ("variables", "index"),
    [
        ({"PIP_INDEX_URL": "https://pip/"}, "https://pip/"),
        ({"PIP_INDEX_URL": "https://pip/", "UV_DEFAULT_INDEX": "https://uv/"}, "https://uv/"),
    ],
)
def test_variables_win_over_files_and_uvs_over_pips(pip_file: Path, variables: dict[str, str], index: str) -> None:
    from packageindex import read_settings

    assert read_settings(variables, [pip_file]).index_url == index


def test_an_authority_is_mounted_over_the_images_own_and_named_to_both(tmp_path: Path) -> None:
    from packageindex import SYSTEM_BUNDLE, mounts, read_settings

    bundle = tmp_path / "authority.pem"
    bundle.touch()
    mounted = mounts(read_settings({"SSL_CERT_FILE": str(bundle)}, []), tmp_path / "settings")
    assert mounted[str(bundle)] == f"{SYSTEM_BUNDLE}:ro"
    assert f"cert = {SYSTEM_BUNDLE}" in (tmp_path / "settings" / "pip.conf").read_text()
    assert (tmp_path / "settings" / "uv.toml").read_text() == "system-certs = true\n"


def test_uvs_cache_is_shared_with_the_build(tmp_path: Path) -> None:
    from packageindex import UV_CACHE, mounts, read_settings

    mounted = mounts(read_settings({}, [], "/home/me/.cache/uv"), tmp_path / "settings")
    assert mounted["/home/me/.cache/uv"] == UV_CACHE
    assert tomllib.loads((tmp_path / "settings" / "uv.toml").read_text()) == {"cache-dir": UV_CACHE}


def test_settings_which_may_hold_passwords_are_for_our_eyes_only(tmp_path: Path) -> None:
    from packageindex import mounts, read_settings

    mounts(read_settings({"PIP_INDEX_URL": "https://user:secret@pip/"}, []), tmp_path / "settings")
    assert (tmp_path / "settings").stat().st_mode & 0o077 == 0
