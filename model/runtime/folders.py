"""Folders for what libraries keep, where the user has no home to write to."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path


def private_temporary_folder() -> Path:
    """Return a folder of this user's below the temporary folder; it is made if need be.

    Raises:
        OSError: there is no such folder, or others may write into it: what is cached is run.
    """
    folder = Path(tempfile.gettempdir(), f"wordmask-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    if not is_ours or found.st_mode & 0o022:
        raise PermissionError(f"{folder}: must be a folder that this user alone can write")
    return folder
