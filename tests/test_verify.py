"""verify finds what is wrong with a store, and compares it with its videos."""

import json
import pickle
import re
import shutil
import threading

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

import streamfeat
from streamfeat.align import CLIP_LABELS, align
from streamfeat.cli import main
from streamfeat.frames import dump_frames
from streamfeat.recipe import Recipe
from streamfeat.store import StoreError, StoreWriter
from streamfeat.verify import VerifyError, verify
from tests.feature_stores import features_of, write_store
from tests.media import write_video

NAMES = ["a", "a/below", "deep/b", "short"]


@pytest.fixture
def store(tmp_path):
    store = write_store(tmp_path / "out.h5", dict(zip(NAMES, (100, 40, 64, 9), strict=True)))
    (tmp_path / "gt.pickle").write_bytes(pickle.dumps({"a": [0] * 90, "deep/b": [1] * 64}))
    align(store, tmp_path / "gt.pickle")
    return store


def test_nothing_wrong(store):
    found = verify(store)
    assert found.problems == () and (found.videos, found.clips) == (4, 6 + 2 + 4)


def set_attr(group, key, value):
    group.attrs[key] = value


def move(file, source, destination):
    file[destination] = file[source]
    del file[source]


def exchange(file, one, other):
    file.move(one, "kept")
    file.move(other, one)
    file.move("kept", other)


DAMAGE = {
    "a changed value": (lambda f: f["videos/a/features"].write_direct(np.ones((6, 3, 8), "f4")), "a", "checksum"),
    "a value that is not finite": (
        lambda f: f["videos/deep/b/features"].__setitem__((2, 1, 3), np.nan), "deep/b", "not all finite"),
    "a start frame": (lambda f: f["videos/a/start_frame"].__setitem__(3, 1), "a", "do not start every 16"),
    "the number of frames": (
        lambda f: set_attr(f["videos/a/below"], "frames", 300), "a/below", "its 300 frames give 18"),
    "no number of frames": (lambda f: f["videos/a/below"].attrs.__delitem__("frames"), "a/below", "is missing"),
    "clips of the labels": (lambda f: set_attr(f["videos/a"], "aligned_clips", 6), "a", "align it again"),
    "labels gone": (lambda f: f["videos/a"].__delitem__("labels"), "a", "there are no labels"),
    "another shape": (lambda f: (move(f, "videos/deep/b/features", "old"), f.__delitem__("old"),
                                 f.create_dataset("videos/deep/b/features", data=np.zeros((4, 3, 7), "f4"))),
                      "deep/b", r"not float32 \(clips, \(3, 8\)\)"),
    "no start frames": (lambda f: f["videos/a"].__delitem__("start_frame"), "a", "start_frame.*extract it again"),
    "an attribute of a video": (lambda f: set_attr(f["videos/a"], "fps", 24.0), "a", "attributes .*checksum"),
    "an attribute that is gone": (lambda f: f["videos/a"].attrs.__delitem__("source"), "a", "attributes .*checksum"),
    "an attribute of another type": (lambda f: set_attr(f["videos/a"], "frames", "many"), "a", "cannot be read"),
    "the model": (lambda f: set_attr(f, "model", f.attrs["model"].replace("vit_tiny", "vit_b")), "/", "recipe, model"),
    "a failure that is a link": (lambda f: f["failures"].__setitem__("b", h5py.SoftLink("/videos")), "b", "is a link"),
    "an empty failure": (lambda f: f.create_group("failures/b"), "b", "is an empty group"),
    "no failures": (lambda f: f.__delitem__("failures"), "failures", "is missing"),
    "a frame label": (lambda f: f["videos/deep/b/labels/frame"].__setitem__(5, 0), "deep/b", "labels are not what was"),
    "a frame label that is no label": (
        lambda f: f["videos/a/labels/frame"].__setitem__(5, 7), "a", "1 of its frame labels are neither 0 nor 1"),
    "a clip label": (lambda f: f["videos/a/labels/clip"].__setitem__(2, 1), "a", "labels are not what was written"),
    "no clip labels": (lambda f: f["videos/a/labels"].__delitem__("clip"), "a", "cannot be read"),
    "the video's label": (lambda f: set_attr(f["videos/deep/b/labels"], "video", 0), "deep/b", "labelled normal as a"),
    "no label of the video": (lambda f: f["videos/a/labels"].attrs.__delitem__("video"), "a", "video label is None"),
    "the rule of the clip labels": (
        lambda f: set_attr(f["videos/a/labels"], "clip_label", "most"), "a", "'most', which is no rule"),
    "no number of aligned clips": (
        lambda f: f["videos/a"].attrs.__delitem__("aligned_clips"), "a", "no number of aligned clips"),
    "a video renamed": (lambda f: f.move("videos/deep/b", "videos/deep/c"), "deep/c", "name or attributes .*checksum"),
    "two videos exchanged": (lambda f: exchange(f, "videos/a/below", "videos/short"), "short", "name or attributes"),
    "a video under a second name": (
        lambda f: f["videos/deep"].__setitem__("again", f["videos/a"]), "deep/again", "name or attributes|is a link"),
    "a video without the checksum of its attributes": (
        lambda f: f["videos/short"].attrs.__delitem__("attrs_checksum"), "short", "attributes have no checksum"),
    "labels without their checksum": (
        lambda f: f["videos/a/labels"].attrs.__delitem__("checksum"), "a", "labels have no checksum"),
    "an object beside the videos": (lambda f: f.create_group("mine"), "mine", "belongs to no store"),
    "data in a video": (lambda f: f.create_dataset("videos/a/extra", data=[1]), "a/extra", "belongs to no video"),
    "data in a folder": (lambda f: f.create_dataset("videos/deep/x", data=[1]), "deep/x", "belongs to no video"),
    "a video without features": (lambda f: f["videos/short"].__delitem__("features"), "short/start_frame",
                                 "data that belongs to no video"),
    "an empty group": (lambda f: f.create_group("videos/deep/empty"), "deep/empty", "is an empty group"),
    "a link": (lambda f: f["videos"].__setitem__("link", h5py.SoftLink("/nowhere")), "link", "is a link"),
    "a link to another file": (
        lambda f: f["videos"].__setitem__("away", h5py.ExternalLink("/etc/passwd", "/")), "away", "is a link"),
}


