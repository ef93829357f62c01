"""Errors of a job file: file, line, field, what it got, what to do; and never a secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from limbeck.cli.jobfile import JobFileError, read_document, read_documents, read_job, resolve_paths

GOOD = """\
metadata: {name: emoji}
spec:
  task: ImageText
  target: {sizeRatio: 4}
  teacher:
    model: {loader: Transformers, uri: models/clip}
  data:
    train: {uri: "data/{0..3}.tar", format: WebDataset}
    validationPercent: 5
  pipeline:
    - name: d
      distil: {epochs: 3, learningRate: 3e-4}
  output: {uri: out}
"""

WRONG = [
    ("epochs: 3", "epochs: three", 12, "spec.pipeline[0].distil.epochs", "got 'three'"),
    ("validationPercent: 5", "validationPercent: 70", 9, "spec.data.validationPercent", "got 70"),
    ("      distil:", "      distill:", 12, "spec.pipeline[0].distill", "check the spelling"),
    ("uri: out", "uri: s3://key:secret@b/x", 13, "spec.output.uri", "must hold no credentials"),
    ("  task: ImageText\n", "", 2, "spec.task", "must be given"),
    ("    - name: d", "    - name: D", 11, "spec.pipeline[0].name", "got 'D'"),
]


@pytest.fixture
def write(tmp_path: Path):  # type: ignore[no-untyped-def]
    def put(text: str) -> str:
        path = tmp_path / "job.yaml"
        path.write_text(text)
        return str(path)

    return put


@pytest.mark.parametrize(("old", "new", "line", "field", "words"), WRONG)
def test_each_error_names_file_line_and_field(write, old, new, line, field, words) -> None:  # type: ignore[no-untyped-def]
    path = write(GOOD.replace(old, new))
    with pytest.raises(JobFileError) as caught:
        read_job(path)
    (problem,) = caught.value.problems
    assert (problem.file, problem.line, problem.field) == (path, line, field)
    assert words in problem.message
    assert "secret" not in str(problem)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1,", "is no YAML"),
        ("", "one document, got 0"),
        ("a: 1\n---\nb: 2\n", "one document, got 2"),
        ("- a\n", "got no mapping"),
    ],
)
def test_a_file_that_holds_no_job_is_an_error(write, text, words) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(JobFileError, match=words):
        read_job(write(text))


def test_a_missing_file_is_an_error_that_names_it() -> None:
    with pytest.raises(JobFileError, match=r"no/such/job\.yaml:1: cannot be read"):
        read_job("no/such/job.yaml")


def test_relative_paths_start_at_the_job_file(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    job = resolve_paths(read_job(write(GOOD)), tmp_path)
    assert job.spec.output.uri == str(tmp_path / "out")
    assert job.spec.data.train.uri == str(tmp_path / "data/{0..3}.tar")


def test_the_line_of_an_absent_field_is_its_parents(write) -> None:  # type: ignore[no-untyped-def]
    document = read_document(write(GOOD))
    assert document.line_of("spec.pipeline[0].distil.mode") == 12
    assert document.line_of("spec.evaluation.explain") == 2


def test_lines_of_a_later_job_count_from_the_start_of_the_file(write) -> None:  # type: ignore[no-untyped-def]
    documents = read_documents(write(f"---\n{GOOD}---\n{GOOD.replace('emoji', 'other')}"))
    assert [document.job.metadata.name for document in documents] == ["emoji", "other"]
    length = len(GOOD.splitlines()) + 1
    assert [document.line_of("spec.output.uri") for document in documents] == [length, 2 * length]


def test_what_is_wrong_in_any_job_of_a_file_is_said(write) -> None:  # type: ignore[no-untyped-def]
    path = write(f"{GOOD.replace('epochs: 3', 'epochs: x')}---\n{GOOD.replace('uri: out', 'url: out')}")
    with pytest.raises(JobFileError) as caught:
        read_documents(path)
    length = len(GOOD.splitlines())
    found = [(problem.line, problem.field) for problem in caught.value.problems]
    assert found[0] == (length - 1, "spec.pipeline[0].distil.epochs")
    assert (2 * length + 1, "spec.output.url") in found


def test_a_file_without_any_job_is_an_error(write) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(JobFileError, match="must hold a CompressionJob, got nothing"):
        read_documents(write("---\n---\n"))
