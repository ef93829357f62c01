"""Reading a job file: YAML or JSON to a CompressionJob, with file, line and field in every error."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic.alias_generators import to_camel
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from limbeck.api.v1alpha1.job import CompressionJob


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a job file."""

    file: str
    line: int
    field: str
    message: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}: "
        return where + (f"`{self.field}`: {self.message}" if self.field else self.message)


class JobFileError(Exception):
    """A job file that cannot be read; holds every problem found."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


@dataclass(frozen=True)
class JobDocument:
    """One job of a file, and where its fields stand there."""

    job: CompressionJob
    file: str
    tree: Any

    def line_of(self, field: str) -> int:
        """The line of `field` (`spec.pipeline[0].distil`), or of the nearest parent that stands in the file."""
        path: list[str | int] = []
        for part in field.replace("]", "").split("."):
            head, *indices = part.split("[")
            path += [head, *(int(index) for index in indices)]
        return _line(self.tree, path)


def read_job(source: str) -> CompressionJob:
    """Read one CompressionJob from the file `source`, or from standard input when it is `-`.

    Raises:
        JobFileError: the file is absent, is no YAML, or does not describe a CompressionJob.
    """
    return read_document(source).job


def read_document(source: str) -> JobDocument:
    """The one job of a file. Raises JobFileError."""
    text, name = _read(source)
    trees = _parse(text, name)
    if len(trees) != 1:
        message = f"must hold one document, got {len(trees)}; keep one job a file"
        raise JobFileError([Problem(name, 1, "", message)])
    return _document(trees[0], name)


def read_documents(source: str) -> list[JobDocument]:
    """All jobs of a file, at least one. Raises JobFileError with what is wrong in any of them."""
    text, name = _read(source)
    trees = _parse(text, name)
    if not trees:
        raise JobFileError([Problem(name, 1, "", "must hold a CompressionJob, got nothing; see the README")])
    documents: list[JobDocument] = []
    problems: list[Problem] = []
    for tree in trees:
        try:
            documents.append(_document(tree, name))
        except JobFileError as error:
            problems += error.problems
    if problems:
        raise JobFileError(problems)
    return documents


def _document(tree: Any, name: str) -> JobDocument:
    if not isinstance(tree, Mapping):
        raise JobFileError([Problem(name, 1, "", "must hold one CompressionJob, got no mapping; see the README")])
    try:
        return JobDocument(CompressionJob.model_validate(_plain(tree)), name, tree)
    except ValidationError as error:
        problems = [_problem(name, tree, detail) for detail in error.errors()]
        raise JobFileError(sorted(problems, key=lambda problem: problem.line)) from error


def resolve_paths(job: CompressionJob, base: Path) -> CompressionJob:
    """`job` with every relative path made absolute from `base`, the folder of the job file."""
    return CompressionJob.model_validate(_absolute(job.to_wire(), base))


def _absolute(node: Any, base: Path) -> Any:
    if isinstance(node, dict):
        return {
            key: str(base / value) if key == "uri" and _is_relative(value) else _absolute(value, base)
            for key, value in node.items()
        }
    return [_absolute(item, base) for item in node] if isinstance(node, list) else node


def _is_relative(value: Any) -> bool:
    return isinstance(value, str) and "://" not in value and not Path(value).is_absolute()


def _read(source: str) -> tuple[str, str]:
    if source == "-":
        return sys.stdin.read(), "<stdin>"
    try:
        return Path(source).read_text(encoding="utf-8"), source
    except OSError as error:
        reason = error.strerror or str(error)
        raise JobFileError([Problem(source, 1, "", f"cannot be read: {reason}; check the path")]) from error
    except UnicodeDecodeError as error:
        raise JobFileError([Problem(source, 1, "", "must be UTF-8 text; save it as UTF-8")]) from error


def _parse(text: str, name: str) -> list[Any]:
    yaml = YAML(typ="rt")
    try:
        return [document for document in yaml.load_all(text) if document is not None]
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise JobFileError([Problem(name, line, "", f"is no YAML: {error.problem}; mend it")]) from error


def _plain(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(item) for item in node]
    if isinstance(node, str):
        return str(node)
    if isinstance(node, bool) or node is None:
        return node
    return float(node) if isinstance(node, float) else int(node) if isinstance(node, int) else node


def _problem(name: str, tree: Any, detail: Any) -> Problem:
    path = [part if isinstance(part, int) else to_camel(part) for part in detail["loc"]]
    return Problem(name, _line(tree, path), _dotted(path), _message(detail))


def _message(detail: Any) -> str:
    """pydantic's words in ours: what it must be, what it is, what to do."""
    kind, given = detail["type"], detail.get("input")
    if kind == "extra_forbidden":
        return "is no field of the API; check the spelling, or see `limbeck crd`"
    if kind == "missing":
        return "must be given; add it"
    if kind == "value_error":
        return str(detail["msg"]).removeprefix("Value error, ")
    if isinstance(given, str) and "@" in given:
        # Never print it: what stands before the @ may be a password.
        return "must hold no credentials, got a URI with an @; name a Secret in `credentialsSecretRef`"
    wanted = re.sub(r"^(Input|String|List|Value) should ", "must ", str(detail["msg"])).split(", unable to")[0]
    got = "" if isinstance(given, dict | list) else f", got {given!r}"
    return f"{wanted}{got}; change it"


def _dotted(path: Sequence[str | int]) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _line(tree: Any, path: Sequence[str | int]) -> int:
    line = 1
    for place in _places(tree, path):
        line = place
    return line


def _places(tree: Any, path: Sequence[str | int]) -> Iterator[int]:
    node: Any = tree
    for part in path:
        try:
            mark = node.lc.item(part) if isinstance(part, int) else node.lc.key(part)
            node = node[part]
        except (AttributeError, KeyError, IndexError, TypeError):
            return
        yield int(mark[0]) + 1
