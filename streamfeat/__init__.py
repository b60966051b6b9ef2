"""streamfeat: videos in, VideoMAE V2 features out, one HDF5 file, nothing in between on disk.

    import streamfeat

    streamfeat.extract(["videos/"], "out.h5")
    streamfeat.open("out.h5")["01_0014"].features  # float32, (clips, statistics, channels)
"""

from importlib import import_module

__version__ = "0.1.0"

# Nothing here may cost more than a moment to import: torch and h5py come with the first name that is used.
_WHERE = {
    "extract": "streamfeat.pipeline",
    "Summary": "streamfeat.pipeline",
    "Recipe": "streamfeat.recipe",
    "FeatureStore": "streamfeat.store",
    "FeatureDataset": "streamfeat.dataset",
}

__all__ = ["FeatureDataset", "FeatureStore", "Recipe", "Summary", "extract", "open"]


def open(path):
    """Open the store at ``path`` for reading: a mapping from video name to features and labels.

    Returns a :class:`streamfeat.FeatureStore`. Raises :class:`streamfeat.store.StoreError` if there is none.
    """
    from streamfeat.store import FeatureStore

    return FeatureStore(path)


def __getattr__(name):
    if name not in _WHERE:
        raise AttributeError(f"module 'streamfeat' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__():
    return sorted([*globals(), *_WHERE])
