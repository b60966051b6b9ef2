"""Which clips have labels, against the published rule; and labels in a store, all of them or none."""

import hashlib
import json
import os
import pickle
import random
import subprocess
import sys

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from streamfeat.align import align, count_aligned_clips, label_clips, table
from streamfeat.cli import main
from streamfeat.info import info
from streamfeat.labels import LabelError
from streamfeat.recipe import Recipe
from streamfeat.store import FeatureStore, StoreError
from tests.feature_stores import write_store


def published_clips(clips, labels):
    """Fed_WSVAD's rule, as its paper's code states it: features are cut unless the labels go beyond them."""
    if clips * 16 < labels:
        return clips
    return labels // 16


def test_the_published_rule_on_thousands_of_lengths():
    numbers = random.Random(0)
    recipe = Recipe()
    for _ in range(5000):
        clips = numbers.randrange(0, 600)
        labels = numbers.choice([numbers.randrange(0, 10_000), max(0, 16 * clips + numbers.randrange(-40, 40))])
        frames = 16 * clips + numbers.randrange(0, 16)
        kept = count_aligned_clips(np.arange(clips) * 16, frames, labels, recipe)
        assert kept == published_clips(clips, labels), (clips, labels)


RECIPES = {
    "published": Recipe(),
    "overlapping": Recipe.named("thumos14"),
    "apart": Recipe(clip_stride=40),
    "dilated": Recipe(frame_step=2),
    "dilated and overlapping": Recipe(frame_step=3, clip_stride=5),
    "padded": Recipe(tail="pad"),
    "padded and overlapping": Recipe(tail="pad", clip_stride=4, frame_step=2),
    "short": Recipe(clip_frames=2, clip_stride=1),
}


def frames_seen(clip, frames, recipe):
    """The frames of a clip, from the recipe's own words: a padded clip repeats the last frame there is."""
    return {min(clip * recipe.clip_stride + k * recipe.frame_step, frames - 1) for k in range(recipe.clip_frames)}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_clips_and_their_labels_frame_by_frame(recipe):
    numbers = np.random.default_rng(1)
    for _ in range(300):
        frames = int(numbers.integers(1, 150))
        labels = (numbers.random(max(0, frames + int(numbers.integers(-40, 40)))) < 0.3).astype(np.uint8)
        clips = recipe.count_clips(frames)
        starts = np.arange(clips) * recipe.clip_stride
        seen = [frames_seen(clip, frames, recipe) for clip in range(clips)]
        # the frames that a dilated clip steps over belong to it: its labels must be there too
        ends = [min(clip * recipe.clip_stride + recipe.clip_span, frames) for clip in range(clips)]
        expected = sum(end <= len(labels) for end in ends)
        kept = count_aligned_clips(starts, frames, len(labels), recipe)
        assert kept == expected
        shares = [np.mean([labels[frame] for frame in seen[clip]]) for clip in range(kept)]
        for how, label in (("any", lambda share: share > 0), ("majority", lambda share: share >= 0.5),
                           ("fraction", lambda share: np.float32(share))):
            made = label_clips(labels, starts[:kept], frames, recipe, how)
            assert made.tolist() == [label(share) for share in shares], how
            assert made.dtype == (np.float32 if how == "fraction" else np.uint8)


def write_pickle(path, labels):
    path.write_bytes(pickle.dumps(labels))
    return path


def digest(store):
    return {name: hashlib.sha256(store[name].features.tobytes()).hexdigest() for name in store}


@pytest.fixture
def store(tmp_path):
    return write_store(tmp_path / "out.h5", {"01_0014": 100, "01_001": 170, "Abuse/Abuse001_x264": 64, "short": 10})


