from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kept_log import Log, new_table

from contextengine.tables.live import LiveTable


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture(params=["memory://", "rocksdb://"])
async def table(request: pytest.FixtureRequest, tmp_path: Path) -> LiveTable[Any]:
    """A table over each store."""
    return new_table(request.param, str(tmp_path))
