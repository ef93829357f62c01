"""Names that the runtime exposes: metrics, their labels, and the files that a run leaves."""

from __future__ import annotations

from typing import Final

# Metrics, in base units (seconds, bytes, ratios), each said by one process of a run: the driver.
# One series that tells which job and version this process runs.
METRIC_RUN_INFO: Final = "limbeck_run_info"
# Latest training loss; `term` is a term of the loss, or `total`.
METRIC_TRAIN_LOSS: Final = "limbeck_train_loss"
# Optimiser updates made.
METRIC_TRAIN_UPDATES: Final = "limbeck_train_updates_total"
# Passes over the training data, with its fraction.
METRIC_TRAIN_EPOCH: Final = "limbeck_train_epoch"
# Samples that a role has worked off.
METRIC_SAMPLES: Final = "limbeck_samples_total"
# Speed of a role over the last seconds.
METRIC_SAMPLES_PER_SECOND: Final = "limbeck_samples_per_second"
# Shards of teacher outputs by what became of them.
METRIC_STORE_CAPTURED: Final = "limbeck_store_captured_shards_total"
METRIC_STORE_CONSUMED: Final = "limbeck_store_consumed_shards_total"
# Captured and not yet consumed: how far the teacher is ahead.
METRIC_STORE_LAG: Final = "limbeck_store_lag_shards"
# Wanted shards that were in the store already, over all wanted shards.
METRIC_STORE_HIT: Final = "limbeck_store_hit_ratio"
# Share of the training loop's time in which it waited for data.
METRIC_DATA_WAIT: Final = "limbeck_data_wait_ratio"
# How long checkpoints take.
METRIC_CHECKPOINT: Final = "limbeck_checkpoint_duration_seconds"
# How far a step of the pipeline is, 0 to 1.
METRIC_STEP_PROGRESS: Final = "limbeck_step_progress_ratio"
# Samples that were skipped.
METRIC_BAD_SAMPLES: Final = "limbeck_bad_samples_total"
# Main metric of a step's result over the teacher's.
METRIC_RECOVERY: Final = "limbeck_recovery_ratio"

# Where metrics are served unless told otherwise: only this machine can reach it.
LOOPBACK: Final = "127.0.0.1"

# Labels. Values come from the job file or from an enumeration, never from the data.
LABEL_JOB: Final = "job_name"  # `job` would clash with the label that Prometheus sets on scraping
LABEL_VERSION: Final = "version"
LABEL_STEP: Final = "step"
LABEL_TERM: Final = "term"
LABEL_ROLE: Final = "role"
LABEL_REASON: Final = "reason"
# The value of LABEL_TERM for the sum of all terms.
TERM_TOTAL: Final = "total"

# Files that a run leaves under its output.
# All events of all attempts, one JSON object a line.
FILE_EVENTS: Final = "events.jsonl"
# History of training, one JSON object a line.
FILE_PROGRESS: Final = "progress.jsonl"
FILE_REPORT_JSON: Final = "report.json"
FILE_REPORT_HTML: Final = "report.html"
# The model card; the name is the Hugging Face hub's.
FILE_MODEL_CARD: Final = "README.md"
# Where a cloud output has both, in segments (see telemetry/log_upload.py).
FOLDER_LOGS: Final = "logs"
# Folder of TensorBoard event files.
FOLDER_TENSORBOARD: Final = "tensorboard"
# The folder of the finished model, and the list of all published files, which is written last.
FOLDER_MODEL: Final = "model"
FILE_RESULT: Final = "result.json"
# Folder of what steps leave for audit and undo, one folder a step.
FOLDER_RECORDS: Final = "records"
