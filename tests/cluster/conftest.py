"""The whole test cluster, for tests that carry the marker `cluster`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from testbed import Testbed


@pytest.fixture(scope="session")
def testbed() -> Iterator[Testbed]:
    """Started for the session and ended with it; one that runs already is used, and goes on."""
    from testbed import Testbed

    bed = Testbed()
    was_up = bed.is_up()
    try:
        bed.up()
        yield bed
    finally:
        if not was_up:
            bed.down()
            assert bed.remains() == []
