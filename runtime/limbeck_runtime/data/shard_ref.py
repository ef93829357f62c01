"""The name of one shard: a file, or a share of an image folder's files."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class ShardRef(BaseModel):
    """One shard, as it was when the source was resolved.

    `uri` is the file, or for an image folder the folder and, behind a `#`, the share's number. `name` is the part
    that does not depend on where the data set lies; keys of samples without a key column are made from it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str
    name: str
    size: int
    etag: str | None = None
    # Image folder only: the folder, and the files of this share by their path below it.
    folder: str | None = None
    files: tuple[str, ...] = ()