@pytest.mark.parametrize(("damage", "name", "said"), DAMAGE.values(), ids=DAMAGE)
def test_every_damage_is_found(store, damage, name, said):
    with h5py.File(store, "r+") as file:
        damage(file)
    problems = verify(store).problems
    assert any(found == name and re.search(said, text) for found, text in problems), problems


def test_labels_exchanged_by_videos_of_one_length_are_found(tmp_path):
    store = write_store(tmp_path / "out.h5", {"a": 40, "b": 40})
    (tmp_path / "gt.pickle").write_bytes(pickle.dumps({"a": [0] * 40, "b": [1] * 40}))
    align(store, tmp_path / "gt.pickle")
    assert verify(store).problems == ()
    with h5py.File(store, "r+") as file:
        exchange(file, "videos/a/labels", "videos/b/labels")
    said = "its labels are not what was written (checksum): align it again"
    assert verify(store).problems == (("a", said), ("b", said))


@pytest.mark.parametrize("rule", CLIP_LABELS)
def test_clip_labels_follow_from_frame_labels(store, tmp_path, rule):
    """Also where no checksum tells; by the rule that they were made with."""
    (tmp_path / "gt.pickle").write_bytes(pickle.dumps({"a": [0] * 20 + [1] * 4 + [0] * 20 + [1] * 40}))
    align(store, tmp_path / "gt.pickle", clip_label=rule)
    forget_checksums(store)
    assert verify(store).problems == ()
    with h5py.File(store, "r+") as file:
        file["videos/a/labels/clip"][1] = {"any": 0, "majority": 1, "fraction": 0.5}[rule]
    assert verify(store).problems == ((
        "a", f"the labels of 1 of its clips, that at frame 16 first, do not follow from its frame labels by the rule "
             f"{rule!r}: align it again"),)


def forget_checksums(store):
    """Make it a store of a version that had a checksum of the features alone."""
    def forget(name, group):
        group.attrs.pop("attrs_checksum", None)
        if name.endswith("labels"):
            group.attrs.pop("checksum", None)

    with h5py.File(store, "r+") as file:
        forget("", file)
        file.visititems(forget)


def test_stores_of_older_versions_are_checked_in_the_rest(store):
    forget_checksums(store)
    found = verify(store)
    assert found.problems == () and found.unchecked == (
        "the store: its recipe and model have no checksum",
        "4 videos: their attributes (source, fps, ...) have no checksum",
        "2 videos: their labels have no checksum: align them again to have one",
    )
    result = CliRunner().invoke(main, ["verify", str(store)])
    assert result.exit_code == 0 and "not checked: 2 videos: their labels have no checksum" in result.output
    with h5py.File(store, "r+") as file:
        del file["videos/a/labels"].attrs["clip_label"]
    assert "1 video: their clip labels do not say by which rule they were made" in verify(store).unchecked


def test_labels_of_videos_alone(store, tmp_path):
    """A video may be known as anomalous without saying where, and then all of its frame labels may be 0."""
    (tmp_path / "gt.pickle").write_bytes(pickle.dumps({"a": [0] * 100}))
    (tmp_path / "video.pickle").write_bytes(pickle.dumps({"a": [1.0], "a/below": [1.0], "deep/b": [0.0]}))
    align(store, tmp_path / "gt.pickle", video_labels=tmp_path / "video.pickle")
    assert verify(store).problems == ()


