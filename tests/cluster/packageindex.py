"""How this machine reaches package indices, as mounts that a build of an image sees and the image does not keep.

Settings come from pip's and uv's environment variables and pip's configuration files, a certificate authority from
the usual variables. Left out on purpose: indices that only uv's own configuration files name, and index keyrings.
"""

from __future__ import annotations

import configparser
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

# Where Debian and those who follow it keep all authorities in one file; it is there in the images too.
SYSTEM_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
# Not where the Dockerfile's own cache mount is, which would win.
UV_CACHE = "/var/cache/uv"
PIP_FILES = (Path("/etc/pip.conf"), Path("~/.pip/pip.conf"), Path("~/.config/pip/pip.conf"))
_BUNDLE_VARIABLES = ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
_PIP_SETTINGS = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout")


@dataclass(frozen=True)
class Settings:
    """What pip and uv have to be told."""

    index_url: str = ""
    extra_index_urls: tuple[str, ...] = ()
    trusted_hosts: tuple[str, ...] = ()
    proxy: str = ""
    timeout: str = ""
    bundle: str = ""
    uv_cache: str = ""

    def pip_conf(self) -> str:
        values = {
            "index-url": self.index_url,
            "extra-index-url": "\n".join(self.extra_index_urls),
            "trusted-host": "\n".join(self.trusted_hosts),
            "proxy": self.proxy,
            "timeout": self.timeout,
            "cert": SYSTEM_BUNDLE if self.bundle else "",
        }
        parser = configparser.RawConfigParser()
        parser["global"] = {name: value for name, value in values.items() if value}
        text = io.StringIO()
        parser.write(text)
        return text.getvalue()

    def uv_toml(self) -> str:
        lines = ["system-certs = true"] if self.bundle else []
        if self.uv_cache:
            lines.append(f"cache-dir = {json.dumps(UV_CACHE)}")
        if self.index_url:
            lines.append(f"index-url = {json.dumps(self.index_url)}")
        if self.extra_index_urls:
            lines.append(f"extra-index-url = {json.dumps(list(self.extra_index_urls))}")
        if self.trusted_hosts:
            lines.append(f"allow-insecure-host = {json.dumps(list(self.trusted_hosts))}")
        return "".join(f"{line}\n" for line in lines)


def read_settings(
    environment: Mapping[str, str], pip_files: Sequence[Path] = PIP_FILES, uv_cache: str = ""
) -> Settings:
    """Variables win over files, as in pip; uv's own variables win over pip's."""
    pip = _pip_settings(environment, pip_files)
    index = environment.get("UV_DEFAULT_INDEX") or environment.get("UV_INDEX_URL") or pip.get("index-url", "")
    extra = environment.get("UV_INDEX") or environment.get("UV_EXTRA_INDEX_URL") or pip.get("extra-index-url", "")
    bundles = (environment.get(name, "") for name in _BUNDLE_VARIABLES)
    return Settings(
        index_url=index,
        extra_index_urls=tuple(extra.split()),
        trusted_hosts=tuple(pip.get("trusted-host", "").split()),
        proxy=pip.get("proxy", ""),
        timeout=pip.get("timeout", ""),
        bundle=next((bundle for bundle in bundles if bundle and Path(bundle).is_file()), ""),
        uv_cache=uv_cache,
    )


def mounts(settings: Settings, folder: Path) -> dict[str, str]:
    """What to mount, host's path to image's; files that say something are written to `folder`, for our eyes only."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    mounted = {}
    for name, text, inside in (
        ("pip.conf", settings.pip_conf(), "/etc/pip.conf"),
        ("uv.toml", settings.uv_toml(), "/etc/uv/uv.toml"),
    ):
        (folder / name).write_text(text)
        if text.strip() not in ("", "[global]"):
            mounted[str(folder / name)] = f"{inside}:ro"
    if settings.bundle:
        mounted[settings.bundle] = f"{SYSTEM_BUNDLE}:ro"
    if settings.uv_cache:
        mounted[settings.uv_cache] = UV_CACHE
    return mounted


def _pip_settings(environment: Mapping[str, str], pip_files: Sequence[Path]) -> dict[str, str]:
    parser = configparser.RawConfigParser()
    parser.read([path.expanduser() for path in pip_files])
    found = dict(parser["global"]) if parser.has_section("global") else {}
    for name in _PIP_SETTINGS:
        variable = f"PIP_{name.upper().replace('-', '_')}"
        if variable in environment:
            found[name] = environment[variable]
    return found