def test_labels_go_into_the_store_and_features_stay(store, tmp_path):
    with FeatureStore(store) as before:
        digests = digest(before)
    labels = np.zeros(90, np.int64)
    labels[20:40] = 1
    source = write_pickle(tmp_path / "gt.pickle", {"01_0014": labels[None], "01_001": np.zeros((160, 1))})
    alignment = align(store, source)
    assert alignment.written and not alignment.without_video
    with FeatureStore(store) as after:
        assert digest(after) == digests and all(after[name].is_intact() for name in after)
        video = after["01_0014"]
        assert (video.clips, video.aligned_clips) == (6, 5)
        assert video.labels.frame.tolist() == labels.tolist() and video.labels.frame.dtype == np.uint8
        assert video.labels.clip.tolist() == [0, 1, 1, 0, 0]
        assert video.labels.attrs["video"] == 1 and video.labels.attrs["clip_label"] == "any"
        assert after["01_001"].aligned_clips == 10
        assert after["short"].labels is None and after["short"].aligned_clips is None
    with h5py.File(store) as plain:
        assert plain["videos/01_0014/labels/clip"][:].tolist() == [0, 1, 1, 0, 0]


def test_again_with_other_labels_replaces_all_of_the_first(store, tmp_path):
    align(store, write_pickle(tmp_path / "a.pickle", {"01_0014": [1] * 100, "01_001": [1] * 170}))
    align(store, write_pickle(tmp_path / "b.pickle", {"01_0014": [0] * 50}), clip_label="majority")
    with FeatureStore(store) as after:
        assert after["01_0014"].aligned_clips == 3 and after["01_0014"].labels.clip.tolist() == [0, 0, 0]
        assert after["01_001"].labels is None and after["01_001"].aligned_clips is None


def test_videos_known_only_as_a_whole(store, tmp_path):
    videos = write_pickle(tmp_path / "video_label.pickle", {"Abuse001_x264.mp4": [1.0], "01_001": [0.0]})
    alignment = align(store, write_pickle(tmp_path / "gt.pickle", {"01_001": [0] * 170}), video_labels=videos)
    with FeatureStore(store) as after:
        known = after["Abuse/Abuse001_x264"]
        assert known.labels.attrs["video"] == 1 and known.aligned_clips is None and len(known.labels.frame) == 0
        assert after["01_001"].labels.attrs["video"] == 0
    assert {video.video: video.label for video in alignment.videos}["Abuse/Abuse001_x264"] == 1


def test_info_tells_labels_of_frames_from_labels_of_whole_videos(store, tmp_path):
    def said():
        return [line for line in str(info(store)).splitlines() if line.startswith("  labels")]

    assert said() == []
    videos = write_pickle(tmp_path / "video_label.pickle", {"Abuse001_x264.mp4": [1.0]})
    align(store, write_pickle(tmp_path / "gt.pickle", {"01_001": [0] * 150}), video_labels=videos)
    assert said() == ["  labels    of the frames of 1 video, 9 of its 10 clips aligned; of 1 video as a whole only; "
                      "1 anomalous, 1 normal"]
    found = info(store).to_dict()["videos"]
    assert [found["01_001"][key] for key in ("labels", "aligned_clips", "video_label")] == [150, 9, 0]
    assert [found["Abuse/Abuse001_x264"][key] for key in ("labels", "aligned_clips", "video_label")] == [None, None, 1]
    align(store, write_pickle(tmp_path / "none.pickle", {}), video_labels=videos)
    assert said() == ["  labels    of 1 video as a whole only; 1 anomalous, 0 normal"]


