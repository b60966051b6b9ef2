"""Ground truth into a store: which clips have labels, and what each clip's label is.

The published rule (Fed_WSVAD, ``Backbone/feature_alignment.py``), for ``T`` clips of 16 frames and ``S`` labels:
``T`` clips stay when ``16 T < S``, else ``S // 16``. Said for any recipe, that is: a clip stays when all of its
frames have labels. The published script cuts its files; here the features stay whole and the number of
aligned clips is written beside them.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np

from streamfeat.labels import LabelError, Labels, Match, VideoNames, read_labels, read_video_labels
from streamfeat.recipe import Recipe
from streamfeat.store import FeatureStore, StoredVideo, StoreWriter
from streamfeat.stored import aligned_clips, frames_of, recipe_of
from streamfeat.text import counted, shown

#: frames of a clip in the published pipeline, whatever the recipe here; its pickles have so many labels for each
PUBLISHED_CLIP = 16
ClipLabel = Literal["any", "majority", "fraction"]
#: names of unused labels that the table lists; --json has them all
_SHOWN_NAMES = 10
CLIP_LABELS: tuple[ClipLabel, ...] = ("any", "majority", "fraction")


def clip_ends(start_frame: np.ndarray, frames: int, recipe: Recipe) -> np.ndarray:
    """One past the last frame of each clip, int64 (T,); a padded clip ends where the video does."""
    return np.minimum(np.asarray(start_frame, np.int64) + recipe.clip_span, frames)


def count_aligned_clips(start_frame: np.ndarray, frames: int, labels: int, recipe: Recipe) -> int:
    """How many of the clips that start at ``start_frame`` (T,) have all of their frames among ``labels`` labels."""
    return int(np.count_nonzero(clip_ends(start_frame, frames, recipe) <= labels))


def label_clips(frame_labels: np.ndarray, start_frame: np.ndarray, frames: int, recipe: Recipe,
                how: ClipLabel = "any") -> np.ndarray:
    """The label of each clip, from the 0/1 labels of the frames that the model saw in it.

    ``any``: 1 if one of them is 1. ``majority``: 1 if at least half are, as Fed_WSVAD's ``frame2clip_anolabel``
    has it. ``fraction``: the share that is, float32. The others are uint8; the shape is (T,), for clips that
    all have labels. A frame repeated to pad a clip counts once.
    """
    starts = np.asarray(start_frame, np.int64)
    ends = clip_ends(starts, frames, recipe)
    # running sums of every frame_step-th label, one row for each of the frame_step offsets
    step = recipe.frame_step
    padded = np.pad(np.asarray(frame_labels, np.int64), (0, -len(frame_labels) % step))
    sums = np.pad(np.cumsum(padded.reshape(-1, step), axis=0), ((1, 0), (0, 0)))
    row, offset = starts // step, starts % step
    counts = -((starts - ends) // step)
    anomalous = sums[row + counts, offset] - sums[row, offset]
    # padding repeats the last frame, which a dilated clip may have stepped over
    repeated = (starts + recipe.clip_span > frames) & ((frames - 1 - starts) % step > 0)
    if repeated.any():
        counts = counts + repeated
        anomalous = anomalous + repeated * int(frame_labels[frames - 1])
    if how == "fraction":
        return (anomalous / np.maximum(counts, 1)).astype(np.float32)
    return (anomalous > 0 if how == "any" else 2 * anomalous >= np.maximum(counts, 1)).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Oddity:
    """Something about a video's labels that one should know; ``loses_data`` when labels or clips are left out."""

    text: str
    loses_data: bool = False


_NO_CLIPS = Oddity("no clips: the video is shorter than one", loses_data=True)


@dataclasses.dataclass(frozen=True)
class VideoAlignment:
    """How one video and its labels fit. ``labels`` and ``kept`` are None when there are no frame labels."""

    video: str
    clips: int
    frames: int
    match: Match | None
    #: of the video-level label that was given for it
    video_match: Match | None
    labels: int | None
    kept: int | None
    #: video-level: 1 anomalous, 0 normal, None unknown
    label: int | None
    oddities: tuple[Oddity, ...]
    #: the store has labels of it that these do not replace
    loses_earlier: bool

    def to_dict(self) -> dict[str, Any]:
        return {
            "video": self.video, "clips": self.clips, "frames": self.frames, "labels": self.labels, "kept": self.kept,
            "video_label": self.label, "loses_earlier_labels": self.loses_earlier,
            "matched_by": self.match.variant or "name" if self.match else None,
            "name_in_labels": self.match.name if self.match else None,
            "video_label_matched_by": self.video_match.variant or "name" if self.video_match else None,
            "name_in_video_labels": self.video_match.name if self.video_match else None,
            "oddities": [dataclasses.asdict(oddity) for oddity in self.oddities],
        }


