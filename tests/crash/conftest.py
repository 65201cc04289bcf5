"""Here all files are on the disk: what is killed shall be killed while it really syncs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.postgres import RunningServers


@pytest.fixture(scope="package")
def servers() -> Iterator[RunningServers]:
    """PostgreSQL servers by name, each started when it is first asked for."""
    with RunningServers() as running:
        yield running


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder of each test's own."""
    with tempfile.TemporaryDirectory(prefix="chatstate-crash-") as folder:
        yield Path(folder)