def test_every_oddity_is_said(tmp_path):
    store = write_store(tmp_path / "out.h5", {"none": 64, "longer": 64, "shorter": 200, "clips": 70, "empty": 30,
                                              "soft": 64, "short": 5, "normal": 64})
    source = write_pickle(tmp_path / "gt.pickle", {
        "longer": [0] * 100, "shorter": [0] * 100, "clips": [0] * 64, "empty": [0] * 15, "soft": [0, 0.5, 2] + [0] * 61,
        "short": [0] * 5, "normal": [0, 1] * 32, "stranger": [0] * 10,
    })
    told = write_pickle(tmp_path / "v.pickle", {"normal": [0.0]})
    alignment = align(store, source, video_labels=told)
    said = {video.video: ([odd.text for odd in video.oddities], any(odd.loses_data for odd in video.oddities))
            for video in alignment.videos}
    assert said["none"] == (["no labels"], False)
    assert said["longer"] == (["36 more labels than frames"], True)
    assert said["shorter"] == (["100 fewer labels than frames", "6 of its clips have no labels"], True)
    assert said["clips"] == (["as many labels as 16 x clips, not as frames: usual for normal training videos"], False)
    assert said["empty"] == (["15 fewer labels than frames", "empty after alignment"], True)
    assert said["soft"] == (["labels other than 0 and 1 (0.5, 2): above 0 counts as 1"], True)
    assert said["short"] == (["no clips: the video is shorter than one"], True)
    assert said["normal"] == (["labelled normal as a video, but not in every frame"], False)
    assert alignment.without_video == ("stranger",) and alignment.loses_data
    lines = table(alignment)
    assert lines[0].split() == ["video", "clips", "frames", "labels", "kept"]
    assert "labels without a video: stranger" in lines
    with FeatureStore(store) as after:
        assert after["soft"].labels.frame[:4].tolist() == [0, 1, 1, 0]


def test_strict_writes_nothing_when_data_would_be_lost(store, tmp_path):
    before = store.read_bytes()
    lossy = write_pickle(tmp_path / "gt.pickle", {"01_0014": [0] * 100, "stranger": [1] * 4})
    alignment = align(store, lossy, strict=True)
    assert alignment.loses_data and not alignment.written and store.read_bytes() == before
    assert align(store, write_pickle(tmp_path / "ok.pickle", {"01_0014": [0] * 100}), strict=True).written


def remarks(alignment, video):
    found = next(found for found in alignment.videos if found.video == video)
    return [oddity.text for oddity in found.oddities]


@pytest.mark.parametrize(("labels", "said", "loses"), [
    ([0] * 100, [], False),
    ([0] * 99, ["1 fewer label than frames"], False),
    ([0] * 97, ["3 fewer labels than frames"], False),
    ([0] * 96, ["as many labels as 16 x clips, not as frames: usual for normal training videos"], False),
    ([0] * 95, ["5 fewer labels than frames", "1 of its clips has no labels"], True),
    ([0] * 101, ["1 more label than frames"], False),
    ([0] * 50 + [1] * 54, ["4 more labels than frames, 4 of them anomalous"], False),
    ([0] * 116 + [1], ["17 more labels than frames, 1 of them anomalous", "anomalous in none of its clips"], True),
    ([0] * 98 + [1] * 2, ["anomalous in none of its clips"], False),
])
def test_lengths_that_differ_are_said_and_strict_where_clips_are_lost(store, tmp_path, labels, said, loses):
    """Of a video of 100 frames and 6 clips, one of which ends at frame 96."""
    before = store.read_bytes()
    alignment = align(store, write_pickle(tmp_path / "gt.pickle", {"01_0014": labels}), strict=True)
    assert remarks(alignment, "01_0014") == said
    assert alignment.loses_data == loses and alignment.written != loses and (store.read_bytes() == before) == loses


def test_as_many_labels_as_published_clips_have_frames_is_usual_for_every_recipe(tmp_path):
    """Clips overlap here: the last of them has no labels, which is lost."""
    store = write_store(tmp_path / "out.h5", {"a": 100}, Recipe(clip_stride=4))
    alignment = align(store, write_pickle(tmp_path / "gt.pickle", {"a": [0] * 96}))
    assert remarks(alignment, "a") == [
        "as many labels as 16 x clips, not as frames: usual for normal training videos", "1 of its clips has no labels"]
    assert alignment.loses_data