@dataclasses.dataclass(frozen=True)
class Alignment:
    """What :func:`align` found, video by video, and whether it was written."""

    form: str
    videos: tuple[VideoAlignment, ...]
    without_video: tuple[str, ...]
    written: bool

    @property
    def loses_data(self) -> bool:
        """Whether labels or clips are left out anywhere, or labels go that the store has."""
        return bool(self.without_video) or any(odd.loses_data for video in self.videos for odd in video.oddities)

    @property
    def variants(self) -> list[Match]:
        """Matches of frame labels that are not by the exact name."""
        return [video.match for video in self.videos if video.match is not None and video.match.variant]

    @property
    def video_variants(self) -> list[Match]:
        """Matches of video-level labels that are not by the exact name."""
        return [video.video_match for video in self.videos
                if video.video_match is not None and video.video_match.variant]

    def to_dict(self) -> dict[str, Any]:
        return {
            "form": self.form, "written": self.written, "loses_data": self.loses_data,
            "videos": [video.to_dict() for video in self.videos],
            "labels_without_video": list(self.without_video),
        }


def align(store: str | os.PathLike[str], source: str | os.PathLike[str], *,
          video_labels: str | os.PathLike[str] | None = None, test_list: str | os.PathLike[str] | None = None,
          clip_label: ClipLabel = "any", strict: bool = False) -> Alignment:
    """Write the ground truth in ``source`` into ``store``, in place of any that it has: all of it, or nothing.

    ``source`` is anything that :func:`streamfeat.labels.read_labels` reads; ``video_labels`` adds video-level
    labels for videos whose frames have none. Features are not touched. With ``strict`` nothing is written when
    labels or clips would be left out, or a video would lose labels that it has.

    Raises LabelError for labels that cannot be read or matched, StoreError for the store.
    """
    if clip_label not in CLIP_LABELS:
        raise LabelError(f"clip labels are made by {', '.join(CLIP_LABELS)}, not {clip_label!r}")
    # the writer comes first: it keeps others from changing the videos that the labels are matched with
    with StoreWriter.open_existing(store) as writer:
        with FeatureStore(store) as reader:
            recipe, frames = recipe_of(reader), frames_of(reader)
            labels = read_labels(source, frames, test_list)
            by_video = read_video_labels(video_labels) if video_labels is not None else {}
            alignment = _compare(reader, recipe, frames, labels, by_video)
            starts = {video.video: reader[video.video].start_frame for video in alignment.videos if video.match}
        if all(video.match is None and video.label is None for video in alignment.videos):
            raise LabelError(f"{source}: has no label for any video of {store}; nothing was written")
        if strict and alignment.loses_data:
            return alignment
        writer.clear_labels()
        for video in alignment.videos:
            attrs = {"video": video.label, "source": str(source), "clip_label": clip_label}
            if video.match is not None:
                frame = _binary(labels.frame[video.match.name])
                clip = label_clips(frame, starts[video.video][: video.kept], video.frames, recipe, clip_label)
                writer.set_labels(video.video, frame, clip, {**attrs, "aligned_clips": video.kept})
            elif video.label is not None:
                nothing = np.zeros(0, np.uint8)
                writer.set_labels(video.video, nothing, nothing, attrs)
        writer.commit()
    return dataclasses.replace(alignment, written=True)


def _binary(labels: np.ndarray) -> np.ndarray:
    return (labels > 0).astype(np.uint8)


def _compare(store: FeatureStore, recipe: Recipe, frames: Mapping[str, int], labels: Labels,
             by_video: Mapping[str, int]) -> Alignment:
    names = VideoNames(store)
    matches, without_video = names.match(labels.frame)
    video_matches, without_video_too = names.match(by_video)
    return Alignment(
        labels.form,
        tuple(_compare_video(video, recipe, frames[name], labels, matches.get(name), by_video, video_matches.get(name))
              for name, video in store.items()),
        tuple(dict.fromkeys([*without_video, *without_video_too])),
        written=False,
    )


