"""Configuration of the server, from environment variables such as LIMBECK_SERVER_PORT.

Left out: what the Kubernetes client reads for itself (in-cluster account, KUBECONFIG).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from limbeck.api.posts import MAX_POST_BYTES
from limbeck.names import PROGRESS_AUDIENCE
from limbeck.server.names import ENV_PREFIX

Seconds = Annotated[float, Field(gt=0, le=86_400)]


class Settings(BaseSettings):
    """All that can be set, each with its default."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="ignore")

    host: str = Field("0.0.0.0", description="Address to listen at.")
    port: int = Field(8443, ge=0, le=65_535, description="Port to listen at; 0 takes a free one.")
    tls_cert_file: Path | None = Field(None, description="Certificate chain in PEM; unset: plain HTTP.")
    tls_key_file: Path | None = Field(None, description="Its key in PEM.")
    # A secret, for it may hold a password.
    database_url: SecretStr = Field(
        SecretStr("sqlite:////var/lib/limbeck/server.sqlite"),
        description="sqlite:///FILE, or postgresql+psycopg://USER:PASSWORD@HOST/DATABASE.",
    )
    audience: str = Field(PROGRESS_AUDIENCE, min_length=1, description="Audience that a run's token must have.")
    token_cache_seconds: Seconds = Field(30, description="How long an accepted or refused token is remembered.")
    token_reviews_per_second: float = Field(50, gt=0, description="Token reviews in all, so that noise is bounded.")
    job_cache_seconds: Seconds = Field(2, description="How long a job that was read is believed.")
    posts_per_second: float = Field(2, gt=0, description="Posts of one job, in the long run.")
    posts_burst: int = Field(20, ge=1, description="Posts of one job at once.")
    max_post_bytes: int = Field(MAX_POST_BYTES, ge=1024, description="Largest body of a post.")
    patch_interval_seconds: Seconds = Field(5, description="Least time between two writes to one job's status.")
    retention_days: float = Field(30, gt=0, description="Days after its last post that a job's history is kept.")
    max_entries_per_job: int = Field(100_000, ge=1000, description="Entries kept of one job; the oldest go first.")
    max_streams: int = Field(200, ge=1, description="Clients that may follow progress at once.")
    stream_poll_seconds: Seconds = Field(2, description="How often a stream looks for what another replica took.")

    @model_validator(mode="after")
    def _certificate_and_key_go_together(self) -> Settings:
        if (self.tls_cert_file is None) != (self.tls_key_file is None):
            given = "TLS_CERT_FILE" if self.tls_key_file is None else "TLS_KEY_FILE"
            raise ValueError(
                f"`{ENV_PREFIX}TLS_CERT_FILE` and `{ENV_PREFIX}TLS_KEY_FILE` must be set both or neither, got only "
                f"`{ENV_PREFIX}{given}`; set the other one"
            )
        return self
