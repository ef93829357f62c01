from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from limbeck.server.settings import Settings


def test_a_certificate_without_its_key_is_refused() -> None:
    with pytest.raises(ValidationError, match="set both or neither, got only `LIMBECK_SERVER_TLS_CERT_FILE`"):
        Settings(tls_cert_file=Path("tls.crt"))
    with pytest.raises(ValidationError, match="got only `LIMBECK_SERVER_TLS_KEY_FILE`"):
        Settings(tls_key_file=Path("tls.key"))


def test_the_databases_password_is_not_shown() -> None:
    settings = Settings(database_url="postgresql+psycopg://limbeck:hunter2@db/limbeck")  # type: ignore[arg-type]
    assert "hunter2" not in repr(settings)
    assert "hunter2" in settings.database_url.get_secret_value()


@pytest.mark.parametrize("field", ["patch_interval_seconds", "token_cache_seconds", "posts_per_second", "posts_burst"])
def test_a_bound_that_would_bound_nothing_is_refused(field: str) -> None:
    with pytest.raises(ValidationError, match=field):
        Settings(**{field: 0})