def test_labels_that_were_there_and_would_be_gone_are_lost(store, tmp_path):
    first = write_pickle(tmp_path / "first.pickle", {"01_0014": [1] * 100, "01_001": [0] * 170, "short": [0] * 10})
    whole = write_pickle(tmp_path / "whole.pickle", {"Abuse001_x264": [1.0]})
    align(store, first, video_labels=whole)
    before = store.read_bytes()
    second = write_pickle(tmp_path / "second.pickle", {"01_0014": [1] * 60})
    refused = align(store, second, strict=True)
    assert refused.loses_data and not refused.written and store.read_bytes() == before
    assert remarks(refused, "01_001") == ["no labels", "loses the labels that it had"]
    assert remarks(refused, "Abuse/Abuse001_x264") == ["no labels", "loses the labels that it had"]
    assert remarks(refused, "01_0014")[-1] == "fewer clips with labels than the 6 before"
    assert table(refused)[-1] == "labels lost that were there: 4 videos"
    result = invoke(store, second, "--strict")
    assert result.exit_code == 1 and "nothing was written" in result.output and store.read_bytes() == before
    align(store, second, video_labels=write_pickle(tmp_path / "w.pickle", {"01_001": 0}))
    again = align(store, second, strict=True)
    assert remarks(again, "01_001") == ["no labels", "loses the labels that it had"], "also those of a whole video"
    third = write_pickle(tmp_path / "third.pickle", {"01_0014": [1] * 100, "01_001": [0] * 170})
    assert not align(store, third, strict=True, video_labels=whole).loses_data


@pytest.mark.parametrize(("labels", "videos"), [({"short": [0] * 10}, {}), ({"01_0014": [0] * 100}, {"short": [1.0]})])
def test_labels_of_a_video_without_a_clip_are_lost(store, tmp_path, labels, videos):
    before = store.read_bytes()
    source, told = write_pickle(tmp_path / "gt.pickle", labels), write_pickle(tmp_path / "v.pickle", videos)
    assert "no clips: the video is shorter than one" in remarks(align(store, source, video_labels=told, strict=True),
                                                                "short")
    assert store.read_bytes() == before
    result = invoke(store, source, "--video-labels", told, "--strict")
    assert result.exit_code == 1 and "nothing was written" in result.output


def test_frame_labels_that_become_labels_of_whole_videos_are_lost(store, tmp_path):
    align(store, write_pickle(tmp_path / "a.pickle", {"01_0014": [1] * 100, "01_001": [0] * 170}))
    alignment = align(store, write_pickle(tmp_path / "b.pickle", {"01_001": [0] * 170}),
                      video_labels=write_pickle(tmp_path / "v.pickle", {"01_0014": 1}), strict=True)
    assert remarks(alignment, "01_0014") == ["no frame labels", "loses the frame labels that it had"]
    assert not alignment.written


def test_labels_of_a_video_and_of_its_frames_that_disagree(store, tmp_path):
    alignment = align(store, write_pickle(tmp_path / "gt.pickle", {"01_0014": [0] * 100, "01_001": [1] * 170}),
                      video_labels=write_pickle(tmp_path / "v.pickle", {"01_0014": 1, "01_001": 0}))
    assert remarks(alignment, "01_0014") == ["labelled anomalous as a video, but in no frame"]
    assert remarks(alignment, "01_001") == ["labelled normal as a video, but not in every frame"]


def test_names_by_variant_are_shown(store, tmp_path):
    source = write_pickle(tmp_path / "gt.pickle", {"01_0014.avi": [0] * 100, "ABUSE001_X264.mp4": [1] * 64})
    alignment = align(store, source)
    assert sorted(map(str, alignment.variants)) == [
        "01_0014.avi → 01_0014 (extension)", "ABUSE001_X264.mp4 → Abuse/Abuse001_x264 (folder prefix and case)"]
    assert [line for line in table(alignment) if "matched by" in line]


