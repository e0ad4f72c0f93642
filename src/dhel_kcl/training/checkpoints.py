"""Checkpoints of one run: written atomically, checked when read; only the newest few are kept."""

import hashlib
import io
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from dhel_kcl.console import console
from dhel_kcl.errors import InputError
from dhel_kcl.files import TEMPORARY, atomic_path, read_regular, remove_abandoned

_NAME = re.compile(r"step-(\d+)-([0-9a-f]{16})\.pt")


class Checkpoints:
    """The folder of a run's checkpoints, ``<folder>/<key>/step-<steps>-<sha256>.pt``.

    The name contains the beginning of the content's sha256, so a truncated or altered file is detected and the previous
    one is used. Each file can be read with `torch.load`.

    Args:
        folder: the folder for the checkpoints of all keys.
        key: hexadecimal digest of everything the training depends on; checkpoints of other keys are not touched.
        kept: how many to keep.
    """

    def __init__(self, folder: Path, key: str, kept: int) -> None:
        self.folder = folder
        self.own = folder / key[:16]
        self.kept = kept

    def save(self, steps: int, state: dict[str, Any]) -> None:
        """Write the state after `steps` steps, then remove the oldest checkpoints.

        Raises:
            InputError: the disk is full or the folder cannot be written; the earlier checkpoints are unchanged.
        """
        content = io.BytesIO()
        torch.save(state, content)
        digest = hashlib.sha256(content.getbuffer()).hexdigest()[:16]
        path = self.own / f"step-{steps:08d}-{digest}.pt"
        with atomic_path(path) as temporary:
            temporary.write_bytes(content.getbuffer())
        for older in self.paths()[self.kept :]:
            older.unlink(missing_ok=True)

    def paths(self) -> list[Path]:
        """Return the checkpoints of this key, newest first."""
        return sorted((path for path in self.own.glob("step-*.pt") if _NAME.fullmatch(path.name)), reverse=True)

    def newest(self) -> dict[str, Any] | None:
        """Return the state of the newest intact checkpoint, or None; report and remove damaged ones.

        Raises:
            InputError: it is intact but contains anything other than tensors and plain values, or it is not a file.
        """
        others = [path.parent for path in self.folder.glob("*/step-*.pt") if path.parent != self.own]
        if others and not self.own.exists():
            console.print(f"{others[0]}: checkpoints of other settings, code or images; they are not used")
        for path in self.paths():
            try:
                content = read_regular(path)
            except FileNotFoundError:  # another process of this run found it damaged
                continue
            if (match := _NAME.fullmatch(path.name)) and hashlib.sha256(content).hexdigest().startswith(match[2]):
                return self._load(path, content)
            console.print(f"{path}: damaged (its sha256 is not the one in its name); removed, using the one before")
            path.unlink(missing_ok=True)
        return None

    @staticmethod
    def _load(path: Path, content: bytes) -> dict[str, Any]:
        try:
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as error:  # a file from elsewhere may raise anything
            raise InputError(
                f"{path}: not a checkpoint of this program, so not loaded ({type(error).__name__}); delete it"
            ) from error
        if not isinstance(state, dict):
            raise InputError(f"{path}: not a checkpoint of this program: it holds no training state; delete it")
        return state

    def discard(self) -> None:
        """Remove the checkpoints of this key, and the folders if they are then empty."""
        for path in self.paths():
            path.unlink(missing_ok=True)
        for path in self.own.glob(f"{TEMPORARY}*"):
            remove_abandoned(path)
        for folder in (self.own, self.folder):
            with suppress(OSError):
                folder.rmdir()
