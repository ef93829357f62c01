"""What a student can learn from a teacher is planned from both, and what it cannot is refused in plain words."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from limbeck.api.v1alpha1.training import Distil
from limbeck_runtime.data.index import DataIndex
from limbeck_runtime.inputs import Inputs
from limbeck_runtime.models.bundle import ModelBundle
from limbeck_runtime.steps.lesson import Lesson, plan_lesson
from limbeck_runtime.store import EmbeddingCodec, FeatureCodec, SampledCodec, TopKCodec
from limbeck_runtime.student.collectives import RowGather

MakeBundle = Callable[..., ModelBundle]
Plan = Callable[..., Lesson]

COLUMNS = {
    "ImageClassification": {"image": "png", "label": "cls"},
    "CausalLM": {"text": "txt"},
    "TextEmbedding": {"text": "txt"},
    "ImageText": {"image": "png", "text": "txt"},
}


@pytest.fixture
def plan(make_index: Callable[..., DataIndex]) -> Plan:
    """`plan(teacher, student, kinds or signals, **settings of the step)`."""

    def make(teacher: ModelBundle, student: ModelBundle, *signals: Any, **settings: Any) -> Lesson:
        index = make_index(**COLUMNS[student.task])
        listed = [signal if isinstance(signal, dict) else {"kind": signal} for signal in signals]
        distil = Distil.model_validate({"signals": listed, **settings})
        return plan_lesson(distil, teacher, student, Inputs(index, index, teacher, student))

    return make


def test_weights_are_shares_beside_hard_labels(plan: Plan, make_bundle: MakeBundle) -> None:
    teacher, student = (make_bundle("ImageClassification", width, 40) for width in (6, 4))
    lesson = plan(teacher, student, "ForwardKL", {"kind": "ReverseKL", "weight": 2}, hardLabelPercent=40)
    assert lesson.objective.hard_weight == 0.4
    assert [term.weight for term in lesson.objective.terms] == pytest.approx([0.6, 1.2])


def test_a_vocabulary_that_is_padded_differently_is_compared_where_both_have_it(
    plan: Plan, make_bundle: MakeBundle
) -> None:
    lesson = plan(make_bundle("CausalLM", 6, 300), make_bundle("CausalLM", 4, 290), "ForwardKL")
    assert lesson.codecs == {"logits": TopKCodec(20, 290)}


def test_few_classes_are_stored_in_full_so_that_every_divergence_and_temperature_goes(
    plan: Plan, make_bundle: MakeBundle
) -> None:
    teacher, student = (make_bundle("ImageClassification", width, 256) for width in (6, 4))
    lesson = plan(teacher, student, "JensenShannon", temperature=3)
    assert lesson.codecs == {"logits": FeatureCodec()}


@pytest.mark.parametrize(
    ("classes", "outputs", "codec"),
    [
        (257, {}, TopKCodec(20, 257)),
        (256, {"codec": "TopK"}, TopKCodec(20, 256)),
        (20, {"codec": "TopK"}, FeatureCodec()),
        (257, {"codec": "Full"}, FeatureCodec()),
    ],
)
def test_many_classes_are_stored_by_their_likeliest_and_few_in_full_unless_asked(
    plan: Plan, make_bundle: MakeBundle, classes: int, outputs: Any, codec: Any
) -> None:
    teacher, student = (make_bundle("ImageClassification", width, classes) for width in (6, 4))
    assert plan(teacher, student, "ForwardKL", teacherOutputs=outputs).codecs == {"logits": codec}


def test_draws_are_stored_where_asked(plan: Plan, make_bundle: MakeBundle) -> None:
    outputs = {"codec": "Sampled", "count": 11}
    teacher, student = (make_bundle("CausalLM", width, 40) for width in (6, 4))
    lesson = plan(teacher, student, "ForwardKL", teacherOutputs=outputs)
    assert lesson.codecs == {"logits": SampledCodec(11, 40)}
    assert lesson.objective.sampled


@pytest.mark.parametrize(("bits", "dtype"), [(8, "int8"), (16, "float16")])
def test_embeddings_of_other_widths_are_learnt_through_a_projection(
    plan: Plan, make_bundle: MakeBundle, bits: int, dtype: Any
) -> None:
    teacher, student = make_bundle("ImageText", 6), make_bundle("ImageText", 4)
    lesson = plan(teacher, student, "ContrastiveAffinity", "ContrastiveFeature", teacherOutputs={"embeddingBits": bits})
    assert lesson.codecs == {name: EmbeddingCodec(dtype) for name in ("image_embedding", "text_embedding")}
    projection = lesson.objective.build(RowGather()).to_teacher_space
    assert projection is not None
    assert projection.weight.shape == (6, 4)
    assert lesson.objective.teacher_scale == pytest.approx(4.4817, abs=1e-3)


def test_embeddings_are_what_a_feature_signal_without_layers_compares(plan: Plan, make_bundle: MakeBundle) -> None:
    lesson = plan(make_bundle("TextEmbedding", 6), make_bundle("TextEmbedding", 4), "FeatureCosine", hardLabelPercent=0)
    (match,) = lesson.objective.terms[0].matches
    assert (match.student, match.teacher) == ("text_embedding", "text_embedding")
    assert (match.student_channels, match.teacher_channels) == (4, 6)
    assert lesson.codecs == {"text_embedding": EmbeddingCodec("float16")}


def test_layers_are_paired_in_the_order_in_which_they_are_named(plan: Plan, make_bundle: MakeBundle) -> None:
    signal = {"kind": "FeatureMSE", "studentLayers": ["body", "squeeze"], "teacherLayers": ["body", "squeeze"]}
    teacher, student = (make_bundle("ImageClassification", width, 5) for width in (6, 4))
    lesson = plan(teacher, student, signal)
    assert [(match.student, match.teacher) for match in lesson.objective.terms[0].matches] == [
        ("features.body", "features.body"),
        ("features.squeeze", "features.squeeze"),
    ]
    assert {(match.student_channels, match.teacher_channels) for match in lesson.objective.terms[0].matches} == {(4, 6)}
    assert set(lesson.codecs) == {"features.body", "features.squeeze"}


def _layers(student: list[str], teacher: list[str]) -> dict[str, Any]:
    return {"kind": "FeatureMSE", "studentLayers": student, "teacherLayers": teacher}


REFUSED = {
    "a layer that is not there": (
        ("ImageClassification", 5),
        [_layers(["bodies"], ["body"])],
        {},
        "no layer of the model is named 'bodies'; near it are body",
    ),
    "more layers on one side": (
        ("ImageClassification", 5),
        [_layers(["body"], ["body", "squeeze"])],
        {},
        "must name equally many layers, got 1 and 2",
    ),
    "layers of different kinds": (
        ("ImageClassification", 5),
        [_layers(["squeeze"], ["body"])],
        {},
        "tap layers of the same kind",
    ),
    "an output that is no embedding": (
        ("ImageClassification", 5),
        [{"kind": "FeatureCosine"}],
        {},
        "of FeatureCosine must name layers for ImageClassification",
    ),
    "a divergence that the top k cannot give at this temperature": (
        ("ImageClassification", 40),
        [{"kind": "JensenShannon"}],
        {"temperature": 2, "teacherOutputs": {"codec": "TopK"}},
        "use that temperature, or a KL divergence",
    ),
    "a divergence that draws cannot give": (
        ("CausalLM", 40),
        [{"kind": "ReverseKL"}],
        {"teacherOutputs": {"codec": "Sampled"}},
        "use ForwardKL, or store TopK",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_it_refuses(case: str, plan: Plan, make_bundle: MakeBundle) -> None:
    (task, outputs), signals, settings, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        plan(make_bundle(task, 6, outputs), make_bundle(task, 4, outputs), *signals, **settings)


def test_a_student_with_fewer_outputs_than_the_data_has_classes_is_refused(plan: Plan, make_bundle: MakeBundle) -> None:
    teacher, student = make_bundle("ImageClassification", 6, 3), make_bundle("ImageClassification", 4, 2)
    with pytest.raises(ValueError, match="got 2 outputs for 3 classes"):
        plan(teacher, student, "ForwardKL")


def test_a_teacher_that_cuts_texts_elsewhere_is_refused(plan: Plan, make_bundle: MakeBundle) -> None:
    with pytest.raises(ValueError, match="same maxTextLength, got 8 and 5"):
        plan(make_bundle("CausalLM"), make_bundle("CausalLM", max_length=5), "ForwardKL")


def test_a_teacher_with_other_words_is_refused_and_one_with_more_is_not(
    plan: Plan, make_bundle: MakeBundle, make_tokenizer: Callable[..., str]
) -> None:
    words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "<image>", "a", "blue", "red", "circle", "square", "large", "on")
    other = make_bundle("CausalLM", tokenizer=make_tokenizer(words))
    with pytest.raises(ValueError, match="token 6 is 'blue' for the teacher and 'red' for the student"):
        plan(other, make_bundle("CausalLM"), "ForwardKL")
    swapped = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "<image>", "a", "red", "blue", "circle", "square", "large", "on")
    more = make_bundle("CausalLM", tokenizer=make_tokenizer((*swapped, "extra")))
    plan(more, make_bundle("CausalLM"), "ForwardKL")