def test_flipped_bits_are_found_or_harmless(tmp_path):
    """Whatever byte of the file changes: one line, and never "nothing wrong" about other numbers."""
    chance = np.random.default_rng(5)
    store = write_store(tmp_path / "out.h5", {"a": 64, "deep/b": 40})
    (tmp_path / "gt.pickle").write_bytes(pickle.dumps({"a": [0] * 40 + [1] * 24, "deep/b": [0] * 40}))
    align(store, tmp_path / "gt.pickle")
    whole, before = store.read_bytes(), contents(store)
    damaged = tmp_path / "damaged.h5"
    found = 0
    for place in chance.choice(len(whole), 100, replace=False):
        changed = bytearray(whole)
        changed[place] ^= 1 << chance.integers(8)
        damaged.write_bytes(changed)
        try:
            problems = verify(damaged).problems
        except (StoreError, VerifyError) as error:
            problems = [str(error)]
        assert problems or contents(damaged) == before, f"byte {place}"
        found += bool(problems)
    assert found > 30


def test_a_store_that_is_being_written_is_whole(tmp_path):
    """What is looked at while commits fall into it is no damage."""
    path = write_store(tmp_path / "out.h5", {"first": 64})

    def write():
        with StoreWriter.open_existing(path) as writer:
            for number in range(60):
                video = writer.begin(f"folder{number % 3}/v{number}")
                video.append(features_of(number, 4, writer.header.row_shape), np.arange(4) * 16)
                video.finish({"frames": 64, "fps": 25.0, "source": "x"})
                writer.commit()

    thread = threading.Thread(target=write)
    thread.start()
    seen = []
    while thread.is_alive():
        found = verify(path)
        assert found.problems == ()
        seen.append(found.videos)
    thread.join()
    assert verify(path).videos == 61 and len(set(seen)) > 1, seen


def contents(store):
    with streamfeat.open(store) as opened:
        return opened.header, {
            name: (video.features.tobytes(), video.start_frame.tolist(), video.attrs, video.labels.frame.tolist(),
                   video.labels.clip.tolist(), video.labels.attrs)
            for name, video in opened.items()
        }


def test_the_command_exits_with_1(store):
    result = CliRunner().invoke(main, ["verify", str(store)])
    assert result.exit_code == 0 and result.output.endswith("4 videos, 12 clips: nothing wrong\n")
    with h5py.File(store, "r+") as file:
        file["videos/a/features"][0] = 0
    result = CliRunner().invoke(main, ["verify", str(store)])
    assert result.exit_code == 1 and "a: its features or start frames are not what was written" in result.output
    result = CliRunner().invoke(main, ["verify", str(store), "--json"])
    assert [name for name, _ in json.loads(result.output)["problems"]] == ["a"]
    result = CliRunner().invoke(main, ["verify", str(store.with_name("gone.h5"))])
    assert result.exit_code == 2 and "no such file" in result.output


@pytest.fixture(scope="module")
def extracted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("extracted")
    videos = folder / "videos"
    (videos / "deep").mkdir(parents=True)
    write_video(videos / "a.mp4", 18)
    write_video(videos / "deep" / "a.avi", 9, codec="mpeg4")
    recipe = Recipe(clip_frames=4, clip_stride=4, image_size=32, upscale_below=None)
    streamfeat.extract([videos], folder / "out.h5", recipe=recipe, model="vit_tiny", weights="random", device="cpu")
    return folder


def test_against_the_videos(extracted):
    found = verify(extracted / "out.h5", [extracted / "videos"], device="cpu")
    assert found.problems == () and sorted(video.video for video in found.compared) == ["a", "deep/a"]
    assert all(video.smallest_cosine > 0.99999 for video in found.compared)


def test_against_other_videos(extracted, tmp_path):
    shutil.copy(extracted / "out.h5", tmp_path / "out.h5")
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "a.mp4", 40)
    found = verify(tmp_path / "out.h5", [tmp_path / "videos"], device="cpu")
    assert found.problems == (("a", "extracted anew it has 10 clips, not 4: has the video changed?"),)
    with h5py.File(tmp_path / "out.h5", "r+") as file:
        file["videos/deep/a/features"][1, 0] = -file["videos/deep/a/features"][1, 0]
    found = verify(tmp_path / "out.h5", [extracted / "videos"], device="cpu")
    said = dict(found.problems)
    assert set(said) == {"deep/a"} and said["deep/a"].startswith("extracted anew its features differ: cosine -")


