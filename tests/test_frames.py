"""Frames as JPEG files: the bytes that OpenCV writes, whole folders, and features as from the video."""

import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

import streamfeat
import streamfeat.pipeline
from streamfeat import frames
from streamfeat.cli import main
from streamfeat.frames import FED_WSVAD, FrameLayout, FramesError, dump_frames
from streamfeat.recipe import Recipe
from tests.media import break_packet, picture, read_index, write_video


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "videos"
    (folder / "scene").mkdir(parents=True)
    write_video(folder / "01_001.avi", 40, codec="mpeg4")
    write_video(folder / "scene" / "02_001.mp4", 25, size=(120, 90))
    return folder


def opencv_frames(path):
    capture = cv2.VideoCapture(str(path))
    while True:
        there, frame = capture.read()
        if not there:
            return
        yield frame


def test_every_frame_once_in_order(videos, tmp_path):
    told = []
    dumped = dump_frames([videos], tmp_path / "Rgb_Fig", on_video=lambda *video: told.append(video))
    assert dumped.frames == {"01_001": 40, "scene/02_001": 25} and sorted(told) == sorted(dumped.frames.items())
    for name, count in dumped.frames.items():
        folder = tmp_path / "Rgb_Fig" / name
        assert sorted(path.name for path in folder.iterdir()) == [f"img_{index:05d}.jpg" for index in range(count)]
        assert [read_index(cv2.imread(str(path))) for path in sorted(folder.iterdir())] == list(range(count))


