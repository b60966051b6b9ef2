"""Finds what was compiled when streamfeat was installed."""

from __future__ import annotations

import ctypes
import importlib.util

#: why something that should have been compiled is not there
MISSING = "streamfeat was installed without a C compiler, or what it built does not load"


def load(name: str) -> ctypes.CDLL | None:
    """The functions of the extension ``name``; None where it was not built, for want of a C compiler, or does not load.

    They are built as extensions so that packaging looks after them, but are no modules of Python's, whose headers a
    build would need.
    """
    found = importlib.util.find_spec(name)
    try:
        return ctypes.CDLL(found.origin)
    except (AttributeError, OSError):
        return None
