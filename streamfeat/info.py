"""What is inside a store, at a glance."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from typing import Any

from streamfeat.store import FeatureStore
from streamfeat.stored import frame_labels, video_label
from streamfeat.text import counted, shown


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    clips: int
    #: decoded from the source, 0 if unknown
    frames: int
    #: frames per second of the source, 0.0 if unknown
    fps: float
    decoder: str
    #: that the model ran in, empty if unknown
    precision: str
    #: packets of the source that could not be decoded
    damaged_packets: int
    #: number of frame labels, None where there are none
    labels: int | None
    #: clips kept by the alignment, None before ``align``
    aligned_clips: int | None
    #: 1 anomalous, 0 normal, None where nothing tells
    video_label: int | None

    @property
    def seconds(self) -> float:
        """Duration of the source; 0.0 where its frame rate is unknown."""
        return self.frames / self.fps if self.fps else 0.0


@dataclasses.dataclass(frozen=True)
class StoreInfo:
    """What :func:`info` found; ``str()`` is the page that the command prints."""

    path: str
    size_bytes: int
    created: str
    software: str
    recipe: dict[str, Any]
    model: dict[str, Any]
    dtype: str
    #: of one clip's feature
    row_shape: tuple[int, ...]
    videos: dict[str, VideoInfo]
    #: video -> (stage, reason)
    failures: dict[str, tuple[str, str]]

    @property
    def clips(self) -> int:
        return sum(video.clips for video in self.videos.values())

    @property
    def precisions(self) -> dict[str, int]:
        """How many videos were made in each precision: a store may have been filled on several machines."""
        return dict(Counter(video.precision or "unknown" for video in self.videos.values()))

    @property
    def hours(self) -> float:
        """Of source video, where the frame rate is known."""
        return sum(video.seconds for video in self.videos.values()) / 3600

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the fields, and the totals."""
        return {
            **dataclasses.asdict(self),
            "clips": self.clips,
            "frames": sum(video.frames for video in self.videos.values()),
            "hours": self.hours,
            "precisions": self.precisions,
        }

    def __str__(self) -> str:
        recipe, model = self.recipe, self.model
        shape = " x ".join(str(length) for length in ("clips", *self.row_shape))
        lines = [
            f"{shown(self.path)}  {_bytes(self.size_bytes)}, made {shown(self.created)} by {shown(self.software)}",
            f"  recipe    {shown(recipe['name'])}: {recipe['clip_frames']} frames a clip, one clip every "
            f"{recipe['clip_stride']} frames, statistics {', '.join(recipe['stats'])}",
            f"  model     {shown(model['size'])} from {shown(model['source'])}, sha256 {model['sha256'][:12]}"
            + ("  (random weights: these features mean nothing)" if model["source"] == "random" else ""),
            f"  features  {shape}, {self.dtype}",
            f"  videos    {len(self.videos)}: {counted(self.clips, 'clip')}, "
            f"{counted(sum(v.frames for v in self.videos.values()), 'frame')}, {self.hours:.2f} hours",
        ]
        if len(self.precisions) > 1:
            counts = ", ".join(f"{shown(name)} {counted(videos, 'video')}" for name, videos in self.precisions.items())
            lines.append(f"  precision {counts}")
        lines += self._labels()
        lines += self._rows()
        if self.failures:
            lines.append(f"  failures  {len(self.failures)}")
            lines += [f"    {shown(name)}: {shown(stage)}: {shown(reason)}"
                      for name, (stage, reason) in self.failures.items()]
        return "\n".join(lines)

    def _labels(self) -> list[str]:
        labelled = [video for video in self.videos.values() if video.video_label is not None]
        if not labelled:
            return []
        by_frame = [video for video in labelled if video.labels is not None]
        parts = []
        if by_frame:
            kept, total = sum(video.aligned_clips or 0 for video in by_frame), sum(video.clips for video in by_frame)
            parts.append(f"of the frames of {counted(len(by_frame), 'video')}, {kept} of "
                         f"{'its' if len(by_frame) == 1 else 'their'} {counted(total, 'clip')} aligned")
        if whole := len(labelled) - len(by_frame):
            parts.append(f"of {counted(whole, 'video')} as a whole only")
        anomalous = sum(video.video_label or 0 for video in labelled)
        parts.append(f"{anomalous} anomalous, {len(labelled) - anomalous} normal")
        return [f"  labels    {'; '.join(parts)}"]

    def _rows(self, most: int = 20) -> list[str]:
        if not self.videos:
            return []
        width = min(48, max(len(shown(name)) for name in self.videos))
        rows = [f"    {'name':{width}}  {'clips':>7}  {'frames':>8}  {'fps':>6}  decoder"]
        for name, video in list(self.videos.items())[:most]:
            damaged = f", damaged: {counted(video.damaged_packets, 'bad packet')}" if video.damaged_packets else ""
            rows.append(
                f"    {shown(name):{width}}  {video.clips:>7}  {video.frames:>8}  {video.fps:>6.4g}  "
                f"{shown(video.decoder)}{damaged}"
            )
        if len(self.videos) > most:
            rows.append(f"    ... and {len(self.videos) - most} more (all of them: --json)")
        return rows


def info(path: str | os.PathLike[str]) -> StoreInfo:
    """What the store at ``path`` holds. Raises :class:`streamfeat.store.StoreError` if it is none."""
    with FeatureStore(path) as store:
        videos = {name: _video(store[name]) for name in store}
        shapes = {store[name].feature_dataset.shape[1:] for name in list(store)[:1]}
        return StoreInfo(
            path=os.fspath(path),
            size_bytes=os.path.getsize(path),
            created=store.created,
            software=store.software,
            recipe=store.recipe,
            model=store.model,
            dtype=str(store.dtype),
            row_shape=shapes.pop() if shapes else (),
            videos=videos,
            failures={name: (failure.stage, failure.error) for name, failure in store.failures.items()},
        )


def _video(video: Any) -> VideoInfo:
    attrs, labels = video.attrs, frame_labels(video)
    return VideoInfo(
        clips=len(video.feature_dataset),
        frames=video.frames or 0,
        fps=video.fps or 0.0,
        decoder=str(attrs.get("decoder", "")),
        precision=str(attrs.get("precision", "")),
        damaged_packets=int(attrs.get("damaged_packets", 0)),
        labels=None if labels is None else len(labels),
        aligned_clips=video.aligned_clips,
        video_label=video_label(video),
    )


def _bytes(count: int) -> str:
    power = min(4, max(0, len(str(count)) - 1) // 3)
    return f"{count / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
