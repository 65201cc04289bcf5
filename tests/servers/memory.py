"""The folder in memory for files of tests that are not about the disk: what is synced there costs nothing.

A process that is killed loses nothing there, as it loses nothing that the system has in its page cache. Servers sync
with the settings that they always have; only the disk is left out, and the copying of each new database onto it.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

_SHARED_MEMORY = Path("/dev/shm")
_ROOM = 2 << 30


def memory_folder(folder: Path = _SHARED_MEMORY, room: int = _ROOM) -> Path | None:
    """A folder in memory with `room` bytes to spare, or None: where there is no such folder, or little room in it (as
    in a container with Docker's 64 MB), and where TMPDIR says where temporary files are to be."""
    if "TMPDIR" in os.environ or not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return None
    return folder if shutil.disk_usage(folder).free >= room else None
