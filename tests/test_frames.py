"""Frames as JPEG files: the bytes that OpenCV writes, whole folders, and features as from the video."""

import dataclasses
import itertools
import os
import shutil
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
from tests.media import break_packet, opencv_frames, picture, read_index, write_video


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "videos"
    (folder / "scene").mkdir(parents=True)
    write_video(folder / "01_001.avi", 40, codec="mpeg4")
    write_video(folder / "scene" / "02_001.mp4", 25, size=(120, 90))
    return folder


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
    os.utime(kept, ns=(1, 1))
    stale = tmp_path / "Rgb_Fig" / "scene" / ".02_001.part"
    stale.mkdir(parents=True)
    (stale / "img_99999.jpg").write_bytes(b"left by a killed run")
    dumped = dump_frames([videos], tmp_path / "Rgb_Fig")
    assert dumped.kept == ["01_001"] and dumped.frames == {"scene/02_001": 25} and kept.stat().st_mtime_ns == 1
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


def test_the_estimate_looks_past_a_black_beginning(tmp_path):
    chance = np.random.default_rng(3)
    noise = (chance.integers(0, 255, (120, 160, 3)).astype(np.uint8) for _ in range(60))
    black = np.zeros((120, 160, 3), np.uint8)
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "v.avi", itertools.chain([black] * 10, noise), codec="mjpeg")
    estimates = []
    dump_frames([tmp_path / "videos"], tmp_path / "out", on_estimate=estimates.append)
    dump_frames([tmp_path / "out"], tmp_path / "again", on_estimate=estimates.append)
    written = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*.jpg"))
    for estimate in estimates:
        assert 0.6 * written <= estimate.bytes <= 2 * written


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
    monkeypatch.setattr(frames, "_sample", lambda video, layout, all_chroma: None)
    write_video(tmp_path / "long.mp4", 200)
    dump_frames([tmp_path / "long.mp4"], tmp_path / "out")
    assert 1 < most <= frames._AHEAD + 2 + (os.cpu_count() or 1)


def run(*arguments):
    return CliRunner().invoke(main, ["frames", *map(str, arguments)])


MADE_OTHERWISE = {
    "first index": (["--first-index", "1"], [], "its first frame is img_00001.jpg, not img_00000.jpg"),
    "digits": (["--digits", "6"], [], "its first frame is img_000000.jpg, not img_00000.jpg"),
    "quality": (["--quality", "40"], [], "its JPEG quality is 40, not 95"),
    "colours": (["--layout", "fed-wsvad"], ["--first-index", "1"], "red and blue are exchanged in its frames"),
    "colours the other way": (
        ["--first-index", "1"], ["--layout", "fed-wsvad"], "red and blue are not exchanged in its frames"),
}


@pytest.mark.parametrize(("before", "now", "said"), MADE_OTHERWISE.values(), ids=MADE_OTHERWISE)
def test_folders_made_with_other_options_are_refused(videos, tmp_path, before, now, said):
    one = videos / "01_001.avi"
    assert run(*before, one, tmp_path / "out").exit_code == 0
    assert run(*before, one, tmp_path / "out").exit_code == 0
    made = sorted((tmp_path / "out").rglob("*"))
    result = run(*now, videos, tmp_path / "out")
    assert result.exit_code == 2 and said in result.stderr and "give the options that it was made with" in result.stderr
    assert len(result.stderr.splitlines()) == 1 and sorted((tmp_path / "out").rglob("*")) == made


def test_what_is_in_the_place_of_a_folder_is_no_dump(videos, tmp_path):
    out = tmp_path / "out"
    for make, said in ((lambda path: path.write_text("mine"), "Not a directory"), (Path.mkdir, "it holds no frames"),
                       (lambda path: shutil.copytree(tmp_path / "other" / "02_001", path), "160 x 120|120 x 90"),
                       (lambda path: (path.mkdir(), (path / "img_00000.jpg").write_text("x")), "is no JPEG")):
        dump_frames([videos / "scene" / "02_001.mp4"], tmp_path / "other")
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        make(out / "01_001")
        with pytest.raises(FramesError, match=said):
            dump_frames([videos], out)
        assert [path.name for path in out.iterdir()] == ["01_001"]
    dump_frames([videos], tmp_path / "whole")
    (tmp_path / "whole" / "01_001" / "img_00007.jpg").unlink()
    with pytest.raises(FramesError, match=r"last frame is img_00039\.jpg, but with 39 frames it"):
        dump_frames([videos], tmp_path / "whole")


