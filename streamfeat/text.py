"""Numbers, names and other libraries' errors in sentences."""

from __future__ import annotations


def counted(number: int, noun: str, many: str | None = None) -> str:
    """``1 video``, ``2 videos``; ``many`` is the plural where an s does not make it."""
    return f"{number} {noun if number == 1 else many or noun + 's'}"


def first_line(error: BaseException) -> str:
    """What an error says first, or else what it is: libraries add traces of their own, or nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def shown(name: str) -> str:
    """A name from somebody else's file as a line can have it: what a terminal would act on is escaped."""
    return name if name.isprintable() else repr(name)
