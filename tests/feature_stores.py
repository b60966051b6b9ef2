"""Stores with features that tell which video and clip they are of, made without a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from streamfeat.recipe import Recipe
from streamfeat.store import Header, StoreWriter

CHANNELS = 8

#: of stores that tests write to themselves
RECIPE = {"name": "wsvad", "clip_frames": 16, "stats": ("mean", "std", "max"), "mean": [0.5, 0.5, 0.5]}
MODEL = {"size": "vit_tiny", "source": "random", "sha256": "ab" * 32}
HEADER = Header(RECIPE, MODEL, (3, CHANNELS), ("statistic", "channel"))


def write_store(path: Path, videos: Mapping[str, int], recipe: Recipe | None = None, *, channels: int = CHANNELS,
                dtype: str = "float32") -> Path:
    """A store of ``{name: frames}``, each with as many clips as the recipe makes of its frames."""
    recipe = recipe or Recipe()
    crops = ((recipe.crops,), ("crop",)) if recipe.crops > 1 else ((), ())
    stats = ((len(recipe.stats),), ("statistic",)) if len(recipe.stats) > 1 else ((), ())
    header = Header(recipe=dataclasses.asdict(recipe), model={"size": "vit_tiny", "source": "random", "sha256": "0"},
                    row_shape=(*crops[0], *stats[0], channels), dims=(*crops[1], *stats[1], "channel"), dtype=dtype)
    with StoreWriter.open(path, header) as writer:
        for number, (name, frames) in enumerate(videos.items()):
            video = writer.begin(name)
            clips = recipe.count_clips(frames)
            video.append(features_of(number, clips, header.row_shape), np.arange(clips) * recipe.clip_stride)
            video.finish({"frames": frames, "fps": 25.0, "source": f"{name}.mp4"})
    return path


def make_store(path: str, *names: str, header: Header = HEADER) -> None:
    """Add videos of four clips each to the store at ``path``, which is made if there is none."""
    with StoreWriter.open(path, header) as writer:
        for seed, name in enumerate(names):
            add_video(writer, name, seed=seed)


def add_video(writer: StoreWriter, name: str, clips: int = 4, seed: int = 0, **attrs: object) -> None:
    """A whole video, with the features of number ``seed``."""
    video = writer.begin(name)
    video.append(features_of(seed, clips, writer.header.row_shape), np.arange(clips) * 16)
    video.finish({"frames": clips * 16 + 3, "fps": 25.0, "source_bytes": 1000 + seed, **attrs})


def features_of(number: int, clips: int, row_shape: tuple[int, ...] = HEADER.row_shape) -> np.ndarray:
    """Anything that differs from video to video, clip to clip, and within a clip."""
    return np.random.default_rng(number).standard_normal((clips, *row_shape)).astype(np.float32)
