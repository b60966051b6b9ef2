"""Numbers in sentences."""

from __future__ import annotations


def counted(number: int, noun: str, many: str | None = None) -> str:
    """``1 video``, ``2 videos``; ``many`` is the plural where an s does not make it."""
    return f"{number} {noun if number == 1 else many or noun + 's'}"
