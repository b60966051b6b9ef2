"""Made videos: quiet to make, always the same, decodable in every codec, with labels that tell the truth."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

import streamfeat
from streamfeat.decode.pyav import Pictures
from streamfeat.synthetic import FPS, SCENES, Scene, make_videos, pictures
from streamfeat.videos import find_videos

from .media import write_video

SMALL = Scene("small", "mpeg4", ".avi", 64, 48, 30, 7, (10, 19))
IDS = [scene.name for scene in SCENES]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder that the command makes, and what it printed."""
    folder = tmp_path_factory.mktemp("made") / "new" / "videos"
    command = [sys.executable, "-m", "streamfeat.synthetic", str(folder)]
    return folder, subprocess.run(command, capture_output=True, text=True, check=True)


def test_the_command_prints_its_files_and_nothing_else(made):
    folder, ran = made
    assert ran.stdout.splitlines() == [str(folder / (scene.name + scene.extension)) for scene in SCENES]
    assert ran.stderr == ""


def test_the_command_wants_a_folder():
    ran = subprocess.run([sys.executable, "-m", "streamfeat.synthetic"], capture_output=True, text=True)
    assert ran.returncode == 2 and ran.stderr.startswith("usage: python -m streamfeat.synthetic [-h] FOLDER\n")


def test_an_option_is_no_folder(tmp_path):
    def run(argument):
        return subprocess.run([sys.executable, "-m", "streamfeat.synthetic", argument], capture_output=True, text=True,
                              cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(Path(streamfeat.__file__).parents[1])})

    for argument, code in (("--help", 0), ("-h", 0), ("--frames", 2)):
        ran = run(argument)
        assert ran.returncode == code and "usage: python -m streamfeat.synthetic [-h] FOLDER" in ran.stdout + ran.stderr
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").write_text("mine")
    ran = run("file")
    assert ran.returncode == 1 and ran.stderr == "python -m streamfeat.synthetic: file: File exists\n"


def test_the_videos_are_found_by_their_names(made):
    assert [video.name for video in find_videos([made[0]])] == IDS


@pytest.mark.parametrize("scene", SCENES, ids=IDS)
def test_every_codec_can_be_decoded(made, scene):
    video = Pictures(made[0] / (scene.name + scene.extension), threads=1)
    frames = list(video)
    assert len(frames) == scene.frames and video.damaged == 0 and video.fps == FPS
    assert video.codec in scene.encoder or video.codec == {"libx264": "h264", "libx265": "hevc"}[scene.encoder]
    for frame, original in zip(frames[::20], list(pictures(scene))[::20], strict=True):
        assert frame.shape == (scene.height, scene.width, 3)
        assert np.abs(frame[..., ::-1].astype(int) - original).mean() < 8
    blue, _, red = np.moveaxis(np.asarray(frames, np.int16), -1, 0)
    yellow = np.any(red - blue > 100, axis=(1, 2))
    labelled = scene.labels() == 1
    assert not yellow[~labelled].any() and np.all(yellow[labelled][len(yellow[labelled]) // 4 :])


def test_the_codecs_differ():
    assert len({scene.encoder for scene in SCENES}) == len(SCENES) == 6
    assert any(scene.event is None for scene in SCENES)


@pytest.mark.parametrize("scene", SCENES, ids=IDS)
def test_labels_are_beside_the_videos(made, scene):
    labels = pickle.loads((made[0] / "labels.pkl").read_bytes())
    assert list(labels) == IDS
    assert labels[scene.name].dtype == np.uint8 and labels[scene.name].shape == (scene.frames,)
    first, last = scene.event or (0, -1)
    assert np.flatnonzero(labels[scene.name]).tolist() == list(range(first, last + 1))


@pytest.mark.parametrize("scene", [SMALL, SCENES[3]], ids=["small", IDS[3]])
def test_labels_match_what_is_to_be_seen(scene):
    """The one figure in bright yellow is there in the frames that are labelled, and in no other."""
    yellow = [((frame[..., 0] > 220) & (frame[..., 1] > 180) & (frame[..., 2] < 90)).sum() for frame in pictures(scene)]
    labels = scene.labels()
    assert len(yellow) == len(labels)
    assert not np.any(np.asarray(yellow)[labels == 0])
    if scene.event is not None:
        # at first it has not come all the way into the picture
        assert np.mean(np.asarray(yellow)[labels == 1] > 0) > 0.85


def test_the_same_scene_gives_the_same_pictures():
    assert np.array_equal(list(pictures(SMALL)), list(pictures(SMALL)))


def test_the_same_scene_gives_the_same_file(tmp_path):
    (one,), (other,) = (make_videos(tmp_path / name, (SMALL,)) for name in ("one", "other"))
    assert one.read_bytes() == other.read_bytes()


def test_other_seeds_give_other_pictures():
    first, second = (next(pictures(Scene("x", "mpeg4", ".avi", 64, 48, 1, seed, None))) for seed in (1, 2))
    assert not np.array_equal(first, second)


def test_pictures_are_still_but_for_people_and_noise():
    one, _, other = (frame.astype(int) for _, frame in zip(range(3), pictures(SCENES[2]), strict=False))
    assert 0 < np.abs(one - other).mean() < 6


def test_what_this_ffmpeg_cannot_write_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(av, "codecs_available", {"mpeg4"})
    made = make_videos(tmp_path, (Scene("gone", "libx264", ".mp4", 64, 48, 5, 1, None), SMALL))
    assert made == [tmp_path / "small.avi"]
    assert list(pickle.loads((tmp_path / "labels.pkl").read_bytes())) == ["small"]


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="this system has no such thing")
def test_no_encoder_changes_the_priority_of_what_calls_it(tmp_path):
    """SVT-AV1 does, where it may."""
    before = os.sched_getscheduler(0), os.sched_getparam(0).sched_priority
    make_videos(tmp_path, tuple(scene for scene in SCENES if "av1" in scene.encoder))
    write_video(tmp_path / "a.mkv", 3, codec="av1")
    assert (os.sched_getscheduler(0), os.sched_getparam(0).sched_priority) == before
