"""What keeps a store from being exported."""


class ExportError(ValueError):
    """The export cannot be made as asked; nothing of it was written."""
