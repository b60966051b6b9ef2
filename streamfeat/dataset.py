"""A torch ``Dataset`` over a store: aligned features and labels, video by video.

    for video in DataLoader(FeatureDataset("out.h5"), batch_size=None, shuffle=True, num_workers=4):
        loss = binary_cross_entropy(detector(video.features).max(), video.label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""

from __future__ import annotations

import logging
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
from streamfeat.store import FeatureStore, StoreError
from streamfeat.stored import aligned_clips, is_intact, video_label
from streamfeat.text import counted, shown

log = logging.getLogger(__name__)


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


class _Reader(NamedTuple):
    """The store, opened by one process."""

    process: int
    store: FeatureStore
    selection: Selection
    #: videos whose checksums it has found right
    intact: set[str]


class FeatureDataset(Dataset[Sample]):
    """The videos of the store at ``path`` that have at least one aligned clip (any clip, when not aligned).

    Every process opens the store for itself, when it first reads: workers may be forked or spawned, before or
    after this one has read. It checks each video's checksums the first time that it reads it, which costs one
    more reading of its features; workers do so once in all with ``persistent_workers``, else in every epoch.
    Only one video is in memory at a time, read whole.

    Args:
        path: the store.
        videos: names, or a file with one name a line, under any spelling that ``align`` knows; None: all.
        labelled: only videos whose label is known. Of all videos those without are left out, which is logged as
            a warning; among those asked for by name they are an error. False: their label is NaN.
        stats: statistics to take, out of those stored; None: all.
        flatten: statistics and channels in one dimension.

    Raises StoreError for the store, LabelError for names that are not in it or not labelled and for a store
    without any label, ExportError for unknown statistics. Reading a damaged video raises StoreError.
    """

    def __init__(self, path: str | os.PathLike[str], videos: Iterable[str] | str | os.PathLike[str] | None = None, *,
                 labelled: bool = True, stats: Sequence[str] | None = None, flatten: bool = False) -> None:
        self.path = os.fspath(path)
        self._stats, self._flatten = stats, flatten
        self._reader: _Reader | None = None
        with FeatureStore(path) as store:
            if store.attrs_intact() is False:
                raise StoreError(f"{self.path}: its recipe or model is damaged (checksum): streamfeat verify says what "
                                 "to do")
            Selection(store, stats, flatten)
            chosen = list(store) if videos is None else _find(store, videos)
            labels = {name: video_label(store[name]) for name in chosen if aligned_clips(store[name]) > 0}
        if labelled:
            labels = self._labelled(labels, asked_for=videos is not None)
        #: the videos, in the order of their indices
        self.names = list(labels)
        #: of each video: 1 anomalous, 0 normal, None unknown; for samplers
        self.labels = list(labels.values())

    def _labelled(self, labels: dict[str, int | None], asked_for: bool) -> dict[str, int | None]:
        missing = [name for name, label in labels.items() if label is None]
        if not missing:
            return labels
        what_to_do = "align the store with labels that have them (streamfeat align), or take labelled=False"
        if asked_for:
            them = counted(len(missing), "of the videos asked for has", "of the videos asked for have")
            raise LabelError(f"{self.path}: {them} no label, {missing[0]!r} first: {what_to_do}")
        if len(missing) == len(labels):
            raise LabelError(f"{self.path}: no video has a label: {what_to_do}")
        log.warning("%s: %s without a label left out, %r first (streamfeat align)", self.path,
                    counted(len(missing), "video"), missing[0])
        return {name: label for name, label in labels.items() if label is not None}

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Sample:
        reader = self._open()
        name, selection = self.names[index], reader.selection
        video = reader.store[name]
        if name not in reader.intact:
            if not is_intact(video):
                raise StoreError(f"{self.path}: {shown(name)} is damaged (checksum): streamfeat verify says what to do")
            reader.intact.add(name)
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

    def _open(self) -> _Reader:
        # a forked worker inherits the handle, and with it the position that its parent reads at
        if self._reader is None or self._reader.process != os.getpid():
            store = FeatureStore(self.path)
            self._reader = _Reader(os.getpid(), store, Selection(store, self._stats, self._flatten), set())
        return self._reader

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
