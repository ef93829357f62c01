"""What a run posts to the server, and the reply: events and training records in one direction, a wish in the other.

On the wire it is JSON in snake_case, as the events in it are. Left out: who may post (the server's intake) and how
(the runtime's poster).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Final

from pydantic import ConfigDict, Field, FiniteFloat

from limbeck.api.fields import ApiModel
from limbeck.api.progress import Event

# Bounds of one post; a poster that has more sends more posts.
MAX_EVENTS: Final = 500
MAX_RECORDS: Final = 2_000
MAX_POST_BYTES: Final = 1_048_576

Ordinal = Annotated[int, Field(ge=1, le=2_147_483_647)]
Name = Annotated[str, Field(min_length=1, max_length=256)]


class Wanted(StrEnum):
    """What the run is asked to do."""

    RUN = "Run"
    CHECKPOINT = "Checkpoint"  # write a checkpoint, then stop


class PostModel(ApiModel):
    """Base of posts and replies: names as in the events."""

    model_config = ConfigDict(alias_generator=None)


class TrainingRecord(PostModel):
    """One line of progress.jsonl. A loss that was not finite is null."""

    step: Name = Field(description="Name of the step, e.g. distil.")
    update: Annotated[int, Field(ge=0, le=2**53)] = Field(description="Optimiser update, from 1, e.g. 40.")
    epoch: FiniteFloat = Field(description="Epochs so far, e.g. 1.5.")
    loss: FiniteFloat | None = Field(description="The loss, e.g. 1.25.")
    terms: dict[str, FiniteFloat | None] = Field(default_factory=dict, description="The loss by term.")
    learning_rate: FiniteFloat | None = Field(None, description="Learning rate of the update, e.g. 0.0003.")
    samples_per_second: FiniteFloat | None = Field(None, description="Speed over the last seconds, e.g. 512.5.")


class ProgressPost(PostModel):
    """What happened since the last post. One without events and records asks only for what is wanted."""

    run: Annotated[str, Field(min_length=8, max_length=64, pattern=r"^[A-Za-z0-9-]+$")] = Field(
        description="Identity of the driver's process, random, e.g. 6f1c0e0a5b7d4c2e."
    )
    epoch: Ordinal = Field(description="Fence epoch that the run holds, e.g. 2.")
    attempt: Ordinal = Field(description="Attempt, for people, e.g. 1.")
    sequence: Ordinal = Field(description="Number of this post in the run, ascending; the same again counts once.")
    dropped: Annotated[int, Field(ge=0)] = Field(0, description="Entries that found no room while the server was away.")
    events: Annotated[list[Event], Field(max_length=MAX_EVENTS)] = Field(
        default_factory=list, description="Events in their order."
    )
    records: Annotated[list[TrainingRecord], Field(max_length=MAX_RECORDS)] = Field(
        default_factory=list, description="Training records in their order."
    )


class ProgressReply(PostModel):
    """The server's answer to a post that it took."""

    wanted: Wanted = Field(description="What the run should do, e.g. Run.")
    duplicate: bool = Field(False, description="Whether the post had been taken before, e.g. false.")