def test_a_finished_tree_holds_folders_of_frames_and_nothing_else(videos, tmp_path):
    dump_frames([videos], tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["01_001", "scene"]
    assert {path.suffix for path in (tmp_path / "out").rglob("*") if path.is_file()} == {".jpg"}


def test_the_destination_must_lie_outside_the_inputs(videos, tmp_path):
    source = tmp_path / "videos"
    shutil.copytree(videos, source)
    (tmp_path / "link").symlink_to(source / "scene", target_is_directory=True)
    (source / "away").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "bare.txt").write_text("02_001\n")
    (tmp_path / "paths.txt").write_text("videos/01_001.avi\n")
    before = sorted(source.rglob("*"))
    for arguments in ([source, source], [source, source / "frames"], [source, tmp_path / "link" / "frames"],
                      [source, tmp_path / "elsewhere" / "deep"], [source / "..", tmp_path / "out"],
                      [f"@{tmp_path / 'bare.txt'}", tmp_path / "out"],
                      ["--root", source, f"@{tmp_path / 'bare.txt'}", source / "out"]):
        result = run(*arguments)
        assert result.exit_code == 2 and "choose a folder outside" in result.stderr, arguments
        assert len(result.stderr.splitlines()) == 1
    result = run(source / "01_001.avi", source)
    assert result.exit_code == 2 and "would lie beside it under its own name" in result.stderr
    assert sorted(source.rglob("*")) == before and not (tmp_path / "out").exists()
    for times in range(2):
        result = run(f"@{tmp_path / 'paths.txt'}", tmp_path / "out")
        assert result.exit_code == 0 and f"{times} were there already" in result.stderr, result.stderr
    with pytest.raises(streamfeat.pipeline.ExtractError, match="choose a folder outside"):
        streamfeat.extract([source], tmp_path / "out.h5", model="vit_tiny", weights="random", device="cpu",
                           dump_frames=source / "frames")


def test_more_frames_than_the_digits_can_number(tmp_path, monkeypatch):
    video = write_video(tmp_path / "v.mp4", 12)
    result = run("--digits", "1", video, tmp_path / "out")
    assert result.exit_code == 2 and not (tmp_path / "out").exists()
    assert "v has about 12 frames, more than 1 digits can number: give --digits 2" in result.stderr
    assert run("--digits", "2", video, tmp_path / "out").exit_code == 0
    for first, most in ((0, 10), (1, 9)):
        layout = FrameLayout(first_index=first, digits=1)
        assert layout.most_frames == most and layout.digits_for(most) == 1 and layout.digits_for(most + 1) == 2
    monkeypatch.setattr(frames, "read_header", lambda path: (5, 160, 120))
    result = run("--digits", "1", video, tmp_path / "lies")
    assert result.exit_code == 1 and "more frames than 1 digits can number" in result.stderr
    assert os.listdir(tmp_path / "lies") == []


@pytest.mark.parametrize(("options", "said"), [
    (["--quality", "10"], "--layout fed-wsvad has --quality 95: leave out --quality 10"),
    (["--first-index", "0"], "--layout fed-wsvad has --first-index 1: leave out --first-index 0"),
])
def test_options_that_contradict_the_layout(videos, tmp_path, options, said):
    result = run("--layout", "fed-wsvad", *options, videos, tmp_path / "out")
    assert result.exit_code == 2 and said in result.stderr and not (tmp_path / "out").exists()
    result = run("--layout", "fed-wsvad", "--quality", "95", "--digits", "6", videos, tmp_path / "out")
    assert result.exit_code == 0 and (tmp_path / "out" / "01_001" / "img_000001.jpg").exists()


