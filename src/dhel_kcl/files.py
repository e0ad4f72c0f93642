"""Write files that other files depend on, each whole or not at all, and identify files by their bytes."""

import errno
import fcntl
import hashlib
import json
import os
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from dhel_kcl.errors import InputError

TEMPORARY = ".unfinished-"
"""Prefix of the names of files that are being written or that a killed process left behind."""

_ABANDONED_SECONDS = 24 * 3600
"""Without file locks: how long after its last write a file counts as left behind by a killed process."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


_DEEPEST = 100
"""How deeply JSON may be nested: far more than any file here needs."""


def open_regular(path: Path) -> BufferedReader:
    """Open a file to read its bytes; refuse pipes and devices, which may block the reader or never end.

    Raises:
        InputError: it is a pipe or a device.
        OSError: it is missing, a folder or a socket, or may not be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise InputError(f"{path}: expected a file, not a pipe or a device; remove it or give a file")
    except BaseException:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def read_regular(path: Path) -> bytes:
    """Return the bytes of a file; raises what `open_regular` does."""
    with open_regular(path) as file:
        return file.read()


def sha256_file(path: Path) -> str:
    """Return the hexadecimal sha256 of the file's bytes; raises what `open_regular` does."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Return the hexadecimal sha256 of a JSON-serialisable value; key order does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it on success and vanishes on failure.

    Once the block has ended, `path` is on disk even if the machine then crashes. Until then the temporary file is
    locked, so that `remove_abandoned` can tell it from those of killed processes.

    The temporary name keeps the suffix of `path`, because many writers choose their format by it.

    Write Python bytes or text into it: libraries that open files themselves hide the reason for a failure.

    Raises:
        InputError: the disk is full or the target cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock, temporary = _locked_temporary(path)
    except OSError as error:
        raise _explained(path, error) from error
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # temporary files are private; results are as readable as any other file
        temporary.replace(path)
        _flush_names(path.parent)
    except OSError as error:
        if error.errno in _FULL:
            raise _explained(path, error) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
        os.close(lock)


def _locked_temporary(path: Path) -> tuple[int, Path]:
    """Create and lock a temporary file beside `path`; the lock lasts as long as the descriptor stays open."""
    while True:
        lock, name = tempfile.mkstemp(prefix=f"{TEMPORARY}{path.stem}-", suffix=path.suffix, dir=path.parent)
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        if os.fstat(lock).st_nlink:
            return lock, Path(name)
        os.close(lock)  # `remove_abandoned` removed it before the lock


def remove_abandoned(path: Path) -> bool:
    """Remove a temporary file of `atomic_path` unless a process on this machine may still be writing it.

    Its writer holds a lock on it. On a file system without locks, a file written to within the last day is kept.

    Returns:
        Whether the file is gone.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return True
    except OSError:  # a link, or another user's
        return False
    try:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            if time.time() - facts.st_mtime < _ABANDONED_SECONDS:
                return False
        path.unlink(missing_ok=True)
        return True
    finally:
        os.close(descriptor)


def _flush_names(folder: Path) -> None:
    """Flush a rename to disk before anything that is written after it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explained(path: Path, error: OSError) -> InputError:
    if error.errno in _FULL:
        return InputError(f"{path}: no space left ({error.strerror}); free some and run the same command again")
    return InputError(f"{path}: cannot be written ({error.strerror}); check the folder's permissions")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically; refuse NaN and infinity."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Convert a JSON object to a mapping; refuse duplicate keys, which readers may resolve either way.

    Raises:
        ValueError: a key is given twice.
    """
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} is given twice")
    return values


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        InputError: the file is missing, is a pipe or a device, is not JSON, or gives a key twice.
    """
    try:
        return parse_json(read_regular(path).decode())
    except FileNotFoundError as error:
        raise InputError(f"{path}: missing; run the rule that writes it") from error
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON ({error}); delete it and run its rule again") from error


def private_folder(name: str) -> Path:
    """Create this user's private folder for a purpose, or check the existing one.

    Its path can be guessed, so somebody else may have created it first. Its contents can be trusted only if nobody
    but this user can have put them there.

    Args:
        name: the purpose, which is part of the folder's name.

    Raises:
        InputError: the folder is a link, belongs to another user, is open to others, or cannot be created.
    """
    try:
        folder = Path(tempfile.gettempdir()) / f"dhel-kcl-{name}-{os.geteuid()}"
    except FileNotFoundError as error:
        raise InputError("TMPDIR: no folder for temporary files is writable; set it to one that is") from error
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise InputError(f"{folder}: cannot be created ({error.strerror}); set TMPDIR to another folder") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o777 != 0o700:
        raise InputError(
            f"{folder}: must be a folder, not a link, that belongs to you with mode 700; "
            "remove it, or set TMPDIR to another folder"
        )
    return folder


def parse_json(text: str | bytes) -> Any:
    """Parse JSON that is shallow enough to be walked recursively.

    Raises:
        ValueError: it is not JSON, is nested too deeply, or gives a key twice.
    """
    try:
        value = json.loads(text, object_pairs_hook=each_key_once)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    level = [value]
    for _ in range(_DEEPEST):
        level = [part for each in level if isinstance(each, dict | list) for part in _parts(each)]
    if level:
        raise ValueError("nested too deeply")
    return value


def _parts(value: dict[str, Any] | list[Any]) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value
