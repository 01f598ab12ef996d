"""Hooks for rrmove that let no file through which does not open: by its name or its first bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import rrmove
from rrmove_validators import npz, safetensors, sqlite, torch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# Each gives a reason to turn a file down, or None; what opens it (OSError) is rrmove's to say.
BY_NAME: dict[str, Callable[[Path], str | None]] = {
    ".npz": npz.judge,
    ".npy": npz.judge_array,
    ".safetensors": safetensors.judge,
    ".pt": torch.judge,
    ".pth": torch.judge,
}


@rrmove.hookimpl
def rrmove_prepare(source: rrmove.Source) -> str | None:
    """Bring what is in a SQLite database's write-ahead log into the database; turn down one that is in use."""
    return sqlite.checkpoint(source.path) if sqlite.is_database(source.path) else None


@rrmove.hookimpl
def rrmove_validate(source: rrmove.Source) -> str | None:
    """Judge a file by what its name promises, and a SQLite database by its first bytes; others pass."""
    if sqlite.is_database(source.path):
        return sqlite.judge(source.path)
    judge = BY_NAME.get(source.path.suffix.lower())
    return judge(source.path) if judge is not None else None
