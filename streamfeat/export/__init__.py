"""A store's features in the layouts that detectors read."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from streamfeat.export.destination import Destination
from streamfeat.export.errors import ExportError, ExportRefused
from streamfeat.export.layouts import Job, fed_wsvad, npy, rtfm, xd
from streamfeat.export.selection import Selection
from streamfeat.export.shards import safetensors
from streamfeat.files import check_name
from streamfeat.labels.flat import read_list
from streamfeat.labels.names import VideoNames
from streamfeat.store import FeatureStore, StoreError
from streamfeat.stored import aligned_clips, frames_of, is_intact, recipe_of
from streamfeat.text import counted, shown

__all__ = ["LAYOUTS", "ExportError", "ExportRefused", "Exported", "export"]

LAYOUTS = {"fed-wsvad": fed_wsvad, "npy": npy, "rtfm": rtfm, "xd": xd, "safetensors": safetensors}
#: layouts that make a test list of what is not for training, where none is given
_TEST_ON_THE_REST = ("rtfm", "xd")


@dataclasses.dataclass(frozen=True)
class Exported:
    """What :func:`export` did."""

    destination: str
    layout: str
    videos: int
    clips: int
    #: shape of one clip's feature in the files
    row_shape: tuple[int, ...]
    #: files written, and files that were there already, equal to what would have been written
    written: int
    kept: int
    #: videos without a clip to train on, which no layout can hold
    empty: tuple[str, ...]
    #: files of this layout at the destination that are no part of this export
    stale: tuple[str, ...]
    #: what the user should know of the lists and the ground truth
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def export(store: str | os.PathLike[str], destination: str | os.PathLike[str], *, layout: str,
           dataset: str = "shanghaitech", stats: Sequence[str] | None = None, flatten: bool = False,
           train_list: str | os.PathLike[str] | None = None, test_list: str | os.PathLike[str] | None = None,
           overwrite: bool = False) -> Exported:
    """Write the aligned clips of ``store`` (all clips of videos that are not aligned) below ``destination``.

    Args:
        layout: one of ``LAYOUTS``. ``fed-wsvad``: the tree of Fed_WSVAD and AR-Net. ``npy``: one file a video.
            ``rtfm``: ``_i3d.npy`` files, lists and flat ground truth, for RTFM and MGFN too. ``xd``: one file
            a crop, lists and flat ground truth, for XDVioDet and UR-DMU. ``safetensors``: shards.
        dataset: name of the top folder of ``fed-wsvad``.
        stats: statistics to take, out of those stored; None: all.
        flatten: statistics and channels in one dimension.
        train_list: videos for training, one name a line, under any spelling that ``align`` knows.
        test_list: videos for evaluation. With a list, videos that are in none are not exported; ``rtfm`` and ``xd``
            make a missing test list of the others with frame labels.
        overwrite: replace files that exist; without it they must be what would be written, as after an
            interrupted export.

    Features are float32, in ``safetensors`` as stored. No more than a few megabytes are in memory, however
    long the videos are. Every file appears whole or not at all, and none outside ``destination``. The features
    are read twice: their checksums come before the first file.

    Before anything is written, raises ExportError, LabelError for lists, UnsafeName for a name that leads out of
    ``destination``, StoreError for the store, ExportRefused for damaged videos and for files that differ from
    what would be written. Later OSError for the destination.
    """
    if layout not in LAYOUTS:
        raise ExportError(f"there is no layout {layout!r}; there are {', '.join(LAYOUTS)}")
    check_name(dataset)
    if not os.fspath(destination):
        raise ExportError("the destination is empty: give a folder")
    with FeatureStore(store) as reader:
        names = list(reader)
        videos = [name for name in names if aligned_clips(reader[name]) > 0]
        if not videos:
            raise ExportError(f"{store}: no video has a clip to export")
        job = Job(reader, recipe_of(reader), frames_of(reader), Selection(reader, stats, flatten),
                  Destination(destination, overwrite), videos, None, None, dataset)
        listed = {path: _listed(job, names, path) for path in (train_list, test_list) if path is not None}
        job.train, job.test = (_with_clips(job, listed, path) for path in (train_list, test_list))
        if both := [name for name in job.train or () if name in set(job.test or ())]:
            them = counted(len(both), "video is", "videos are")
            raise ExportError(f"{them} in {train_list} and in {test_list}, {both[0]} first: what a detector is "
                              "trained on says nothing as a test; take them out of one")
        try:
            if listed:
                tested = job.rest() if test_list is None and layout in _TEST_ON_THE_REST else []
                names = _without_others(job, names, set().union(*listed.values(), tested))
            for name in job.videos:
                check_name(name)
            LAYOUTS[layout](job)
        except StoreError:
            _check_intact(job)  # names the video
            raise
        _check_intact(job)
        job.destination.write()
        return Exported(
            str(destination), layout, len(job.videos), sum(map(job.clips, job.videos)), job.selection.row_shape,
            job.destination.written, job.destination.kept,
            tuple(name for name in names if name not in set(job.videos)), job.destination.stale(), tuple(job.notes),
        )


def _check_intact(job: Job) -> None:
    """Raise ExportRefused where the recipe or a video to export is not what was written."""
    if job.store.attrs_intact() is False:
        raise ExportRefused(f"{job.store.path}: its recipe or model is damaged (checksum): streamfeat verify says what "
                            "to do")
    damaged = [name for name in job.videos if not is_intact(job.store[name])]
    if damaged:
        them = counted(len(damaged), "video is", "videos are")
        raise ExportRefused(f"{job.store.path}: {them} damaged (checksum), {damaged[0]} first: streamfeat verify "
                            "says what to do")


def _listed(job: Job, names: Sequence[str], path: str | os.PathLike[str]) -> list[str]:
    """The videos of a list, each once, in its order.

    Raises ExportError for names that are not in the store.
    """
    known = VideoNames(names)
    matches = {line: known.find(line) for line in read_list(path)}
    missing = [line for line, match in matches.items() if match is None]
    if missing:
        them = counted(len(missing), "name is", "names are")
        raise ExportError(f"{path}: {them} not in the store, {missing[0]!r} first: extract them, or take them out of "
                          "the list")
    variants = [match for match in matches.values() if match is not None and match.variant]
    if variants:
        job.notes.append(f"{path}: {counted(len(variants), 'name')} matched by a variant, {variants[0]} first")
    return list(dict.fromkeys(match.video for match in matches.values() if match is not None))


def _with_clips(job: Job, listed: Mapping[Any, list[str]], path: str | os.PathLike[str] | None) -> list[str] | None:
    """Those of a list that can be exported; None: it was not given."""
    if path is None:
        return None
    exported = set(job.videos)
    found = [name for name in listed[path] if name in exported]
    if not found:
        raise ExportError(f"{path}: none of its videos has a clip to export")
    return found


def _without_others(job: Job, names: Sequence[str], chosen: set[str]) -> list[str]:
    """Leave what is in no list out of the job, and say so; returns those of ``names`` that are in one."""
    others = [name for name in names if name not in chosen]
    if others:
        job.notes.append(f"{counted(len(others), 'video of the store is', 'videos of the store are')} in no list and "
                         f"not exported, {shown(others[0])} first")
    job.videos = [name for name in job.videos if name in chosen]
    return [name for name in names if name in chosen]
