"""A torch ``Dataset`` over a store: aligned features and labels, video by video.

    for video in DataLoader(FeatureDataset("out.h5"), batch_size=None, shuffle=True, num_workers=4):
        loss = binary_cross_entropy(detector(video.features).max(), video.label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from streamfeat.export.selection import Selection
from streamfeat.labels.errors import LabelError
from streamfeat.labels.flat import read_list
from streamfeat.labels.names import VideoNames
from streamfeat.store import FeatureStore
from streamfeat.stored import aligned_clips, video_label
from streamfeat.text import counted


class Sample(NamedTuple):
    """One video. ``features`` float32 ``(T, ...)``, its aligned clips; unknown labels are NaN."""

    name: str
    features: torch.Tensor
    #: float32 scalar: 1 anomalous, 0 normal
    label: torch.Tensor
    #: float32 (T,)
    clip_labels: torch.Tensor


class Batch(NamedTuple):
    """Several videos, as long as the longest: ``features`` ``(B, T, ...)`` padded with 0, labels with NaN."""

    names: list[str]
    features: torch.Tensor
    #: (B,)
    label: torch.Tensor
    #: (B, T)
    clip_labels: torch.Tensor
    #: int64 (B,): clips of each video
    lengths: torch.Tensor


class FeatureDataset(Dataset[Sample]):
    """The videos of the store at ``path`` that have at least one aligned clip (any clip, when not aligned).

    Every process opens the store for itself, when it first reads: workers may be forked or spawned, before or
    after this one has read. Only one video is in memory at a time, read whole.

    Args:
        path: the store.
        videos: names, or a file with one name a line, under any spelling that ``align`` knows; None: all.
        stats: statistics to take, out of those stored; None: all.
        flatten: statistics and channels in one dimension.

    Raises StoreError for the store, LabelError for names that are not in it, ExportError for unknown statistics.
    """

    def __init__(self, path: str | os.PathLike[str], videos: Iterable[str] | str | os.PathLike[str] | None = None, *,
                 stats: Sequence[str] | None = None, flatten: bool = False) -> None:
        self.path = os.fspath(path)
        self._stats, self._flatten = stats, flatten
        self._reader: tuple[int, FeatureStore, Selection] | None = None
        with FeatureStore(path) as store:
            Selection(store, stats, flatten)
            chosen = list(store) if videos is None else _find(store, videos)
            #: the videos, in the order of their indices
            self.names = [name for name in chosen if aligned_clips(store[name]) > 0]
            #: of each video: 1 anomalous, 0 normal, None unknown; for samplers
            self.labels = [video_label(store[name]) for name in self.names]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        store, selection = self._open()
        name = self.names[index]
        video = store[name]
        clips = aligned_clips(video)
        features = np.empty((clips, *selection.row_shape), np.float32)
        start = 0
        for block in selection.blocks(video, clips):
            features[start : start + len(block)] = block
            start += len(block)
        clip_labels = np.full(clips, np.nan, np.float32)
        if video.aligned_clips is not None and video.labels is not None:
            clip_labels[:] = video.labels.clip[:clips]
        label = self.labels[index]
        return Sample(name, torch.from_numpy(features), torch.tensor(float("nan") if label is None else float(label)),
                      torch.from_numpy(clip_labels))

    @staticmethod
    def collate(samples: Sequence[Sample]) -> Batch:
        """``collate_fn`` for batches of several videos."""
        return Batch(
            [sample.name for sample in samples],
            pad_sequence([sample.features for sample in samples], batch_first=True),
            torch.stack([sample.label for sample in samples]),
            pad_sequence([sample.clip_labels for sample in samples], batch_first=True, padding_value=float("nan")),
            torch.tensor([len(sample.features) for sample in samples]),
        )

    def _open(self) -> tuple[FeatureStore, Selection]:
        # a forked worker inherits the handle, and with it the position that its parent reads at
        if self._reader is None or self._reader[0] != os.getpid():
            store = FeatureStore(self.path)
            self._reader = os.getpid(), store, Selection(store, self._stats, self._flatten)
        return self._reader[1:]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None}


def _find(store: FeatureStore, videos: Iterable[str] | str | os.PathLike[str]) -> list[str]:
    known = VideoNames(store)
    names = read_list(videos) if isinstance(videos, str | os.PathLike) else list(videos)
    matches = {name: known.find(name) for name in names}
    missing = [name for name, match in matches.items() if match is None]
    if missing:
        them = counted(len(missing), "video is", "videos are")
        raise LabelError(f"{them} not in {store.path}, {missing[0]!r} first: extract them, or leave them out")
    return list(dict.fromkeys(match.video for match in matches.values() if match is not None))