def test_what_the_labels_were_taken_for_is_said(store, tmp_path):
    np.save(tmp_path / "gt.npy", np.zeros(270))
    (tmp_path / "test.list").write_text("01_0014\n01_001\n")
    result = invoke(store, tmp_path / "gt.npy", "--list", tmp_path / "test.list")
    assert "read as one array for a list of videos, one label a frame" in result.output.splitlines()
    result = invoke(store, write_pickle(tmp_path / "gt.pickle", {"01_0014": [0] * 100}), "--list", "test.list")
    assert result.exit_code == 2 and "leave out --list" in result.output


def test_names_of_video_labels_by_variant_are_shown_too(store, tmp_path):
    source = write_pickle(tmp_path / "gt.pickle", {"01_0014": [0] * 100, "01_001.avi": [0] * 170})
    videos = write_pickle(tmp_path / "v.pickle", {"ABUSE001_X264.mp4": 1, "01_0014.mp4": 0, "01_001.avi": 0})
    lines = invoke(store, source, "--video-labels", videos).output.splitlines()
    assert [line for line in lines if "matched by" in line] == [
        "matched by extension: 01_001.avi → 01_001",
        "video label matched by extension: 01_001.avi → 01_001",
        "video label matched by extension: 01_0014.mp4 → 01_0014",
        "video label matched by folder prefix and case: ABUSE001_X264.mp4 → Abuse/Abuse001_x264"]
    found = json.loads(invoke(store, source, "--video-labels", videos, "--json").output)["videos"]
    told = {video["video"]: [video[key] for key in ("matched_by", "name_in_labels", "video_label_matched_by",
                                                    "name_in_video_labels")] for video in found}
    assert told["Abuse/Abuse001_x264"] == [None, None, "folder prefix and case", "ABUSE001_X264.mp4"]
    assert told["01_0014"] == ["name", "01_0014", "extension", "01_0014.mp4"]
    assert told["short"] == [None] * 4


def test_names_that_no_terminal_should_see(store, tmp_path):
    source = tmp_path / "gt.json"
    source.write_text(json.dumps({"01_0014": [0] * 100, "\ud800": [0], "\x1b[2Jx\n01_001  10  170  170  10": [1]}))
    lines = invoke(store, source).output.splitlines()
    assert [line for line in lines if line.startswith("labels without")] == [
        r"labels without a video: '\ud800'", r"labels without a video: '\x1b[2Jx\n01_001  10  170  170  10'"]
    process = subprocess.run([sys.executable, "-m", "streamfeat", "align", str(store), str(source), "--video-labels",
                              str(write_pickle(tmp_path / "v.pickle", {"abuse001_x264": 1}))],
                             env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, text=True)
    assert process.returncode == 0 and not process.stderr, process.stderr


@pytest.mark.parametrize(("labels", "said"), [
    ({"01_0014": [0] * 3, "01_0014.mp4": [1] * 3}, "both mean the video '01_0014'"),
    ({"01_0014": "0101"}, "type str"),
    ({"01_0014": np.zeros((4, 4))}, r"shape \(4, 4\)"),
    ({"01_0014": [1.0], "01_001": [0.0]}, "these are video labels"),
    ([0, 1], "not labels by video name"),
])
def test_labels_that_make_no_sense_change_nothing(store, tmp_path, labels, said):
    before = store.read_bytes()
    with pytest.raises(LabelError, match=said):
        align(store, write_pickle(tmp_path / "gt.pickle", labels))
    assert store.read_bytes() == before


@pytest.mark.parametrize("labels", [{}, {"nobody": [0, 1]}])
@pytest.mark.parametrize("strict", [False, True])
def test_labels_for_no_video_leave_the_old_ones(store, tmp_path, labels, strict):
    path = write_pickle(tmp_path / "none.pickle", labels)
    before = store.read_bytes()
    with pytest.raises(LabelError, match="no label for any video"):
        align(store, path, strict=strict)
    assert store.read_bytes() == before


