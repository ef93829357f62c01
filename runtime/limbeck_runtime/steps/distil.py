"""Step distil: the student learns from what the teacher says about the training data.

The teacher pool fills the store in the order in which the student reads, and the student trains on what is there.
Left out: Mutual and Cascade, several teachers, and moving temperatures, which are refused by name.
"""

from __future__ import annotations

from limbeck.api.v1alpha1.training import Distil
from limbeck_runtime.context import Context
from limbeck_runtime.errors import InvalidSpecError
from limbeck_runtime.steps.lesson import plan_lesson
from limbeck_runtime.steps.step import StepInputs, StepResult
from limbeck_runtime.steps.teacher_outputs import TeacherLostError, TeacherOutputs
from limbeck_runtime.steps.training import run_training
from limbeck_runtime.steps.training_task import TrainingTask
from limbeck_runtime.store import TeacherStore
from limbeck_runtime.teacher.capture import CaptureSettings
from limbeck_runtime.teacher.plan import capture_plan
from limbeck_runtime.teacher.session import capturing


def distil(settings: Distil, inputs: StepInputs, context: Context) -> StepResult:
    """Train the student on the teacher's outputs, captured as far as the store lacks them.

    Raises:
        InvalidSpecError: teacher and student cannot be compared as the signals ask.
        CaptureFailedError: the teacher failed on a shard however often it was tried.
        and what `run_training` raises.
    """
    teacher, index = inputs.job.teacher, inputs.job.train
    assert teacher is not None, "a distillation without a teacher was refused"
    seed, augmentation = context.spec.seed, context.spec.data.augmentation
    try:
        lesson = plan_lesson(settings, teacher, inputs.bundle, inputs.job)
    except ValueError as error:
        raise InvalidSpecError(f"`{inputs.path}`: {error}") from error
    store = TeacherStore(context.store, context.scratch / "teacher-outputs", lesson.codecs)
    store.janitor()
    tasks = capture_plan(
        index,
        teacher_identity=str(inputs.job.teacher_identity),
        preprocessing_identity=teacher.preprocessing.identity(),
        augmentation=augmentation,
        seed=seed,
        codecs=lesson.codecs,
        epochs=settings.epochs,
    )
    lost_marker = f"lost/{context.fence.epoch:08d}-{inputs.name}.json"
    task = TrainingTask(
        bundle=inputs.bundle,
        index=index,
        augmentation=augmentation,
        settings=settings,
        seed=seed,
        window_shards=settings.teacher_outputs.window_shards,
        objective=lesson.objective,
        outputs=TeacherOutputs(
            store, {(task.shard, task.view): task.identity for task in tasks}, tuple(lesson.codecs), lost_marker
        ),
    )
    capture = CaptureSettings(teacher, index, augmentation, seed, lesson.codecs, store)
    with capturing(context, inputs.name, capture, tasks, lost_marker) as pool:
        try:
            return StepResult(run_training(context, inputs.name, task, inputs.fingerprint))
        except TeacherLostError:
            pool.check()  # raises what ended the capture
            raise
