"""What each detector reads: file names, lists and ground truth.

Sources of the layouts: Fed_WSVAD ``VAD/video_dataset_anomaly_balance_uni_sample.py`` and ``VAD/eval.py`` (AR-Net
has the same); RTFM ``dataset.py``, ``test_10crop.py`` and ``list/make_gt_ucf.py``, which MGFN follows; XDVioDet
``dataset.py``, ``test.py`` and ``list/make_list.py``, and UR-DMU ``dataset_loader.py``; ActionFormer
``libs/datasets/thumos14.py``.
"""

from __future__ import annotations

import dataclasses
import glob
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from streamfeat.export.destination import Destination
from streamfeat.export.errors import ExportError
from streamfeat.export.selection import Selection
from streamfeat.labels.publish import frame_label_chunks, video_label_chunks
from streamfeat.recipe import Recipe
from streamfeat.store import FeatureStore
from streamfeat.stored import aligned_clips, frame_labels, video_label
from streamfeat.text import counted

#: how often the detectors repeat each clip's score before they compare it with the labels of frames
REPEATS = 16
#: files a video that XDVioDet and UR-DMU evaluate together: crops of XD-Violence and UCF-Crime
_EVALUATED_FILES = (5, 10)
#: how their loaders tell a normal video
_MARKED_NORMAL = re.compile("_label_A|Normal")