def _compare_video(video: StoredVideo, recipe: Recipe, frames: int, labels: Labels, match: Match | None,
                   by_video: Mapping[str, int], video_match: Match | None) -> VideoAlignment:
    name, clips = video.name, video.clips
    told = by_video[video_match.name] if video_match is not None else None
    if match is None:
        label = told if told is not None else labels.video.get(name)
        oddities = [Oddity("no labels" if label is None else "no frame labels")]
        if clips == 0 and label is not None:
            oddities.append(_NO_CLIPS)
        lost = _lost(video, None, label)
        return VideoAlignment(name, clips, frames, None, video_match, None, None, label, (*oddities, *lost), bool(lost))
    values = labels.frame[match.name]
    kept = count_aligned_clips(video.start_frame, frames, len(values), recipe)
    anomalous = int((values > 0).any())
    label = anomalous if told is None else told
    oddities = [*_lengths(values, frames, clips, recipe)]
    if clips == 0:
        oddities.append(_NO_CLIPS)
    elif kept == 0:
        oddities.append(Oddity("empty after alignment", loses_data=True))
    elif kept < clips:
        oddities.append(Oddity(f"{clips - kept} of its clips {'has' if clips - kept == 1 else 'have'} no labels",
                               loses_data=True))
    if not np.isin(values, (0, 1)).all():
        odd = np.setdiff1d(values, (0, 1))
        oddities.append(Oddity(f"labels other than 0 and 1 ({', '.join(f'{value:g}' for value in odd[:3])}"
                               f"{', ...' if len(odd) > 3 else ''}): above 0 counts as 1", loses_data=True))
    if label != anomalous:
        oddities.append(Oddity("labelled anomalous as a video, but in no frame" if label else
                               "labelled normal as a video, but not in every frame"))
    elif kept and anomalous and not label_clips(_binary(values), video.start_frame[:kept], frames, recipe).any():
        oddities.append(Oddity("anomalous in none of its clips"))
    lost = _lost(video, kept, label)
    return VideoAlignment(name, clips, frames, match, video_match, len(values), kept, label, (*oddities, *lost),
                          bool(lost))


def _lengths(values: np.ndarray, frames: int, clips: int, recipe: Recipe) -> Iterator[Oddity]:
    """How many labels ``values`` (S,) has beside ``frames``; the clips that have none are told elsewhere."""
    more = len(values) - frames
    if more == 0:
        return
    # in the published pickles, for videos whose frames nobody counted
    if len(values) and len(values) in (clips * recipe.clip_stride, frames // PUBLISHED_CLIP * PUBLISHED_CLIP):
        each = recipe.clip_stride if len(values) == clips * recipe.clip_stride else PUBLISHED_CLIP
        yield Oddity(f"as many labels as {each} x clips, not as frames: usual for normal training videos")
        return
    text = f"{counted(abs(more), 'more label' if more > 0 else 'fewer label')} than frames"
    if more > 0 and (values[frames:] > 0).any():
        text += f", {np.count_nonzero(values[frames:] > 0)} of them anomalous"
    yield Oddity(text, loses_data=abs(more) > recipe.clip_span)


def _lost(video: StoredVideo, kept: int | None, label: int | None) -> list[Oddity]:
    """What the video has of labels in the store, and would not have with ``kept`` clips and ``label``."""
    before = video.aligned_clips
    if before is not None and kept is None:
        return [Oddity("loses the labels that it had" if label is None else "loses the frame labels that it had",
                       loses_data=True)]
    if before is not None and kept < aligned_clips(video):
        return [Oddity(f"fewer clips with labels than the {before} before", loses_data=True)]
    if kept is None and label is None and video.labels is not None:
        return [Oddity("loses the labels that it had", loses_data=True)]
    return []


def table(alignment: Alignment) -> list[str]:
    """The alignment as lines for people: every video, then what was overlooked and what is left out."""
    rows = [("video", "clips", "frames", "labels", "kept", "")]
    for video in alignment.videos:
        numbers = (video.clips, video.frames, video.labels, video.kept)
        cells = ("-" if number is None else str(number) for number in numbers)
        rows.append((shown(video.video), *cells, "; ".join(oddity.text for oddity in video.oddities)))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = []
    for name, *numbers, remark in rows:
        cells = [number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *cells, remark]).rstrip())
    lines.append(f"read as {alignment.form}")
    for what, matches in (("", alignment.variants), ("video label ", alignment.video_variants)):
        lines += [f"{what}matched by {match.variant}: {shown(match.name)} → {shown(match.video)}" for match in matches]
    unused = alignment.without_video
    lines += [f"labels without a video: {shown(name)}" for name in unused[:_SHOWN_NAMES]]
    if len(unused) > _SHOWN_NAMES:
        lines.append(f"labels without a video: {len(unused) - _SHOWN_NAMES} more")
    if lost := sum(video.loses_earlier for video in alignment.videos):
        lines.append(f"labels lost that were there: {counted(lost, 'video')}")
    return lines
