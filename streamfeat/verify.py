"""Is a store what it says it is? Checks what is in it, and a sample against the videos themselves."""

from __future__ import annotations

import dataclasses
import os
import random
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streamfeat.checks import VideoChecks, blocks
from streamfeat.recipe import Recipe, RecipeError
from streamfeat.store import FeatureStore, StoredVideo, StoreError
from streamfeat.stored import recipe_of
from streamfeat.text import counted

if TYPE_CHECKING:
    from streamfeat.videos import Video

#: smallest cosine between a stored and a new feature that count as equal: half precision on one side gives
#: 0.9995 and more. With published weights exchanged colours give as little as 0.39; random ones may not tell them.
SAME_COSINE = 0.999
#: what makes names those of the store
SAME_NAMES = "give the folder that was given to extract"


class VerifyError(Exception):
    """The sample cannot be compared: no such videos, other weights, or the extraction broke off."""


@dataclasses.dataclass(frozen=True)
class Compared:
    """A video that was extracted anew."""

    video: str
    clips: int
    #: between stored and new features, over all clips and statistics; None without clips
    smallest_cosine: float | None
    largest_difference: float | None


@dataclasses.dataclass(frozen=True)
class Verification:
    """What :func:`verify` looked at and what it found."""

    videos: int
    clips: int
    #: (video or object, what is wrong with it)
    problems: tuple[tuple[str, str], ...]
    compared: tuple[Compared, ...] = ()
    #: (video of the store that is not among the inputs, one of them that may be it under another name)
    left_out: tuple[tuple[str, str | None], ...] = ()
    #: what the store does not have that it would take, and of how many videos
    unchecked: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "problems": [list(problem) for problem in self.problems],
                "left_out": dict(self.left_out), "same_cosine": SAME_COSINE}


def verify(store: str | os.PathLike[str], against: Sequence[str | os.PathLike[str]] = (), *, sample: int = 3,
           weights: str | None = None, device: str = "auto", seed: int | None = None) -> Verification:
    """Check the whole store, and ``sample`` random videos of ``against`` by extracting them anew.

    Of every video: its checksums, that all values are finite, that there are as many clips as its frames give
    and that they start where they should. Of its labels: their checksum, that they are 0 or 1, that the clips'
    follow from the frames' by the rule that they were made with, that the video's does not contradict them, and
    that they cover the aligned clips and no more. Of the file: objects that belong to no video. Stores made
    before there were all of these checksums are checked in everything else; ``unchecked`` says what is left out.

    Args:
        against: inputs as ``extract`` takes them; those of their videos that are in the store are drawn from, and
            ``left_out`` has those of the store that are not among them.
        weights: where the model is now, if not where the store has it from. They must be the same weights.
        device: as in ``extract``.
        seed: of the sample; None: another one every time.

    Raises StoreError for the store, VerifyError when the videos, the weights or the device cannot be used.
    """
    with FeatureStore(store) as reader:
        survey = reader.survey()
        problems = list(survey.strays)
        try:
            recipe = recipe_of(reader)
        except (RecipeError, KeyError, TypeError, ValueError) as error:
            raise VerifyError(f"{store}: its recipe is damaged ({error}): extract anew with --overwrite") from error
        header_intact = reader.attrs_intact()
        if header_intact is False:
            problems.append(("/", "recipe, model or other attributes of the store are not what was written (checksum)"))
        try:
            reader.failures  # noqa: B018
        except StoreError as error:
            problems.append(("failures", str(error)))
        clips, unchecked = 0, Counter()
        for name in survey.videos:
            checks = VideoChecks(reader[name], reader, recipe)
            problems += [(name, problem) for problem in checks.problems()]
            clips += checks.clips
            unchecked.update(checks.unchecked)
        compared, left_out = [], []
        if against:
            videos, left_out = _find(reader, survey.videos, against)
            compared, wrong = _compare(reader, recipe, videos, sample, weights, device, random.Random(seed))
            problems += wrong
        return Verification(
            len(survey.videos), clips, tuple(problems), tuple(compared), tuple(left_out),
            (*(["the store: its recipe and model have no checksum"] if header_intact is None else []),
             *(f"{counted(videos, 'video')}: {what}" for what, videos in unchecked.items())),
        )


def _find(store: FeatureStore, names: Sequence[str], against: Sequence[str | os.PathLike[str]]
          ) -> tuple[dict[str, Video], list[tuple[str, str | None]]]:
    """The videos of ``against`` that are in the store, and those of the store that are not among them."""
    from streamfeat.videos import InputError, find_videos

    try:
        given = {video.name: video for video in find_videos(against)}
    except InputError as error:
        raise VerifyError(str(error)) from error
    strangers = {name.rpartition("/")[2]: name for name in given if name not in store}
    left_out = [(name, strangers.get(name.rpartition("/")[2])) for name in names if name not in given]
    videos = {name: video for name, video in given.items() if name in store}
    if not videos:
        renamed = next((f" ({other} may be {name} there: {SAME_NAMES})" for name, other in left_out if other), "")
        raise VerifyError(f"none of the videos in {', '.join(map(str, against))} is in {store.path}{renamed}")
    return videos, left_out


def _compare(store: FeatureStore, recipe: Recipe, videos: Mapping[str, Video], sample: int, weights: str | None,
             device: str, chance: random.Random) -> tuple[list[Compared], list[tuple[str, str]]]:
    # torch comes with the pipeline, and only this needs it
    from streamfeat.pipeline import ExtractError, RunError, extract

    model = store.model
    if not {"size", "source", "sha256"} <= model.keys():
        raise VerifyError(f"{store.path}: does not say which model it was made with: nothing can be compared")
    drawn = [videos[name] for name in chance.sample(sorted(videos), min(sample, len(videos)))]
    compared, problems = [], []
    with tempfile.TemporaryDirectory() as folder:
        inputs, anew = [], Path(folder, "anew.h5")
        for number, video in enumerate(drawn):
            # a folder for each: the link to a folder of frames must not become the folder of another link
            inputs.append(Path(folder, str(number)))
            link = inputs[-1] / (video.name + (video.path.suffix if video.kind == "file" else ""))
            link.parent.mkdir(parents=True)
            link.symlink_to(video.path.resolve(), target_is_directory=video.kind == "frames")
        try:
            summary = extract(inputs, anew, recipe=recipe, model=model["size"], weights=weights or model["source"],
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
                    if result.smallest_cosine is not None and result.smallest_cosine < SAME_COSINE:
                        problems.append((video.name, f"extracted anew its features differ: cosine "
                                                     f"{result.smallest_cosine:.4f}"))
                else:
                    problems.append((video.name, result))
    return compared, problems


def _difference(stored: StoredVideo, new: StoredVideo) -> Compared | str:
    before, now = stored.feature_dataset, new.feature_dataset
    if before.shape != now.shape:
        return f"extracted anew it has {len(now)} clips, not {len(before)}: has the video changed?"
    if not len(before):
        return Compared(stored.name, 0, None, None)
    cosine, difference = 1.0, 0.0
    for ours, theirs in zip(blocks(stored), blocks(new), strict=True):
        a, b = (block.astype(np.float64) for block in (ours, theirs))
        lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
        with np.errstate(invalid="ignore", divide="ignore"):
            cosines = np.where((a == b).all(-1), 1.0, np.nan_to_num((a * b).sum(-1) / lengths, nan=0.0))
        cosine = min(cosine, float(cosines.min()))
        difference = max(difference, float(np.abs(a - b).max()))
    return Compared(stored.name, len(before), cosine, difference)
