"""Names that cross a boundary: API group, labels, file names, exit codes. One constant each, said once."""

from __future__ import annotations

from typing import Final, Literal

# The API.
GROUP: Final = "limbeck.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final[Literal["limbeck.dev/v1alpha1"]] = "limbeck.dev/v1alpha1"
KIND: Final[Literal["CompressionJob"]] = "CompressionJob"
PLURAL: Final = "compressionjobs"
# Not `cj`: that is CronJob's, and kubectl prefers the kinds that Kubernetes brings along.
SHORT_NAME: Final = "cpj"
CATEGORY: Final = "limbeck"
MANAGED_BY: Final = "limbeck.dev/operator"
# Leaves room for `-<attempt>` within the 47 characters that KubeRay allows.
MAX_JOB_NAME_LENGTH: Final = 40

# Labels of all children, their pods included.
LABEL_JOB: Final = "limbeck.dev/job"
LABEL_ATTEMPT: Final = "limbeck.dev/attempt"

# What the driver's exit code means to whoever started it.
EXIT_OK: Final = 0
EXIT_GATE_FAILED: Final = 10
EXIT_USER_CODE_ERROR: Final = 11
EXIT_INVALID_SPEC: Final = 12
# Stopped by a signal after a clean checkpoint, as shells report SIGINT.
EXIT_INTERRUPTED: Final = 130

# Last line of the driver's log, followed by one JSON object.
OUTCOME_PREFIX: Final = "LIMBECK_OUTCOME"

# Progress: how the operator tells a run's driver where to report, and with what.
# Whole address to post to, `https://SERVER/api/v1/namespaces/NAMESPACE/jobs/JOB/progress`; unset: nothing is posted.
ENV_PROGRESS_URL: Final = "LIMBECK_PROGRESS_URL"
# File with the projected service account token; read anew for each post, for it rotates.
ENV_PROGRESS_TOKEN_FILE: Final = "LIMBECK_PROGRESS_TOKEN_FILE"
# File with the certificate authority of the server; unset: the system's.
ENV_PROGRESS_CA_FILE: Final = "LIMBECK_PROGRESS_CA_FILE"
# Audience of that token.
PROGRESS_AUDIENCE: Final = "limbeck.dev/server"
