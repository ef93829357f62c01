"""Step distil: the student learns from what the teacher says about the training data.

The teacher pool fills the store in the order in which the student reads, and the student trains on what is there.
Left out: Mutual and Cascade, several teachers, and moving temperatures, which are refused by name.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from limbeck.api.v1alpha1.training import Distil
from limbeck_runtime.context import Context
from limbeck_runtime.errors import InvalidSpecError
from limbeck_runtime.steps.lesson import plan_lesson
from limbeck_runtime.steps.step import StepInputs, StepResult
from limbeck_runtime.steps.teacher_outputs import TeacherLostError, TeacherOutputs
from limbeck_runtime.steps.training import run_training
from limbeck_runtime.steps.training_task import TrainingTask
from limbeck_runtime.storage import StorageError
from limbeck_runtime.store import TeacherStore
from limbeck_runtime.teacher.capture import CaptureSettings
from limbeck_runtime.teacher.plan import capture_plan
from limbeck_runtime.teacher.session import capturing, lookahead_of
from limbeck_runtime.teacher.sign import Sign

# How often to look whether the run was asked to stop, and how long training may take to stop by itself.
_WATCH_SECONDS = 0.25
_GRACE_SECONDS = 2.0


def distil(settings: Distil, inputs: StepInputs, context: Context) -> StepResult:
    """Train the student on the teacher's outputs, captured as far as the store lacks them.

    Raises:
        InvalidSpecError: teacher and student cannot be compared as the signals ask.
        CaptureFailedError: the teacher failed on a shard however often it was tried.
        OutOfSpaceError: there is no room for what the teacher says.
        InterruptedRunError: asked to stop while the student waited for the teacher.
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
    # Beside the checkpoints and not in the store, which several jobs may share.
    sign = Sign.put_up(context.output.child(f"checkpoints/{inputs.name}"), context.fence.epoch)
    task = TrainingTask(
        bundle=inputs.bundle,
        index=index,
        augmentation=augmentation,
        settings=settings,
        seed=seed,
        window_shards=settings.teacher_outputs.window_shards,
        objective=lesson.objective,
        outputs=TeacherOutputs(
            store, {(task.shard, task.view): task.identity for task in tasks}, tuple(lesson.codecs), sign
        ),
    )
    capture = CaptureSettings(teacher, index, augmentation, seed, lesson.codecs, store)
    lookahead = lookahead_of(
        tasks,
        window_shards=settings.teacher_outputs.window_shards,
        batch_size=settings.batch_size,
        max_workers=context.spec.cluster.teacher.max_replicas,
    )
    with (
        capturing(context, inputs.name, capture, tasks, sign, lookahead) as teaching,
        _not_waiting_after_a_stop(context, sign),
    ):
        try:
            return StepResult(run_training(context, inputs.name, task, inputs.fingerprint, teaching.come_to))
        except TeacherLostError:
            teaching.check()
            context.check_stop()
            raise


@contextmanager
def _not_waiting_after_a_stop(context: Context, sign: Sign) -> Iterator[None]:
    """A student that trains stops after its batch; one that waits for the teacher is told that nothing will come."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_WATCH_SECONDS):
            if context.stop.is_set():
                if not over.wait(_GRACE_SECONDS):
                    with suppress(StorageError):
                        sign.take_down()
                return

    thread = threading.Thread(target=watch, name="limbeck-stop", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
