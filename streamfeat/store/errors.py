"""What can be wrong with a store. Every message is one line that names the file and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class StoreError(Exception):
    """The store cannot be read or written as asked; what was committed is untouched."""


class NotAStore(StoreError):
    """The file is there, but streamfeat did not make it."""


class StoreTooNew(StoreError):
    """The store has a format that only a newer streamfeat knows."""


class StoreLocked(StoreError):
    """Another process is writing the store. ``pid`` is that process, None where it cannot be told."""

    def __init__(self, message: str, pid: int | None = None) -> None:
        super().__init__(message)
        self.pid = pid


class StoreMismatch(StoreError):
    """The store was made with another recipe or model.

    ``differences`` maps each differing field (``recipe.clip_stride``) to ``(in the store, asked for)``.
    """

    def __init__(self, message: str, differences: Mapping[str, tuple[Any, Any]]) -> None:
        super().__init__(message)
        self.differences = dict(differences)


class BadFeatures(StoreError):
    """These features of one video cannot be stored (not finite, wrong shape); the store itself is well."""


def reason(error: OSError) -> str:
    """The operating system's words for ``error``, without Python's decoration."""
    return error.strerror or str(error)
