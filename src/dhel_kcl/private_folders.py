"""Folders in the machine's place for temporary files, where everybody may write, that this user alone can use."""

import os
import stat
import tempfile
from pathlib import Path

from dhel_kcl.errors import InputError


def private_folder(name: str) -> Path:
    """Make this user's folder for a purpose, or check the one that is there.

    Its path can be guessed, so somebody else may have made it first: what lies in it counts only if this user alone
    can have put it there.

    Args:
        name: the purpose, part of the folder's name.

    Raises:
        InputError: the folder is a link, another user's or open to others, or cannot be made.
    """
    try:
        folder = Path(tempfile.gettempdir()) / f"dhel-kcl-{name}-{os.geteuid()}"
    except FileNotFoundError as error:
        raise InputError("TMPDIR: no folder for temporary files can be written; set it to one") from error
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror}); set TMPDIR to another folder") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o777 != 0o700:
        raise InputError(
            f"{folder}: must be a folder, not a link, that belongs to you with mode 700; "
            "remove it, or set TMPDIR to another folder"
        )
    return folder
