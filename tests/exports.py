"""Stores to export, and what is looked at in an export."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from click.testing import CliRunner, Result

from streamfeat.align import align
from streamfeat.cli import main
from streamfeat.recipe import Recipe
from streamfeat.store import FeatureStore
from tests.feature_stores import write_store

LAYOUT_NAMES = ["npy", "fed-wsvad", "rtfm", "xd", "safetensors"]

#: frames; the first has a mask that ends early, one is only known as a whole
VIDEOS = {"training/01_001": 100, "testing/01_0014": 100, "testing/01_0015": 40, "testing/02_0128": 64, "short": 9}
TRAIN, TEST = ["01_001", "01_0014"], ["01_0015", "02_0128"]


def labelled_store(path: Path, recipe: Recipe | None = None, videos: Mapping[str, int] = VIDEOS,
                   **options: object) -> Path:
    """A store of ``{name: frames}`` with the labels of VIDEOS, which are left beside it as frame.pickle."""
    store = write_store(path, videos, recipe, **options)
    labels = {
        "01_001": np.zeros(96),
        "01_0014": np.r_[np.zeros(40), np.ones(45)],
        "01_0015": np.r_[np.ones(20), np.zeros(20)],
    }
    frame, video = path.with_name("frame.pickle"), path.with_name("video.pickle")
    frame.write_bytes(pickle.dumps(labels))
    video.write_bytes(pickle.dumps({"02_0128": [0.0], "01_0014": [1.0]}))
    align(store, frame, video_labels=video)
    return store


def write_lists(folder: Path) -> dict[str, Path]:
    """TRAIN and TEST, as options of ``export``."""
    paths = folder / "train.txt", folder / "test.txt"
    for path, names in zip(paths, (TRAIN, TEST), strict=True):
        path.write_text("\n".join(names) + "\n")
    return {"train_list": paths[0], "test_list": paths[1]}


def stored_features(store: Path, name: str, clips: int) -> np.ndarray:
    """Of the first clips of a video."""
    with FeatureStore(store) as reader:
        return reader[name].features[:clips]


def digests(folder: Path) -> dict[str, str]:
    """Of every file, by its path below ``folder``."""
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file()}


def invoke(*arguments: object) -> Result:
    """The command."""
    return CliRunner().invoke(main, ["export", *map(str, arguments)])
