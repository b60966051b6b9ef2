"""What goes wrong with labels."""


class LabelError(ValueError):
    """Labels that cannot be read, or that do not say clearly which video they belong to."""


def twice(name: str | bytes) -> str:
    """That one file has two values for ``name``: nobody can say which is meant."""
    return f"{name!r} is in it twice: leave out one of them"
