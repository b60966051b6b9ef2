"""What goes wrong with labels."""


class LabelError(ValueError):
    """Labels that cannot be read, or that do not say clearly which video they belong to."""