def test_a_destination_that_cannot_be_made(videos, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere" / "at" / "all")
    for destination in ("file", "file/below", "dangling/below"):
        result = run(videos, tmp_path / destination)
        assert result.exit_code == 2 and "choose another destination" in result.stderr, result.stderr
        assert len(result.stderr.splitlines()) == 1 and "Errno" not in result.stderr
    result = run(videos, "/proc/frames")
    assert result.exit_code == 2 and "/proc" in result.stderr and "Errno" not in result.stderr, result.stderr
    assert (tmp_path / "file").read_text() == "mine"


def test_names_of_any_length_and_script(videos, tmp_path):
    source = tmp_path / "videos"
    source.mkdir()
    names = ["видео 01", "動画-1", "é" * 125, "e\u0301"]
    for name in names:
        write_video(source / f"{name}.mp4", 3)
    assert run(source, tmp_path / "out").exit_code == 0
    assert sorted(os.listdir(tmp_path / "out")) == sorted(names)
    assert run(source, tmp_path / "out").exit_code == 0


def test_folders_that_are_not_complete_are_refused(videos, tmp_path):
    """As a copy that broke off and a machine that went down leave them."""
    one, folder = videos / "01_001.avi", tmp_path / "out" / "01_001"
    for spoil, said in ((lambda: [path.unlink() for path in sorted(folder.iterdir())[30:]],
                         "is not complete: it holds 30 frames, its video 40; delete it"),
                        (lambda: shutil.copy(folder / "img_00001.jpg", folder / "img_00040.jpg"),
                         "is not complete: it holds 41 frames, its video 40; delete it"),
                        (lambda: (folder / "img_00017.jpg").write_bytes(b""), "img_00017.jpg is empty; delete it")):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        dump_frames([one], tmp_path / "out")
        spoil()
        left = sorted(folder.iterdir())
        result = run(videos, tmp_path / "out")
        assert result.exit_code == 2 and said in result.stderr and len(result.stderr.splitlines()) == 1, result.stderr
        assert sorted(folder.iterdir()) == left and not (tmp_path / "out" / "scene").exists()
        with pytest.raises(streamfeat.pipeline.ExtractError, match="delete it"):
            streamfeat.extract([videos], tmp_path / "out.h5", model="vit_tiny", weights="random", device="cpu",
                               dump_frames=tmp_path / "out")
    shutil.rmtree(folder)
    assert run(videos, tmp_path / "out").exit_code == 0
    assert run(tmp_path / "out", tmp_path / "again").exit_code == 0
    (tmp_path / "again" / "01_001" / "img_00039.jpg").unlink()
    assert "it holds 39 frames, its video 40" in run(tmp_path / "out", tmp_path / "again").stderr


def test_a_complete_folder_is_told_without_decoding_its_video(videos, tmp_path, monkeypatch):
    dump_frames([videos], tmp_path / "out")
    monkeypatch.setattr(frames, "_has_frames", lambda video, number: pytest.fail("decoded"))
    assert len(dump_frames([videos], tmp_path / "out").kept) == 2
    monkeypatch.setattr(frames, "read_header", lambda path: (44, 96, 64))  # as the headers of some AVI lie
    assert len(dump_frames([videos], tmp_path / "out").kept) == 2


def test_the_folder_of_a_damaged_video_is_complete_with_the_frames_that_it_has(tmp_path):
    """Its header and its packets promise more."""
    video = break_packet(write_video(tmp_path / "v.mp4", 24, gop=1), 10)
    broken = dump_frames([video], tmp_path / "out")
    assert broken.damaged and broken.frames["v"] < 24
    assert dump_frames([video], tmp_path / "out").kept == ["v"]
    sorted((tmp_path / "out" / "v").iterdir())[-1].unlink()
    with pytest.raises(FramesError, match="is not complete"):
        dump_frames([video], tmp_path / "out")


@pytest.mark.parametrize("options", [[], ["--quality", "30"], ["--layout", "fed-wsvad"]])
def test_the_frames_of_a_video_that_was_replaced_are_not_kept(tmp_path, options):
    """By another of its size and length, filmed by the same camera."""
    street = np.random.default_rng(1).integers(0, 255, (12, 16, 3)).astype(np.uint8).repeat(8, 0).repeat(8, 1)
    passer = street.copy()
    passer[30:80, 40:75] = 255 - passer[30:80, 40:75]
    video = write_video(tmp_path / "v.mp4", [street] * 20)
    assert run(*options, video, tmp_path / "out").exit_code == 0
    assert run(*options, video, tmp_path / "out").exit_code == 0
    write_video(video, [passer] * 20)
    result = run(*options, video, tmp_path / "out")
    assert result.exit_code == 2 and "has the frames of another video: its first is another picture" in result.stderr
    assert "delete it" in result.stderr and len(result.stderr.splitlines()) == 1
