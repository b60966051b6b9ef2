"""Annotations that say from which frame to which a video is anomalous, and the videos that need none.

Frames count from 0 in all of them, and the published code of each data set decides whether the last is in:

- UCF-Crime, ``Temporal_Anomaly_Annotation.txt``: ``name  category  start end  start end``, -1 for none. The
  last frame is anomalous (RTFM, ``list/make_gt_ucf.py``). UR-DMU's ``list/UCF_Annotation.txt`` has the
  number of frames between name and category.
- XD-Violence, ``annotations.txt``: ``name start end start end ...``. The last frame is not anomalous
  (XDVioDet, ``list/make_gt.py``).
- UBnormal, ``<video>_tracks.txt``: ``object,start,end`` a line. The last frame is anomalous (UBnormal,
  ``scripts/write_frame_level_ground_truth.py``).

Normal videos are told by their names: UCF-Crime's ``Normal_Videos...``, XD-Violence's ``..._label_A``,
UBnormal's ``normal_...``, and ShanghaiTech's training half, ``01_001`` with three digits where the test half
has four.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from streamfeat.labels.errors import LabelError, twice
from streamfeat.labels.names import VideoNames
from streamfeat.labels.values import MAX_LABELS

#: frames; ten times the longest video of the field
MAX_FRAMES = 20_000_000

#: as UCF-Crime has them: ``Normal``, ``RoadAccidents``
_CATEGORY = re.compile(r"[A-Z][A-Za-z_]+")
_TRACKS = "_tracks.txt"
_LINES = "a line is 'name category start end ...' (UCF-Crime) or 'name start end ...' (XD-Violence)"


@dataclasses.dataclass(frozen=True)
class Dataset:
    """What the names of a data set's videos tell without any annotation."""

    name: str
    normal: re.Pattern[str]
    anomalous: re.Pattern[str]


UCF_CRIME = Dataset(
    "UCF-Crime",
    normal=re.compile(r"Normal_Videos"),
    anomalous=re.compile(r"(Abuse|Arrest|Arson|Assault|Burglary|Explosion|Fighting|RoadAccidents|Robbery|Shooting"
                         r"|Shoplifting|Stealing|Vandalism)\d"),
)
XD_VIOLENCE = Dataset("XD-Violence", normal=re.compile(r".*_label_A"), anomalous=re.compile(r".*_label_(B|G)"))
UBNORMAL = Dataset("UBnormal", normal=re.compile(r"normal_"), anomalous=re.compile(r"abnormal_"))
SHANGHAITECH = Dataset("ShanghaiTech", normal=re.compile(r"\d\d_\d{3}$"), anomalous=re.compile(r"(?!)"))


@dataclasses.dataclass(frozen=True)
class Annotation:
    """Anomalous frames ``[start, stop)`` by name; a video with none is normal throughout."""

    dataset: Dataset
    intervals: Mapping[str, list[tuple[int, int]]]


def read_annotation(path: Path) -> Annotation:
    """The annotation in a text file of UCF-Crime or XD-Violence, or a folder of UBnormal's tracks.

    Raises LabelError naming file and line of what is none of them.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob(f"*{_TRACKS}") if file.is_file())
        tracks: dict[str, list[tuple[int, int]]] = {}
        for file in files:
            name = file.name.removesuffix(_TRACKS)
            if name in tracks:
                raise LabelError(f"{path}: {twice(name)}")
            tracks[name] = _read_tracks(file)
        return Annotation(UBNORMAL, tracks)
    if path.name.endswith(_TRACKS):
        return Annotation(UBNORMAL, {path.name.removesuffix(_TRACKS): _read_tracks(path)})
    rows = list(_rows(path))
    if not rows:
        raise LabelError(f"{path}: nothing in it")
    _, first = rows[0]
    # second, or third where the number of frames stands second
    ucf_crime = any(_CATEGORY.fullmatch(field) for field in first[1:3])
    intervals: dict[str, list[tuple[int, int]]] = {}
    for number, fields in rows:
        if ucf_crime:
            category = next((at for at in (1, 2) if at < len(fields) and _CATEGORY.fullmatch(fields[at])), None)
            if category is None:
                raise LabelError(f"{path}, line {number}: no category, as the lines before it have; {_LINES}")
            fields = [fields[0], *fields[category + 1 :]]
        try:
            # a list of names without any would make normal videos of all of them
            if len(fields) == 1:
                raise ValueError("no interval")
            found = _pairs(fields[1:], inclusive=ucf_crime)
        except ValueError as error:
            raise LabelError(f"{path}, line {number}: {error}; {_LINES}") from None
        if fields[0] in intervals:
            raise LabelError(f"{path}, line {number}: {fields[0]!r} is annotated twice")
        intervals[fields[0]] = found
    return Annotation(UCF_CRIME if ucf_crime else XD_VIOLENCE, intervals)


def label_videos(annotation: Annotation, videos: Mapping[str, int]) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """Labels of the ``videos`` ({name: frames}) that the annotation or their names tell something about.

    Returns ``{name as annotated: uint8 (S,)}``, where S is the number of frames, or more where an annotation
    goes beyond them, and ``{video: 1}`` for those known as anomalous without saying where. An annotated name
    that means no video gets as many labels as its intervals need.
    """
    matches, _ = VideoNames(videos).match(annotation.intervals)
    frames = {match.name: videos[match.video] for match in matches.values()}
    labels = {}
    total = 0
    for name, intervals in annotation.intervals.items():
        length = max([frames.get(name, 0), *(stop for _, stop in intervals)])
        total += length
        if total > MAX_LABELS:
            raise LabelError(f"the annotation covers more than {MAX_LABELS:,} frames: more than any data set has")
        labels[name] = np.zeros(length, np.uint8)
        for start, stop in intervals:
            labels[name][start:stop] = 1
    normal, anomalous = told_by_name(annotation.dataset, videos.keys() - matches.keys())
    labels.update({video: np.zeros(videos[video], np.uint8) for video in normal})
    return labels, dict.fromkeys(anomalous, 1)


def told_by_name(dataset: Dataset, videos: set[str]) -> tuple[list[str], list[str]]:
    """The videos whose names say that they are normal, and those whose names say that they are not."""
    last_parts = {video: video.rpartition("/")[2] for video in sorted(videos)}
    return ([video for video, last in last_parts.items() if dataset.normal.match(last)],
            [video for video, last in last_parts.items() if dataset.anomalous.match(last)])


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(file, 1):
            fields = line.split()
            if fields:
                yield number, fields


def _read_tracks(path: Path) -> list[tuple[int, int]]:
    intervals = []
    for number, fields in _rows(path):
        try:
            _, start, end = "".join(fields).split(",")
            intervals += _pairs([start, end], inclusive=True)
        except ValueError as error:
            raise LabelError(f"{path}, line {number}: not 'object,start,end' ({error})") from None
    return intervals


def _pairs(fields: list[str], inclusive: bool) -> list[tuple[int, int]]:
    """Half-open intervals from ``start end start end ...``; raises ValueError."""
    if len(fields) % 2:
        raise ValueError("a start without an end")
    intervals = []
    for start, end in zip(fields[::2], fields[1::2], strict=True):
        first, last = _frame(start), _frame(end)
        if first < 0 and last < 0:
            continue
        if not 0 <= first <= last <= MAX_FRAMES:
            raise ValueError(f"no interval of frames: {start} to {end}")
        intervals.append((first, last + inclusive))
    return intervals


def _frame(text: str) -> int:
    try:
        return int(float(text))
    except (ValueError, OverflowError):
        raise ValueError(f"{text[:40]!r} is no number of a frame") from None
