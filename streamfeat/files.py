"""Files that appear whole or not at all, under names that cannot leave their folder."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows, where nobody can remove a file that another process has open
    fcntl = None

#: what Windows takes for a device, whatever its extension
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
#: bytes of one part of a path, on every common file system
_LONGEST_PART = 255
_UNFINISHED = ".*.part"


class UnsafeName(ValueError):
    """A name that no file may be written under."""


def check_name(name: str) -> list[str]:
    """The parts of a ``/``-separated name, once each is known to be a plain file name on every system.

    Raises UnsafeName for an absolute name, a drive letter, ``..``, a device, control characters, or a part
    that is empty or too long.
    """
    parts = name.split("/")
    for part in parts:
        if part in ("", ".", "..") or "\\" in part:
            reason = "leads somewhere else"
        elif _CONTROL.search(part):
            reason = "holds a control character"
        elif re.match("[A-Za-z]:", part) or (os.name == "nt" and ":" in part):
            reason = "names a drive"
        elif _RESERVED.fullmatch(part):
            reason = "is a device on Windows"
        elif part[-1] in ". ":
            reason = "ends in a dot or blank, which Windows drops"
        elif len(os.fsencode(part)) > _LONGEST_PART:
            reason = f"is longer than {_LONGEST_PART} bytes"
        else:
            continue
        raise UnsafeName(f"{name!r} is no name for a file: {part!r} {reason}")
    return parts


def locate_inside(root: str | Path, name: str) -> Path:
    """The path ``root/name``, known to be inside ``root``; nothing is made.

    Raises UnsafeName as :func:`path_inside`.
    """
    path = Path(root, *check_name(name))
    if not Path(os.path.realpath(path.parent)).is_relative_to(os.path.realpath(root)):
        raise UnsafeName(f"{path.parent} is a link that leads out of {root}")
    return path


def path_inside(root: str | Path, name: str) -> Path:
    """The path ``root/name``, its folders made, and known to be inside ``root``.

    Raises UnsafeName as :func:`check_name`, and when a link inside ``root`` leads out of it.
    """
    *folders, last = check_name(name)
    Path(root).mkdir(parents=True, exist_ok=True)
    real_root = Path(os.path.realpath(root))
    path = Path(root)
    for folder in folders:
        path /= folder
        if not os.path.lexists(path):
            path.mkdir(exist_ok=True)
        if not Path(os.path.realpath(path)).is_relative_to(real_root):
            raise UnsafeName(f"{path} is a link that leads out of {root}")
    return path / last


def write_whole(path: str | Path, chunks: Iterable[Any]) -> None:
    """Write the bytes-like ``chunks`` to ``path``, which appears when they are all on the disk.

    An existing file is replaced at that moment. Raises OSError, and leaves nothing behind then; what a killed
    process leaves, :func:`remove_abandoned` removes.
    """
    path = Path(path)
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with open(descriptor, "wb") as file:
            _hold(file)
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def remove_abandoned(folder: str | Path) -> None:
    """Remove from ``folder`` what processes left that were killed in :func:`write_whole`, but not what one writes."""
    for part in Path(folder).glob(_UNFINISHED):
        if re.fullmatch(r"\.[0-9a-f]{16}\.part", part.name):
            with contextlib.suppress(OSError), open(part, "r+b") as file:
                _hold(file)
                part.unlink()


def _hold(file: Any) -> None:
    """Lock ``file`` until it is closed. Raises BlockingIOError when another process has it locked."""
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