def test_two_candidates_are_an_error(tmp_path):
    store = write_store(tmp_path / "out.h5", {"train/a": 32, "test/a": 32})
    with pytest.raises(LabelError, match=r"'a.mp4' could be any of the videos test/a, train/a"):
        align(store, write_pickle(tmp_path / "gt.pickle", {"a.mp4": [0] * 32}))


def test_no_store(tmp_path):
    with pytest.raises(StoreError, match="no such file"):
        align(tmp_path / "out.h5", write_pickle(tmp_path / "gt.pickle", {"a": [0, 1]}))


def test_killed_while_aligning_leaves_old_labels_or_new(store, tmp_path):
    """Killed between the last label and the commit."""
    align(store, write_pickle(tmp_path / "old.pickle", {"01_0014": [1] * 100, "01_001": [1] * 170}))
    new = write_pickle(tmp_path / "new.pickle", {"01_0014": [0] * 100, "01_001": [0] * 170})
    script = (
        "import os, signal, sys\n"
        "from streamfeat.store import StoreWriter\n"
        "from streamfeat.align import align\n"
        "StoreWriter.commit = lambda self: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"align({str(store)!r}, {str(new)!r})\n"
    )
    killed = subprocess.run([sys.executable, "-c", script], env=os.environ)
    assert killed.returncode == -9
    with FeatureStore(store) as after:
        assert all(after[name].labels.frame.all() for name in ("01_0014", "01_001"))
    assert align(store, new).written
    with FeatureStore(store) as after:
        assert not any(after[name].labels.frame.any() for name in ("01_0014", "01_001"))


def invoke(*arguments):
    return CliRunner().invoke(main, ["align", *map(str, arguments)])


def test_the_command_prints_the_table(store, tmp_path):
    result = invoke(store, write_pickle(tmp_path / "gt.pickle", {"01_0014.avi": [0, 1] * 50, "stranger": [0, 0]}))
    assert result.exit_code == 0, result.output
    assert ["01_0014", "6", "100", "100", "6"] in [line.split() for line in result.output.splitlines()]
    assert "matched by extension: 01_0014.avi → 01_0014" in result.output
    assert "labels without a video: stranger" in result.output


def test_the_command_as_json(store, tmp_path):
    result = invoke(store, write_pickle(tmp_path / "gt.pickle", {"01_0014.avi": [0, 1] * 50}), "--json")
    found = json.loads(result.output)
    assert found["written"] and not found["loses_data"] and found["labels_without_video"] == []
    video = found["videos"][0] if found["videos"][0]["video"] == "01_0014" else found["videos"][1]
    assert video == {"video": "01_0014", "clips": 6, "frames": 100, "labels": 100, "kept": 6, "video_label": 1,
                     "loses_earlier_labels": False, "matched_by": "extension",
                     "name_in_labels": "01_0014.avi", "video_label_matched_by": None, "name_in_video_labels": None,
                     "oddities": []}


def test_strict_exits_with_1_and_wrong_labels_with_2(store, tmp_path):
    lossy = write_pickle(tmp_path / "gt.pickle", {"01_0014": [0] * 100, "stranger": [1] * 4})
    before = store.read_bytes()
    result = invoke(store, lossy, "--strict")
    assert result.exit_code == 1 and "nothing was written" in result.output and store.read_bytes() == before
    assert invoke(store, lossy).exit_code == 0
    result = invoke(store, tmp_path / "gone.pickle")
    assert result.exit_code == 2 and "there is no such file" in result.output


def test_a_share_as_the_label_of_a_clip_stays_a_share(store, tmp_path):
    align(store, write_pickle(tmp_path / "gt.pickle", {"01_0014": [0, 0, 0, 1] * 25}), clip_label="fraction")
    with FeatureStore(store) as after:
        assert after["01_0014"].labels.clip.tolist() == [0.25] * 6
        assert after["01_0014"].labels.frame.dtype == np.uint8