@dataclasses.dataclass
class Job:
    """One export on its way."""

    store: FeatureStore
    recipe: Recipe
    #: {video: frames}
    frames: Mapping[str, int]
    selection: Selection
    destination: Destination
    #: videos to export, all with at least one clip
    videos: Sequence[str]
    #: those of ``videos`` that the lists name, in their order; None: no list was given
    train: Sequence[str] | None
    test: Sequence[str] | None
    dataset: str
    #: said to the user afterwards
    notes: list[str] = dataclasses.field(default_factory=list)
    # asked for again and again, and from the store each takes a millisecond
    _clips: dict[str, int] = dataclasses.field(default_factory=dict)
    _labels: dict[str, int | None] = dataclasses.field(default_factory=dict)

    def clips(self, name: str) -> int:
        if name not in self._clips:
            self._clips[name] = aligned_clips(self.store[name])
        return self._clips[name]

    def label(self, name: str) -> int | None:
        if name not in self._labels:
            self._labels[name] = video_label(self.store[name])
        return self._labels[name]

    def add_features(self, file: str, name: str, crop: int | None = None) -> None:
        """Plan the features of the video ``name``, or one crop of them, as float32 ``.npy``."""
        video, clips = self.store[name], self.clips(name)
        shape = self.selection.row_shape if crop is None else self.selection.crop_shape
        self.destination.add_npy(file, (clips, *shape), "<f4", lambda: self.selection.blocks(video, clips, crop))

    def trainable(self, names: Sequence[str], file: str) -> list[str]:
        """Those with a label of their own; that others are missing from ``file`` is noted.

        Raises ExportError where none has one.
        """
        labelled = [name for name in names if self.label(name) is not None]
        if not labelled:
            raise ExportError("none of the training videos has a label: align the store with labels that have them "
                              "(streamfeat align --video-labels), or give no --train-list")
        self.note_unlabelled(names, file)
        return labelled

    def note_unlabelled(self, names: Sequence[str], file: str) -> None:
        """Say which of ``names`` are missing from ``file`` for want of a label."""
        unlabelled = [name for name in names if self.label(name) is None]
        if unlabelled:
            self.notes.append(f"{file}: {counted(len(unlabelled), 'video')} without a label left out, "
                              f"{unlabelled[0]} first (streamfeat align --video-labels)")

    def anomalous_first(self, names: Sequence[str]) -> list[str]:
        """Anomalous videos, then the others: the loaders cut their list after a number of lines."""
        anomalous = [name for name in names if self.label(name) == 1]
        normal = [name for name in names if self.label(name) == 0]
        self.notes.append(f"train.list has {counted(len(anomalous), 'anomalous video')} first, then "
                          f"{counted(len(normal), 'normal one')}: the loaders cut it there by a number of lines in "
                          "their code (RTFM: 63 for ShanghaiTech, 810 for UCF-Crime; UR-DMU: 8100 for UCF-Crime, 9525 "
                          "for XD-Violence)")
        return anomalous + normal

    def clip_frame_labels(self, name: str) -> np.ndarray | None:
        """The labels of the frames of each exported clip, (clips, clip_frames), or None where they are unknown.

        A normal video needs none written down. Frames repeated to pad a clip have the label of the last one.
        """
        video, clips = self.store[name], self.clips(name)
        labels = frame_labels(video)
        if labels is None:
            return np.zeros((clips, self.recipe.clip_frames), np.uint8) if self.label(name) == 0 else None
        offsets = np.arange(self.recipe.clip_frames) * self.recipe.frame_step
        frames = video.start_frame[:clips, None] + offsets
        return labels[np.minimum(frames, min(len(labels), self.frames[name]) - 1)]

    def one_feature_a_clip(self, layout: str) -> None:
        """Raises ExportError where a clip has several statistics and none was chosen."""
        if self.selection.statistics > 1:
            raise ExportError(f"the layout {layout} has one feature a clip, and the store {self.selection.statistics} "
                              "statistics: choose with --stats mean, or join them with --flatten")

    def note_repeats(self) -> None:
        if self.recipe.clip_frames != REPEATS:
            self.notes.append(f"the detectors repeat each score {REPEATS} times, and clips here have "
                              f"{self.recipe.clip_frames} frames: change that number in their evaluation")

    def ground_truth(self, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Of each video, the labels of its clips' frames, (clips, clip_frames).

        Raises ExportError naming the videos whose frames have no labels: without them a detector cannot be
        evaluated, and on fewer videos than the list has, it would be on another test.
        """
        labels = {name: self.clip_frame_labels(name) for name in names}
        missing = [name for name, values in labels.items() if values is None]
        if missing:
            them = counted(len(missing), "of the test videos has", "of the test videos have")
            raise ExportError(f"{them} no frame labels, {missing[0]!r} first: align the store with labels that have "
                              "them, or leave them out of the test list")
        return labels

    def flat_ground_truth(self, names: Sequence[str]) -> np.ndarray:
        """Labels of all clips' frames, one video after the other, float64. Raises ExportError as ``ground_truth``."""
        labels = self.ground_truth(names)
        self.note_repeats()
        return np.concatenate([values.ravel() for values in labels.values()]).astype("<f8")

    def test_or_rest(self) -> list[str]:
        """The test list; without one, all videos with frame labels that are not for training."""
        if self.test is not None:
            return list(self.test)
        rest = self.rest()
        if rest:
            self.notes.append(f"no --test-list: test.list has the {counted(len(rest), 'video')} with frame labels "
                              f"{'that are not for training' if self.train else 'in the store'}")
        return rest

    def rest(self) -> list[str]:
        """The videos with frame labels that are not for training."""
        train = set(self.train or ())
        return [name for name in self.videos if name not in train and self.clip_frame_labels(name) is not None]


def npy(job: Job) -> None:
    job.destination.claim("**/*.npy")
    for name in job.videos:
        job.add_features(f"{name}.npy", name)


def fed_wsvad(job: Job) -> None:
    """``<dataset>/features_video/i3d/combine/<video>/feature.npy``, splits and ``GT`` beside them.

    The loader lists the feature folder, so that a video's name is its last part here.
    """
    names = _last_parts(job.videos)
    features, splits, truth = "features_video/i3d/combine", "{}_split.txt", "GT/{}_label.pickle"
    job.destination.claim(*(f"{glob.escape(job.dataset)}/{pattern}" for pattern in (
        f"{features}/*/feature.npy", *map(splits.format, ("train", "test")), *map(truth.format, ("frame", "video")))))
    for video in job.videos:
        job.add_features(f"{job.dataset}/{features}/{names[video]}/feature.npy", video)
    labels = {video: label for video in job.videos if (label := job.label(video)) is not None}
    if labels:
        job.destination.add(f"{job.dataset}/{truth.format('video')}", lambda: video_label_chunks(
            {names[video]: label for video, label in labels.items()}))
        frames = {names[video]: values for video in job.videos if (values := _evaluated(job, video)) is not None}
        job.destination.add(f"{job.dataset}/{truth.format('frame')}", lambda: frame_label_chunks(frames))
        job.note_repeats()
        if job.train is None and job.test is None:
            job.note_unlabelled(job.videos, truth.format("video"))
    else:
        job.notes.append("no labels of these videos: GT was not written; the detectors need it (streamfeat align)")
    if job.train is not None:
        job.destination.add_lines(f"{job.dataset}/{splits.format('train')}",
                                  [names[video] for video in job.trainable(job.train, splits.format("train"))])
    if job.test is not None:
        job.destination.add_lines(f"{job.dataset}/{splits.format('test')}",
                                  [names[video] for video in job.ground_truth(job.test)])


def rtfm(job: Job) -> None:
    """``features/<video>_i3d.npy``, ``train.list``, ``test.list`` and ``gt.npy``."""
    job.one_feature_a_clip("rtfm")
    if len(job.selection.row_shape) == 1:
        job.notes.append("one crop a clip, (T, C): RTFM's loader exchanges crops and time and needs (T, crops, C); "
                         "extract with --recipe wsvad-10crop, or give it a dimension of 1 there")
    _lists(job, lambda name: [f"features/{name}_i3d.npy"], [None])


def xd(job: Job) -> None:
    """``features/<video>__0.npy`` to ``__4.npy``, one a crop, ``train.list``, ``test.list`` and ``gt.npy``.

    XD-Violence has the centre in ``__0`` and the corners after it; the store has the centre last.
    """
    job.one_feature_a_clip("xd")
    crops = job.selection.crops
    order = [crops - 1, *range(crops - 1)] if crops == 5 else list(range(crops))
    if crops not in _EVALUATED_FILES:
        job.notes.append(f"{counted(crops, 'file')} a video: the detectors' evaluation takes 5 together for "
                         "XD-Violence, 10 for UCF-Crime: change that number there")
    unmarked = [name for name in (*(job.train or ()), *(job.test or ()))
                if job.label(name) == 0 and not _MARKED_NORMAL.search(name.rpartition("/")[2])]
    if unmarked:
        job.notes.append("the loaders know normal videos by _label_A (XD-Violence) or Normal (UCF-Crime) in the name: "
                         f"they would take {counted(len(unmarked), 'normal video')} here for anomalous, {unmarked[0]} "
                         "first")
    _lists(job, lambda name: [f"features/{name}__{number}.npy" for number in range(crops)], order)


def _lists(job: Job, files: Callable[[str], list[str]], crops: Sequence[int | None]) -> None:
    job.destination.claim("features/**/*.npy", "train.list", "test.list", "gt.npy")
    for name in job.videos:
        for file, crop in zip(files(name), crops, strict=True):
            job.add_features(file, name, crop)
    root = job.destination.root.resolve()
    if job.train is not None:
        train = job.anomalous_first(job.trainable(job.train, "train.list"))
        job.destination.add_lines("train.list", [str(root / file) for name in train for file in files(name)])
    test = job.test_or_rest()
    if not test:
        job.notes.append("no video with frame labels: test.list and gt.npy were not written (streamfeat align)")
        return
    truth = job.flat_ground_truth(test)
    job.destination.add_lines("test.list", [str(root / file) for name in test for file in files(name)])
    if any(re.search(r"\s", str(root / files(name)[0])) for name in (*(job.train or ()), *test)):
        job.notes.append("some paths in the lists have blanks, where UR-DMU's loader cuts its lines")
    job.destination.add_npy("gt.npy", truth.shape, "<f8", lambda: [truth])


def _evaluated(job: Job, video: str) -> np.ndarray | None:
    """The labels that the evaluation cuts to 16 a clip: as many as there are, and at least so many."""
    labels = frame_labels(job.store[video])
    by_clip = job.clip_frame_labels(video)
    if by_clip is None:
        return None
    recipe = job.recipe
    end_to_end = recipe.frame_step == 1 and recipe.clip_stride == recipe.clip_frames
    if labels is None or not end_to_end or min(len(labels), job.frames[video]) < by_clip.size:
        return by_clip.ravel()
    return labels


def _last_parts(videos: Sequence[str]) -> dict[str, str]:
    names: dict[str, str] = {}
    taken: dict[str, str] = {}
    for video in videos:
        last = video.rpartition("/")[2]
        if last in taken:
            raise ExportError(f"{taken[last]} and {video} would both be {last}: this layout has no folders between")
        taken[last] = video
        names[video] = last
    return names
