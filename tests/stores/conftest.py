"""The tests of the stores run on each database that there is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import STORE_NAMES, database
from tests.servers.postgres import RunningServers


@pytest.fixture(params=STORE_NAMES)
def store_url(request: pytest.FixtureRequest, servers: RunningServers, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database on each server in turn."""
    with database(request.param, servers, tmp_path) as url:
        yield url
