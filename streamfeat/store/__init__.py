"""The store: one HDF5 file of features, with atomic commits. Knows neither torch nor video."""

from .appending import StoreWriter, VideoAppender
from .errors import BadFeatures, NotAStore, StoreError, StoreLocked, StoreMismatch, StoreTooNew
from .schema import Failure, Header, VideoRecord, check_names
from .store import FeatureStore, Labels, StoredVideo
from .writer import WriterThread

__all__ = [
    "BadFeatures",
    "Failure",
    "FeatureStore",
    "Header",
    "Labels",
    "NotAStore",
    "StoreError",
    "StoreLocked",
    "StoreMismatch",
    "StoreTooNew",
    "StoreWriter",
    "StoredVideo",
    "VideoAppender",
    "VideoRecord",
    "WriterThread",
    "check_names",
]
