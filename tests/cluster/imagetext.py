"""The image-text example in a bucket, where the samples of manifests/ look for it: data, and a teacher.

The teacher is trained here by limbeck itself, for two epochs: it has learned something, and nobody waits for it.
Data and teacher are kept in the cache; the bucket gets them anew.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gotools
import yaml
from progress import step

EXAMPLE = Path(__file__).parents[2] / "examples" / "01-image-text"
SAMPLES = Path(__file__).parents[2] / "manifests" / "samples"
PREFIX = "emoji"
_TEACHER_EPOCHS = 2


def upload(bucket: str, environment: Mapping[str, str]) -> None:
    """Data and teacher under s3://BUCKET/emoji; `environment` says where S3 is, as its clients read it."""
    from obstore.store import S3Store

    folder = _prepared()
    endpoint = environment["AWS_ENDPOINT_URL"]
    store = S3Store(
        bucket,
        prefix=PREFIX,
        endpoint=endpoint,
        region=environment["AWS_REGION"],
        access_key_id=environment["AWS_ACCESS_KEY_ID"],
        secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        client_options={"allow_http": endpoint.startswith("http://")},
    )
    with step("Upload data and teacher"):
        for path, name in _files(folder):
            store.put(name, path)


def sample(name: str, **changes: Any) -> dict[str, Any]:
    """The job of manifests/samples/NAME.yaml; `changes` by path, as in `sample("smoke", **{"spec.suspend": True})`."""
    (job,) = [
        each for each in yaml.safe_load_all((SAMPLES / f"{name}.yaml").read_text()) if each["kind"] == "CompressionJob"
    ]
    found: dict[str, Any] = job
    for path, value in changes.items():
        *parents, last = path.split(".")
        node: Any = found
        for parent in parents:
            node = node[int(parent)] if parent.isdigit() else node[parent]
        node[last] = value
    return found


def _prepared() -> Path:
    """Data and a trained teacher in the cache; the name holds a hash of what they come from."""
    teacher = _small(yaml.safe_load((EXAMPLE / "teacher.yaml").read_text()))
    origin = (EXAMPLE / "prepare.py").read_bytes() + json.dumps(teacher).encode()
    folder = gotools.cache() / "emoji" / hashlib.sha256(origin).hexdigest()[:12]
    folder.mkdir(parents=True, exist_ok=True)
    with step("Prepare the data"):
        subprocess.run([sys.executable, str(EXAMPLE / "prepare.py"), "--out", str(folder)], check=True)
    (folder / "teacher.json").write_text(json.dumps(teacher))
    with step("Train a teacher"):
        limbeck = str(Path(sys.executable).with_name("limbeck"))
        command = [limbeck, "local", str(folder / "teacher.json"), "--log-format", "json"]
        plain = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        done = subprocess.run(command, env=plain, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"the teacher could not be trained: {done.stderr or done.stdout[-2000:]}")
    return folder


def _small(teacher: dict[str, Any]) -> dict[str, Any]:
    teacher["spec"]["pipeline"][0]["finetune"]["epochs"] = _TEACHER_EPOCHS
    teacher["spec"]["data"]["augmentation"]["views"] = _TEACHER_EPOCHS
    return teacher


def _files(folder: Path) -> Iterator[tuple[Path, str]]:
    for path in sorted((folder / "data").glob("*.tar")):
        yield path, f"data/{path.name}"
    model = folder / "out" / "teacher" / "model"
    for path in sorted(each for each in model.rglob("*") if each.is_file()):
        yield path, f"teacher/model/{path.relative_to(model)}"