def test_the_bytes_of_the_published_script(videos, tmp_path):
    """cvtColor to RGB, then imwrite, which takes it for BGR."""
    dump_frames([videos], tmp_path / "Rgb_Fig", layout=FED_WSVAD)
    for path in (videos / "01_001.avi", videos / "scene" / "02_001.mp4"):
        count = 0
        for count, frame in enumerate(opencv_frames(path), 1):
            published = tmp_path / "published.jpg"
            cv2.imwrite(str(published), cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
            assert (tmp_path / "Rgb_Fig" / path.stem / f"img_{count:05d}.jpg").read_bytes() == published.read_bytes()
        assert count == len(list((tmp_path / "Rgb_Fig" / path.stem).iterdir()))


def test_numbering_and_quality(videos, tmp_path):
    layout = FrameLayout(first_index=1, digits=6, quality=40)
    dump_frames([videos / "01_001.avi"], tmp_path / "small", layout=layout)
    dump_frames([videos / "01_001.avi"], tmp_path / "large", layout=dataclasses.replace(layout, quality=95))
    small, large = ((tmp_path / folder / "01_001" / "img_000001.jpg").stat().st_size for folder in ("small", "large"))
    assert small < 0.6 * large and not (tmp_path / "small" / "01_001" / "img_000000.jpg").exists()
    assert (tmp_path / "small" / "01_001" / "img_000040.jpg").exists()
    with pytest.raises(FramesError, match="from 0 or 1"):
        FrameLayout(first_index=2)


@pytest.mark.parametrize(("layout", "of_video", "of_folder"), [
    (FrameLayout(), "wsvad", "wsvad"),
    (FrameLayout(), "fed-wsvad", "fed-wsvad"),
    (FED_WSVAD, "fed-wsvad", "wsvad"),
    (FED_WSVAD, "wsvad", "fed-wsvad"),
], ids=["plain", "plain, channels exchanged by the recipe", "published", "published, exchanged back"])
def test_features_of_the_folder_are_those_of_the_video(videos, tmp_path, layout, of_video, of_folder):
    """A folder with red and blue exchanged needs the recipe that does not exchange them again."""
    path = videos / "scene" / "02_001.mp4"
    dump_frames([path], tmp_path / "Rgb_Fig", layout=layout)

    def extract(source, recipe):
        small = Recipe.named(recipe).replace(clip_frames=4, clip_stride=4, image_size=64, upscale_below=None)
        output = tmp_path / f"{Path(source).name}-{recipe}.h5"
        streamfeat.extract([source], output, recipe=small, model="vit_tiny", weights="random", device="cpu",
                           precision="fp32")
        with streamfeat.open(output) as store:
            return store["02_001"].features

    expected = extract(path, of_video)
    for recipe in ("wsvad", "fed-wsvad"):
        made = extract(tmp_path / "Rgb_Fig", recipe)
        cosine = (made * expected).sum(-1) / np.linalg.norm(made, axis=-1) / np.linalg.norm(expected, axis=-1)
        assert (cosine.min() >= 0.9999) == (recipe == of_folder), (recipe, cosine.min())


def test_the_same_call_goes_on(videos, tmp_path):
    dump_frames([videos / "01_001.avi"], tmp_path / "Rgb_Fig")
    kept = tmp_path / "Rgb_Fig" / "01_001" / "img_00000.jpg"
    kept.write_bytes(b"mine")
    stale = tmp_path / "Rgb_Fig" / "scene" / ".02_001.part"
    stale.mkdir(parents=True)
    (stale / "img_99999.jpg").write_bytes(b"left by a killed run")
    dumped = dump_frames([videos], tmp_path / "Rgb_Fig")
    assert dumped.kept == ["01_001"] and dumped.frames == {"scene/02_001": 25} and kept.read_bytes() == b"mine"
    assert len(list((tmp_path / "Rgb_Fig" / "scene" / "02_001").iterdir())) == 25 and not stale.exists()


def test_a_killed_dump_leaves_whole_folders(tmp_path):
    """Killed at random moments; what is there is complete, and the next run ends it."""
    source = tmp_path / "videos"
    source.mkdir()
    for number in range(6):
        write_video(source / f"v{number}.mp4", 60)
    command = [sys.executable, "-m", "streamfeat", "frames", str(source), str(tmp_path / "out")]
    for delay in (0.0, 0.1):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        for line in process.stderr:
            if line.startswith("v0"):
                break
        time.sleep(delay)
        process.kill()
        process.wait()
        process.stderr.close()
        for folder in (tmp_path / "out").glob("v*"):
            assert len(list(folder.iterdir())) == 60
    assert subprocess.run([*command, "--quiet"]).returncode == 0
    assert {folder.name: len(list(folder.iterdir())) for folder in (tmp_path / "out").glob("v*")} == {
        f"v{number}": 60 for number in range(6)}
    assert not list((tmp_path / "out").glob("*.part")) and not list((tmp_path / "out").glob(".v*"))


def test_an_interrupted_dump_says_how_to_go_on(tmp_path):
    video = write_video(tmp_path / "long.avi", itertools.repeat(picture(0, 320, 240), 3000), codec="mpeg4")
    command = [sys.executable, "-m", "streamfeat", "frames", str(video), str(tmp_path / "out")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not list((tmp_path / "out").glob(".long.part/*")):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130 and "goes on where this one ended" in said
    assert [path.name for path in (tmp_path / "out").iterdir() if path.is_dir()] == []


def test_a_disk_that_is_too_small(videos, tmp_path, monkeypatch):
    estimates = []
    dump_frames([videos], tmp_path / "out", on_estimate=estimates.append)
    written = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*.jpg"))
    assert estimates[0].frames == 65 and written <= estimates[0].bytes <= 2 * written
    monkeypatch.setattr(frames.shutil, "disk_usage", lambda path: SimpleNamespace(free=50_000))
    with pytest.raises(FramesError, match=r"cannot hold the frames: about 65 frames of 2 videos, .* GB are free"):
        dump_frames([videos], tmp_path / "full")
    assert not (tmp_path / "full").exists()


def test_a_full_disk_leaves_no_part(videos, tmp_path, monkeypatch):
    written = itertools.count()

    def write(path, picture, layout):
        if next(written) > 10:
            raise OSError(28, "No space left on device")
        path.write_bytes(b"x")

    monkeypatch.setattr(frames, "_write", write)
    result = CliRunner().invoke(main, ["frames", str(videos), str(tmp_path / "out")])
    assert result.exit_code == 1 and "No space left on device" in result.output
    assert not [path for path in (tmp_path / "out").rglob("*") if path.suffix in (".part", ".jpg")]


def test_damaged_and_broken_videos(tmp_path):
    source = tmp_path / "videos"
    source.mkdir()
    write_video(source / "fine.mp4", 10)
    break_packet(write_video(source / "damaged.avi", 20, codec="mpeg4"), 10)
    (source / "text.mp4").write_text("no video")
    result = CliRunner().invoke(main, ["frames", str(source), str(tmp_path / "out"), "--json", "--quiet"])
    assert result.exit_code == 1
    assert "failed: text: FFmpeg cannot read it" in result.stderr
    assert '"damaged": 1' in result.stdout and sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == [
        "damaged", "fine"]


def test_two_dumps_into_one_folder(videos, tmp_path):
    with frames._locked(tmp_path / "out"), pytest.raises(FramesError, match="another dump is writing"):
        dump_frames([videos], tmp_path / "out")


def test_extract_dumps_frames_too(videos, tmp_path):
    small = ["--model", "vit_tiny", "--weights", "random", "--clip-frames", "4", "--clip-stride", "4", "--image-size",
             "32", "--upscale-below", "none"]
    arguments = ["--dump-frames", str(tmp_path / "Rgb_Fig"), str(videos), str(tmp_path / "out.h5")]
    result = CliRunner().invoke(main, ["extract", *small, *arguments])
    assert result.exit_code == 0 and "about 65 frames of 2 videos" in result.stderr, result.stderr
    assert len(list((tmp_path / "Rgb_Fig").rglob("img_*.jpg"))) == 65
    with streamfeat.open(tmp_path / "out.h5") as store:
        assert store["01_001"].clips == 10 and len(store) == 2


def test_extract_refuses_a_disk_that_is_too_small(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(frames.shutil, "disk_usage", lambda path: SimpleNamespace(free=50_000))
    with pytest.raises(streamfeat.pipeline.ExtractError, match="cannot hold the frames"):
        streamfeat.extract([videos], tmp_path / "out.h5", model="vit_tiny", weights="random", device="cpu",
                           dump_frames=tmp_path / "Rgb_Fig")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("names", "layout", "said"), [
    (["a/x.mp4", "b/x.mp4"], FED_WSVAD, "a/x and b/x would both be x"),
    (["a.mp4", "a/x.mp4"], FrameLayout(), "the frames of a/x would lie among those of a"),
])
def test_folders_that_would_mix(tmp_path, names, layout, said):
    for name in names:
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(tmp_path / "videos" / name, 4)
    with pytest.raises(FramesError, match=said):
        dump_frames([tmp_path / "videos"], tmp_path / "out", layout=layout)
    assert not (tmp_path / "out").exists()


def test_memory_does_not_grow_with_the_video(videos, tmp_path, monkeypatch):
    """No more pictures are alive than wait for an encoder, however slow the disk is."""
    alive, most, lock = 0, 0, threading.Lock()
    write = frames._write

    def slow(path, picture, layout):
        time.sleep(0.002)
        write(path, picture, layout)
        nonlocal alive
        with lock:
            alive -= 1

    class Counting(frames._Source):
        def __iter__(self):
            nonlocal alive, most
            for decoded in super().__iter__():
                with lock:
                    alive += 1
                    most = max(most, alive)
                yield decoded

    dump_frames([videos / "01_001.avi"], tmp_path / "warm")
    monkeypatch.setattr(frames, "_write", slow)
    monkeypatch.setattr(frames, "_Source", Counting)
    monkeypatch.setattr(frames, "_sample", lambda video, layout: None)
    write_video(tmp_path / "long.mp4", 200)
    dump_frames([tmp_path / "long.mp4"], tmp_path / "out")
    assert 1 < most <= frames._AHEAD + 2 + (os.cpu_count() or 1)