def test_the_command_says_what_it_compared_and_what_counts_as_equal(extracted):
    result = CliRunner().invoke(main, ["verify", str(extracted / "out.h5"), "--against", str(extracted / "videos"),
                                       "--device", "cpu"])
    assert result.exit_code == 0 and re.search(
        r"\nextracted anew: 6 clips of 2 videos, cosine at least 1\.0+ \(equal from 0\.999 on\), greatest difference "
        r"\S+\n.*: 2 videos, 6 clips: nothing wrong\n$", result.output), result.output


def test_videos_that_are_left_out_are_named(extracted, tmp_path):
    """As when some videos are elsewhere now, or another folder is given, in which names are others."""
    found = verify(extracted / "out.h5", [extracted / "videos" / "a.mp4"], device="cpu")
    assert found.left_out == (("deep/a", None),) and [video.video for video in found.compared] == ["a"]
    (tmp_path / "videos" / "b").mkdir(parents=True)
    for path in ("a.mp4", "b/a.avi"):
        shutil.copy(extracted / "videos" / ("a.mp4" if path == "a.mp4" else "deep/a.avi"), tmp_path / "videos" / path)
    result = CliRunner().invoke(main, ["verify", str(extracted / "out.h5"), "--against", str(tmp_path / "videos"),
                                       "--device", "cpu"])
    assert result.exit_code == 0 and ("not compared: 1 video that may be among the inputs by another name, give the "
                                      "folder that was given to extract: deep/a (there: b/a)\n") in result.output
    (tmp_path / "videos" / "b" / "a.avi").unlink()
    arguments = ["verify", str(extracted / "out.h5"), "--against", str(tmp_path / "videos"), "--device", "cpu"]
    assert "not compared: 1 video not among the inputs: deep/a\n" in CliRunner().invoke(main, arguments).output
    found = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).output)
    assert found["left_out"] == {"deep/a": None}
    with pytest.raises(VerifyError, match=r"\(b/a may be (deep/)?a there: give the folder that was given to extract"):
        shutil.move(tmp_path / "videos" / "a.mp4", tmp_path / "videos" / "b" / "a.mp4")
        verify(extracted / "out.h5", [tmp_path / "videos"], device="cpu")


def test_a_video_without_clips_has_nothing_to_compare(tmp_path):
    write_video(tmp_path / "a.mp4", 3)
    recipe = Recipe(clip_frames=4, clip_stride=4, image_size=32, upscale_below=None)
    streamfeat.extract([tmp_path / "a.mp4"], tmp_path / "out.h5", recipe=recipe, model="vit_tiny", weights="random",
                       device="cpu")
    result = CliRunner().invoke(main, ["verify", str(tmp_path / "out.h5"), "--against", str(tmp_path / "a.mp4"),
                                       "--device", "cpu"])
    assert result.exit_code == 0 and "cosine" not in result.output, result.output
    assert "a: extracted anew, no clips to compare\n" in result.output
    assert "extracted anew: no clips, so no feature was compared\n" in result.output
    assert verify(tmp_path / "out.h5", [tmp_path / "a.mp4"], device="cpu").compared[0].smallest_cosine is None


def test_folders_of_frames_inside_each_other(extracted, tmp_path):
    """Nothing is written into them."""
    folder = tmp_path / "frames"
    for name in ("a", "a/b"):
        dump_frames([extracted / "videos" / "a.mp4"], tmp_path / "dump")
        shutil.copytree(tmp_path / "dump" / "a", folder / name)
    recipe = Recipe(clip_frames=4, clip_stride=4, image_size=32, upscale_below=None)
    streamfeat.extract([folder], tmp_path / "out.h5", recipe=recipe, model="vit_tiny", weights="random", device="cpu")
    before = sorted(folder.rglob("*"))
    found = verify(tmp_path / "out.h5", [folder], device="cpu")
    assert found.problems == () and sorted(video.video for video in found.compared) == ["a", "a/b"]
    assert sorted(folder.rglob("*")) == before


def test_against_nothing(extracted, tmp_path):
    write_video(tmp_path / "stranger.mp4", 4)
    with pytest.raises(VerifyError, match="none of the videos in"):
        verify(extracted / "out.h5", [tmp_path], device="cpu")
    with pytest.raises(VerifyError, match="no such file"):
        verify(extracted / "out.h5", [tmp_path / "gone"], device="cpu")


def test_against_with_other_weights(tmp_path):
    """A store that says it was made with weights that are not the ones there are now."""
    store = write_store(tmp_path / "out.h5", {"a": 20}, Recipe(image_size=32, upscale_below=None), channels=192)
    write_video(tmp_path / "a.mp4", 20)
    with pytest.raises(VerifyError, match=r"not those that the store was made with .*--weights"):
        verify(store, [tmp_path / "a.mp4"], device="cpu")
