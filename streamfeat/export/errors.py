"""What keeps a store from being exported."""


class ExportError(ValueError):
    """The export cannot be made as asked; nothing of it was written."""


class ExportRefused(ExportError):
    """What is in the store or at the destination stands against the export; nothing of it was written."""
