"""Is a store what it says it is? Checks what is in it, and a sample against the videos themselves."""

from __future__ import annotations

import dataclasses
import os
import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from streamfeat.align import count_aligned_clips
from streamfeat.export.selection import BLOCK_BYTES
from streamfeat.recipe import Recipe
from streamfeat.store import FeatureStore, StoredVideo
from streamfeat.store.schema import FAILURES, FEATURES, LABELS, START_FRAME, VIDEOS
from streamfeat.store.store import open_committed
from streamfeat.stored import frames_of, recipe_of

#: smallest cosine between a stored and a new feature that count as equal: half precision on one side gives
#: 0.9995 and more, other colours 0.39 (Fed_WSVAD's exchanged channels) to 0.99
SAME_COSINE = 0.999


class VerifyError(Exception):
    """The sample cannot be compared: no such videos, other weights, or the extraction broke off."""


@dataclasses.dataclass(frozen=True)
class Compared:
    """A video that was extracted anew."""

    video: str
    clips: int
    #: between stored and new features, over all clips and statistics
    smallest_cosine: float
    largest_difference: float


@dataclasses.dataclass(frozen=True)
class Verification:
    """What :func:`verify` looked at and what it found."""

    videos: int
    clips: int
    #: (video or object, what is wrong with it)
    problems: tuple[tuple[str, str], ...]
    compared: tuple[Compared, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "problems": [list(problem) for problem in self.problems]}


def verify(store: str | os.PathLike[str], against: Sequence[str | os.PathLike[str]] = (), *, sample: int = 3,
           weights: str | None = None, device: str = "auto", seed: int | None = None) -> Verification:
    """Check the whole store, and ``sample`` random videos of ``against`` by extracting them anew.

    Of every video: its checksum, that all values are finite, that there are as many clips as its frames give
    and that they start where they should, that its labels cover the aligned clips. Of the file: objects that
    belong to no video.

    Args:
        against: inputs as ``extract`` takes them; those of their videos that are in the store are drawn from.
        weights: where the model is now, if not where the store has it from. They must be the same weights.
        device: as in ``extract``.
        seed: of the sample; None: another one every time.

    Raises StoreError for the store, VerifyError when the videos, the weights or the device cannot be used.
    """
    with FeatureStore(store) as reader:
        problems = list(_orphans(reader.path))
        try:
            recipe, frames = recipe_of(reader), frames_of(reader)
        except (KeyError, OSError, RuntimeError) as error:
            problems.append((VIDEOS, f"the videos cannot be listed ({error})"))
            return Verification(0, 0, tuple(problems))
        clips = 0
        for name, video in reader.items():
            clips += video.clips
            problems += [(name, problem) for problem in _check(video, reader, recipe, frames[name])]
        compared: list[Compared] = []
        if against:
            found, wrong = _compare(reader, recipe, against, sample, weights, device, random.Random(seed))
            compared, problems = found, problems + wrong
        return Verification(len(reader), clips, tuple(problems), tuple(compared))


def _check(video: StoredVideo, store: FeatureStore, recipe: Recipe, frames: int) -> Iterator[str]:
    features, starts = video.feature_dataset, video.start_frame
    clips = len(features)
    if features.shape[1:] != store.header.row_shape or features.dtype != store.dtype:
        yield f"its features are {features.dtype} {features.shape}, not {store.dtype} (clips, {store.header.row_shape})"
    if not video.is_intact():
        yield "its features or start frames are not what was written (checksum): extract it again"
    if not all(np.isfinite(block).all() for block in _blocks(features)):
        yield "its features are not all finite"
    if video.frames is None:
        yield "the number of its frames is missing"
    elif clips != recipe.count_clips(frames):
        yield f"it has {clips} clips, but its {frames} frames give {recipe.count_clips(frames)}"
    if len(starts) != clips or (starts != np.arange(len(starts)) * recipe.clip_stride).any():
        yield f"its clips do not start every {recipe.clip_stride} frames"
    labels, kept = video.labels, video.aligned_clips
    if kept is None:
        return
    if labels is None:
        yield f"{kept} clips are aligned, but there are no labels"
        return
    covered = count_aligned_clips(starts, frames, len(labels.frame), recipe)
    if not kept == covered == len(labels.clip):
        yield (f"{kept} clips are aligned, but its {len(labels.frame)} frame labels cover {covered} and "
               f"{len(labels.clip)} have a label: align it again")


