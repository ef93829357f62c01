"""Names of the server that others see: metrics, field manager, environment prefix, reasons of refusals."""

from __future__ import annotations

from typing import Final

ENV_PREFIX: Final = "LIMBECK_SERVER_"
# Owner of status.progress, status.steps and status.result, and of nothing else.
FIELD_MANAGER: Final = "limbeck-server"
# Who speaks in the Events that the server writes.
EVENT_SOURCE: Final = "limbeck.dev/server"

# Metrics; none carries a job's name, so their number does not grow with the jobs.
METRIC_POSTS: Final = "limbeck_server_posts_total"
METRIC_TOKEN_REVIEWS: Final = "limbeck_server_token_reviews_total"
METRIC_STATUS_PATCHES: Final = "limbeck_server_status_patches_total"
METRIC_POST_SECONDS: Final = "limbeck_server_post_seconds"
METRIC_STREAMS: Final = "limbeck_server_streams"
METRIC_JOBS_BEHIND: Final = "limbeck_server_jobs_behind"
LABEL_OUTCOME: Final = "outcome"

# Kind of a training record in the history; all other kinds are those of events.
KIND_RECORD: Final = "record"