def _blocks(features: h5py.Dataset) -> Iterator[np.ndarray]:
    step = max(1, BLOCK_BYTES // max(1, features[:0].itemsize * int(np.prod(features.shape[1:]))))
    for start in range(0, len(features), step):
        yield features[start : start + step]


def _orphans(path: str) -> Iterator[tuple[str, str]]:
    """Objects that no reader of the store would find, and links that lead nowhere."""
    file, root = open_committed(path)
    try:
        for key in root:
            if key not in (VIDEOS, FAILURES):
                yield key, "belongs to no store"
        yield from _orphans_below(root.get(VIDEOS, {}), "")
    finally:
        root.close()
        file.close()


def _orphans_below(group: h5py.Group, prefix: str) -> Iterator[tuple[str, str]]:
    """Of a group of videos: members that are neither one nor hold one."""
    folders = [(group, prefix)]
    while folders:
        group, prefix = folders.pop()
        for key in group:
            name = f"{prefix}{key}"
            if not isinstance(group.get(key, getlink=True), h5py.HardLink):
                yield name, "is a link to something else"
                continue
            member = group[key]
            is_video = FEATURES in group and isinstance(group[FEATURES], h5py.Dataset)
            if is_video and key in (FEATURES, START_FRAME, LABELS):
                continue
            if not isinstance(member, h5py.Group):
                yield name, "is data that belongs to no video"
            elif not len(member):
                yield name, "is an empty group"
            else:
                folders.append((member, f"{name}/"))


def _compare(store: FeatureStore, recipe: Recipe, against: Sequence[str | os.PathLike[str]], sample: int,
             weights: str | None, device: str, chance: random.Random) -> tuple[list[Compared], list[tuple[str, str]]]:
    # torch comes with the pipeline, and only this needs it
    from streamfeat.pipeline import ExtractError, RunError, extract
    from streamfeat.videos import InputError, find_videos

    try:
        videos = {video.name: video for video in find_videos(against) if video.name in store}
    except InputError as error:
        raise VerifyError(str(error)) from error
    if not videos:
        raise VerifyError(f"none of the videos in {', '.join(map(str, against))} is in {store.path}")
    drawn = [videos[name] for name in chance.sample(sorted(videos), min(sample, len(videos)))]
    compared, problems = [], []
    with tempfile.TemporaryDirectory() as folder:
        inputs, anew = Path(folder, "videos"), Path(folder, "anew.h5")
        for video in drawn:
            link = inputs / (video.name + (video.path.suffix if video.kind == "file" else ""))
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(video.path.resolve(), target_is_directory=video.kind == "frames")
        model = store.model
        try:
            summary = extract([inputs], anew, recipe=recipe, model=model["size"], weights=weights or model["source"],
                              device=device, dtype=store.header.dtype)
        except (ExtractError, RunError) as error:
            raise VerifyError(str(error)) from error
        if summary.model["sha256"] != model["sha256"]:
            raise VerifyError(f"the weights in {summary.model['source']} are not those that the store was made with "
                               f"(sha256 {model['sha256'][:12]}): give them with --weights")
        with FeatureStore(anew) as new:
            for video in drawn:
                if video.name not in new:
                    problems.append((video.name, f"cannot be extracted again: {summary.failures.get(video.name)}"))
                    continue
                result = _difference(store[video.name], new[video.name])
                if isinstance(result, Compared):
                    compared.append(result)
                    if result.smallest_cosine < SAME_COSINE:
                        problems.append((video.name, f"extracted anew its features differ: cosine "
                                                     f"{result.smallest_cosine:.4f}"))
                else:
                    problems.append((video.name, result))
    return compared, problems


def _difference(stored: StoredVideo, new: StoredVideo) -> Compared | str:
    before, now = stored.feature_dataset, new.feature_dataset
    if before.shape != now.shape:
        return f"extracted anew it has {len(now)} clips, not {len(before)}: has the video changed?"
    cosine, difference = 1.0, 0.0
    for ours, theirs in zip(_blocks(before), _blocks(now), strict=True):
        a, b = (block.astype(np.float64) for block in (ours, theirs))
        lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            cosines = np.where((a == b).all(-1), 1.0, np.nan_to_num((a * b).sum(-1) / lengths, nan=0.0))
        cosine = min(cosine, float(cosines.min()))
        difference = max(difference, float(np.abs(a - b).max()))
    return Compared(stored.name, len(before), cosine, difference)
