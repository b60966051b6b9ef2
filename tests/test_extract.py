"""The command as a user meets it: every input, every refusal, every exit code."""

import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import threading
import time

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

import streamfeat
from streamfeat import pipeline, progress
from streamfeat.align import align
from streamfeat.cli import main
from streamfeat.model import Encoder, ModelError, load_encoder
from streamfeat.pipeline import ExtractError, RunError
from streamfeat.progress import Quiet

from .media import break_packet, write_sound, write_video

#: a model that takes milliseconds a clip
SMALL = [
    "--model", "vit_tiny", "--weights", "random", "--clip-frames", "4", "--clip-stride", "4", "--image-size", "32",
    "--upscale-below", "none",
]  # fmt: skip
SMALL_PYTHON = {
    "recipe": streamfeat.Recipe(clip_frames=4, clip_stride=4, image_size=32, upscale_below=None),
    "model": "vit_tiny", "weights": "random",
}  # fmt: skip


def run(*arguments, small=True):
    options = SMALL if small else []
    return CliRunner().invoke(main, ["extract", *options, *map(str, arguments)], catch_exceptions=False)


def command(*arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "streamfeat", "extract", *SMALL, *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


@pytest.fixture
def videos(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    write_video(folder / "a.mp4", 18)
    (folder / "deep").mkdir()
    write_video(folder / "deep" / "b.avi", 9, codec="mpeg4")
    return folder


def test_two_videos(videos, tmp_path):
    result = run(videos, tmp_path / "out.h5")
    assert result.exit_code == 0, result.stderr
    assert "the weights are random: these features mean nothing" in result.stderr
    with h5py.File(tmp_path / "out.h5") as file:
        features = file["videos/a/features"]
        assert features.shape == (4, 3, 128) and features.dtype == np.float32
        assert np.isfinite(features[:]).all() and features[:].std() > 0
        assert [dim.label for dim in features.dims] == ["clip", "statistic", "channel"]
        assert file["videos/a/start_frame"][:].tolist() == [0, 4, 8, 12]
        assert file["videos/deep/b/features"].shape == (2, 3, 128)
        attrs = dict(file["videos/a"].attrs)
        assert attrs["frames"] == 18 and attrs["codec"] == "h264" and attrs["decoder"] == "pyav"
        assert attrs["source_bytes"] == (videos / "a.mp4").stat().st_size
        assert attrs["source_mtime_ns"] == (videos / "a.mp4").stat().st_mtime_ns
        assert json.loads(file.attrs["model"])["source"] == "random"
        assert json.loads(file.attrs["recipe"])["clip_frames"] == 4


def test_json_summary(videos, tmp_path):
    result = run("--json", videos, tmp_path / "out.h5")
    summary = json.loads(result.stdout)
    assert summary["done"] == summary["videos"] == 2 and summary["clips"] == 6 and summary["frames"] == 27
    assert summary["complete"] and summary["failures"] == {}


def test_quiet_prints_nothing(videos, tmp_path):
    result = run("--quiet", videos, tmp_path / "out.h5")
    assert result.exit_code == 0 and result.output == ""


def test_quiet_prints_failures(videos, tmp_path):
    (videos / "empty.mp4").write_bytes(b"")
    result = run("--quiet", videos, tmp_path / "out.h5")
    assert result.exit_code == 1 and result.output == "streamfeat: empty: the file is empty\n"


def test_info_for_people_and_for_scripts(videos, tmp_path):
    (videos / "empty.mp4").write_bytes(b"")
    run("--quiet", videos, tmp_path / "out.h5")
    said = CliRunner().invoke(main, ["info", str(tmp_path / "out.h5")], catch_exceptions=False)
    assert said.exit_code == 0
    for part in ("2: 6 clips, 27 frames", "wsvad", "vit_tiny", "clips x 3 x 128, float32", "empty: decode: the"):
        assert part in said.stdout
    found = json.loads(
        CliRunner().invoke(main, ["info", "--json", str(tmp_path / "out.h5")], catch_exceptions=False).stdout
    )
    assert found["clips"] == 6 and found["dtype"] == "float32" and found["row_shape"] == [3, 128]
    assert found["videos"]["a"]["frames"] == 18 and found["failures"] == {"empty": ["decode", "the file is empty"]}
    missing = CliRunner().invoke(main, ["info", str(tmp_path / "none.h5")])
    assert missing.exit_code == 2 and "none.h5" in missing.stderr


def test_features_do_not_depend_on_company_batches_or_lanes(videos, tmp_path):
    write_video(videos / "c.mkv", 30, codec="hevc", size=(64, 48))
    common = dict(SMALL_PYTHON, precision="fp32")
    streamfeat.extract(videos, tmp_path / "one.h5", **common, batch_size=1, lanes=1)
    streamfeat.extract(videos, tmp_path / "many.h5", **common, batch_size=5, lanes=3)
    with streamfeat.open(tmp_path / "one.h5") as one, streamfeat.open(tmp_path / "many.h5") as many:
        assert list(one) == list(many) == ["a", "c", "deep/b"]
        for name in one:
            np.testing.assert_allclose(one[name].features, many[name].features, atol=1e-5)
            assert one[name].start_frame.tolist() == many[name].start_frame.tolist()


# inputs ------------------------------------------------------------------------------------------------------------


def test_the_same_command_again_does_only_what_is_missing(videos, tmp_path):
    out = tmp_path / "out.h5"
    assert streamfeat.extract(videos, out, **SMALL_PYTHON).done == 2
    assert streamfeat.extract(videos, out, **SMALL_PYTHON).skipped == 2
    write_video(videos / "new.mp4", 8)
    write_video(videos / "a.mp4", 12)
    summary = streamfeat.extract(videos, out, **SMALL_PYTHON)
    assert (summary.skipped, summary.done) == (1, 2)
    with streamfeat.open(out) as store:
        assert store["a"].frames == 12 and len(store["a"].features) == 3


def test_a_changed_video_loses_its_labels_and_says_so(videos, tmp_path):
    out, truth = tmp_path / "out.h5", tmp_path / "gt.json"
    streamfeat.extract(videos, out, **SMALL_PYTHON)
    truth.write_text(json.dumps({"a": [0] * 18}))
    align(out, truth)
    write_video(videos / "a.mp4", 12)
    write_video(videos / "deep" / "b.avi", 8, codec="mpeg4")  # has no labels to lose
    result = run(videos, out)
    said = [line.strip() for line in result.stderr.splitlines() if "labels" in line]
    assert said == [f"{videos / 'a.mp4'}: extracted anew: its labels are gone; run streamfeat align again",
                    "labels gone: a: run streamfeat align again"]
    with streamfeat.open(out) as store:
        assert store["a"].labels is None
    truth.write_text(json.dumps({"a": [0] * 12}))
    align(out, truth)
    summary = streamfeat.extract(videos, out, **SMALL_PYTHON)
    assert summary.skipped == 2 and summary.labels_gone == []
    with h5py.File(out, "r+") as file:
        del file["videos/a/labels/clip"]
    write_video(videos / "a.mp4", 16)
    assert streamfeat.extract(videos, out, **SMALL_PYTHON).labels_gone == ["a"], "damaged labels stop nobody"


def test_what_failed_is_tried_again_and_forgotten_once_it_works(videos, tmp_path):
    out = tmp_path / "out.h5"
    (videos / "late.mp4").write_bytes(b"")
    assert "late" in streamfeat.extract(videos, out, **SMALL_PYTHON).failures
    with streamfeat.open(out) as store:
        assert list(store.failures) == ["late"] and store.failures["late"].stage == "decode"
    write_video(videos / "late.mp4", 8)
    assert streamfeat.extract(videos, out, **SMALL_PYTHON).done == 1
    with streamfeat.open(out) as store:
        assert not store.failures and "late" in store


def test_another_recipe_or_model_stops_and_says_what_differs(videos, tmp_path):
    out = tmp_path / "out.h5"
    assert run(videos, out).exit_code == 0
    before = out.read_bytes()
    result = run("--clip-stride", "2", videos, out)
    assert result.exit_code == 2
    assert "clip_stride" in result.stderr and "--overwrite" in result.stderr and "Traceback" not in result.stderr
    result = run("--dtype", "float16", videos, out)
    assert result.exit_code == 2 and "float16" in result.stderr
    assert out.read_bytes() == before
    assert run("--clip-stride", "2", "--overwrite", videos, out).exit_code == 0
    with streamfeat.open(out) as store:
        assert store["a"].features.shape == (8, 3, 128)


def test_float16(videos, tmp_path):
    streamfeat.extract(videos, tmp_path / "half.h5", dtype="float16", **SMALL_PYTHON)
    streamfeat.extract(videos, tmp_path / "full.h5", **SMALL_PYTHON)
    with streamfeat.open(tmp_path / "half.h5") as half, streamfeat.open(tmp_path / "full.h5") as full:
        assert half["a"].features.dtype == np.float16
        np.testing.assert_array_equal(half["a"].features, full["a"].features.astype(np.float16))


def test_two_inputs_with_one_name_are_refused_before_anything_is_decoded(videos, tmp_path):
    write_video(videos / "a.mkv", 8)
    result = run(videos, tmp_path / "out.h5")
    assert result.exit_code == 2
    assert "a.mp4" in result.stderr and "a.mkv" in result.stderr
    assert not (tmp_path / "out.h5").exists()


def test_names_that_cannot_be_side_by_side_in_a_store_are_refused(videos, tmp_path):
    (videos / "a").mkdir()
    write_video(videos / "a" / "features.mp4", 8)
    result = run(videos, tmp_path / "out.h5")
    assert result.exit_code == 2 and "a/features" in result.stderr
    assert not (tmp_path / "out.h5").exists()


def test_a_list_with_a_root(videos, tmp_path):
    (tmp_path / "list.txt").write_text("a\ndeep/b\n")
    assert run("--root", videos, f"@{tmp_path / 'list.txt'}", tmp_path / "out.h5").exit_code == 0
    with streamfeat.open(tmp_path / "out.h5") as store:
        assert list(store) == ["a", "deep/b"]


def test_crops(videos, tmp_path):
    short = ["--resize-short", "40"]
    assert run(*short, "--crops", "10", videos / "a.mp4", tmp_path / "ten.h5").exit_code == 0
    assert run(*short, "--crops", "5", videos / "a.mp4", tmp_path / "five.h5").exit_code == 0
    assert run(*short, videos / "a.mp4", tmp_path / "one.h5").exit_code == 0
    with h5py.File(tmp_path / "ten.h5") as ten, h5py.File(tmp_path / "five.h5") as five, h5py.File(
        tmp_path / "one.h5"
    ) as one:
        crops = ten["videos/a/features"]
        assert crops.shape == (4, 10, 3, 128)
        assert [dim.label for dim in crops.dims] == ["clip", "crop", "statistic", "channel"]
        np.testing.assert_allclose(five["videos/a/features"], crops[:, :5], rtol=0.02, atol=0.02)
        np.testing.assert_allclose(one["videos/a/features"], crops[:, 4], rtol=0.02, atol=0.02)


def test_a_single_statistic_has_no_axis_of_its_own(videos, tmp_path):
    assert run("--stats", "mean", videos, tmp_path / "out.h5").exit_code == 0
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["videos/a/features"].shape == (4, 128)


def test_a_video_shorter_than_a_clip_is_noted_and_padded_if_asked(tmp_path):
    write_video(tmp_path / "short.mp4", 3)
    result = run(tmp_path / "short.mp4", tmp_path / "out.h5")
    assert result.exit_code == 0 and "too short" in result.stderr
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["videos/short/features"].shape == (0, 3, 128)
        assert file["videos/short"].attrs["frames"] == 3
    assert run("--tail", "pad", tmp_path / "short.mp4", tmp_path / "padded.h5").exit_code == 0
    with h5py.File(tmp_path / "padded.h5") as file:
        assert file["videos/short/features"].shape == (1, 3, 128)


# what goes wrong ---------------------------------------------------------------------------------------------------


class _AtStart(Quiet):
    """Does something when the run has been announced, before the first video is opened."""

    def __init__(self, action):
        self.action = action

    def note(self, text):
        if " to do" in text:
            self.action()


def test_broken_inputs_fail_with_their_reason_and_the_rest_is_done(videos, tmp_path):
    (videos / "empty.mp4").write_bytes(b"")
    (videos / "text.mp4").write_text("not a video at all\n" * 100)
    write_sound(videos / "audio.mp4")
    (videos / "unreadable.mp4").symlink_to("/proc/self/mem")  # opens, but reading it is an I/O error
    write_video(videos / "vanishing.mp4", 8)
    reporter = _AtStart((videos / "vanishing.mp4").unlink)
    summary = streamfeat.extract(videos, tmp_path / "out.h5", reporter=reporter, **SMALL_PYTHON)
    assert summary.done == 2 and summary.complete
    assert set(summary.failures) == {"empty", "text", "audio", "unreadable", "vanishing"}
    assert "no video stream" in summary.failures["audio"]
    assert "No such file" in summary.failures["vanishing"]
    with streamfeat.open(tmp_path / "out.h5") as store:
        assert list(store) == ["a", "deep/b"]
        assert {name: failure.error for name, failure in store.failures.items()} == summary.failures
    result = run(videos, tmp_path / "out.h5")
    assert result.exit_code == 1
    for name in ("empty", "text", "audio", "unreadable"):
        assert f"{name}.mp4: " in result.stderr
    assert "Traceback" not in result.stderr


def test_a_damaged_video_is_marked_and_a_failure_only_with_strict(tmp_path):
    write_video(tmp_path / "bad.mp4", 40)
    break_packet(tmp_path / "bad.mp4", 20)
    result = run(tmp_path / "bad.mp4", tmp_path / "out.h5")
    assert result.exit_code == 0 and "damaged: bad: " in result.stderr
    with streamfeat.open(tmp_path / "out.h5") as store:
        assert store["bad"].attrs["damaged_packets"] > 0
        assert 0 < store["bad"].frames <= 40
    result = run("--strict", tmp_path / "bad.mp4", tmp_path / "out.h5")
    assert result.exit_code == 1 and "bad packets (--strict)" in result.stderr
    with streamfeat.open(tmp_path / "out.h5") as store:
        assert "bad" in store and "bad" in store.failures  # a failure never takes away what was there
    assert run("--strict", tmp_path / "bad.mp4", tmp_path / "strict.h5").exit_code == 1
    with streamfeat.open(tmp_path / "strict.h5") as store:
        assert "bad" not in store and "bad" in store.failures
    assert run(tmp_path / "bad.mp4", tmp_path / "out.h5").exit_code == 0
    with streamfeat.open(tmp_path / "out.h5") as store:
        assert "bad" in store and not store.failures


def test_features_that_are_not_finite_fail_the_video_and_are_never_stored(videos, tmp_path):
    import torch

    from streamfeat.model.weights import load

    state = {name: tensor.clone() for name, tensor in load("random", "vit_tiny").state_dict.items()}
    state["blocks.3.mlp.fc2.bias"][7] = float("inf")
    torch.save({"model": state}, tmp_path / "inf.pth")
    result = run("--weights", tmp_path / "inf.pth", videos, tmp_path / "out.h5")
    assert result.exit_code == 1 and "not finite" in result.stderr
    with streamfeat.open(tmp_path / "out.h5") as store:
        assert not len(store) and {failure.stage for failure in store.failures.values()} == {"model"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["missing.mp4", "out.h5"], "missing.mp4"),
        (["nothing", "out.h5"], "no video"),
        (["videos", "out.txt"], ".h5"),
        (["videos", "nowhere/out.h5"], "nowhere"),
        (["videos", "folder.h5"], "folder"),
        (["videos", "pipe.h5"], "pipe"),
        (["videos", "text.h5"], "text.h5"),
        (["videos", "plain.h5"], "plain.h5"),
        (["videos", "newer.h5"], "newer"),
        (["--recipe", "i3d", "videos", "out.h5"], "wsvad, fed-wsvad"),
        (["--clip-frames", "0", "videos", "out.h5"], "clip_frames"),
        (["--clip-frames", "15", "videos", "out.h5"], "clip_frames"),
        (["--image-size", "33", "videos", "out.h5"], "33"),
        (["--crops", "5", "videos", "out.h5"], "resize_short"),
        (["--model", "vit_xxl", "videos", "out.h5"], "vit_xxl"),
        (["--weights", "nowhere.pth", "videos", "out.h5"], "nowhere.pth"),
        (["--weights", "OpenGVLab/VideoMAEv2-Base", "--model", "vit_b", "videos", "out.h5"], "VideoMAEv2-Base"),
        (["--device", "cuda", "videos", "out.h5"], "cuda"),
        (["--device", "abacus", "videos", "out.h5"], "abacus"),
        (["--batch-size", "0", "videos", "out.h5"], "batch-size"),
        (["--mean", "x", "videos", "out.h5"], "mean"),
        (["@nolist.txt", "out.h5"], "nolist.txt"),
    ],
)
def test_wrong_usage_is_exit_code_2_one_line_and_nothing_written(videos, tmp_path, monkeypatch, arguments, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nothing").mkdir()
    (tmp_path / "folder.h5").mkdir()
    (tmp_path / "text.h5").write_text("hello")
    os.mkfifo(tmp_path / "pipe.h5")
    with h5py.File(tmp_path / "plain.h5", "w") as file:
        file["x"] = 1
    with h5py.File(tmp_path / "newer.h5", "w") as file:
        file.attrs.update(format="streamfeat", format_version=999)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert says in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.strip() and not line.startswith(("Usage:", "Try "))]
    assert len(errors) == 1, result.stderr
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_an_output_that_cannot_be_written(videos):
    result = run(videos, "/proc/out.h5")
    assert result.exit_code == 2 and "/proc/out.h5: cannot be written" in result.stderr


def test_debug_shows_the_traceback(tmp_path):
    result = run("--debug", tmp_path / "missing.mp4", tmp_path / "out.h5")
    assert result.exit_code == 2 and "Traceback" in result.stderr


_SMALL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
from streamfeat.cli import main
main()
"""


def test_a_full_disk_ends_the_run_and_keeps_what_was_there(videos, tmp_path):
    out = tmp_path / "out.h5"
    assert run(videos, out).exit_code == 0
    write_video(videos / "more.mp4", 400, size=(32, 32))
    limit = out.stat().st_size + 20_000
    done = subprocess.run(
        [sys.executable, "-c", _SMALL_DISK, str(limit), "extract", *SMALL, str(videos), str(out)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr and "File too large" in done.stderr
    with h5py.File(out) as file:
        assert set(file["videos"]) == {"a", "deep"} and file["videos/a/features"].shape == (4, 3, 128)
    assert run(videos, out).exit_code == 0
    with streamfeat.open(out) as store:
        assert len(store["more"].features) == 100


def test_a_second_writer_is_refused_with_the_process_id_of_the_first(videos, tmp_path):
    refused = []

    def second():
        with pytest.raises(ExtractError) as caught:
            streamfeat.extract(videos, tmp_path / "out.h5", **SMALL_PYTHON)
        refused.append(str(caught.value))

    streamfeat.extract(videos, tmp_path / "out.h5", reporter=_AtStart(second), **SMALL_PYTHON)
    assert str(os.getpid()) in refused[0]


@pytest.mark.parametrize(("number", "code"), [(2, 130), (15, 143)])
def test_interrupted_then_continued(tmp_path, number, code):
    folder = tmp_path / "videos"
    folder.mkdir()
    write_video(folder / "v000.mp4", 200, size=(32, 32))
    for index in range(1, 50):
        shutil.copy(folder / "v000.mp4", folder / f"v{index:03}.mp4")
    out = tmp_path / "out.h5"
    process = command(folder, out)
    while not out.exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "the same command goes on" in errors and "Traceback" not in errors
    with streamfeat.open(out) as store:
        done = len(store)
    assert 0 < done < 50
    summary = streamfeat.extract(folder, out, **SMALL_PYTHON)
    assert summary.skipped == done and summary.done == 50 - done


def test_progress_lines_when_not_on_a_terminal(videos, tmp_path, capsys, monkeypatch):
    streamfeat.extract(videos, tmp_path / "out.h5", reporter=progress.Lines(every=0), **SMALL_PYTHON)
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("2/2 videos, 6 clips, ") and "frames/s" in line for line in lines), lines


def test_the_bar_tells_where_the_run_is(videos, tmp_path):
    terminal = io.StringIO()
    streamfeat.extract(videos, tmp_path / "out.h5", reporter=progress.Bar(terminal), **SMALL_PYTHON)
    said = terminal.getvalue()
    assert "the weights are random" in said and "2 videos to do" in said
    assert "0/0 videos" not in said
    bar = progress.Bar(terminal)
    bar.update(progress.Counters(videos_total=4, done=1, failed=1, clips=9, frames=144, bytes_total=8, bytes_done=2.0))
    bar.close()
    drawn = terminal.getvalue().removeprefix(said)
    assert "2/4 videos" in drawn and "9 clips" in drawn and "1 failed" in drawn and " left" in drawn


@pytest.mark.parametrize(("error", "said"), [
    (RuntimeError, "broke off: RuntimeError; "),
    (ModelError("the device fell off the bus\nand so on"), "broke off: the device fell off the bus; "),
], ids=["RuntimeError", "ModelError"])
@pytest.mark.parametrize("broken_part", ["Encoder.submit", "Pending.result", "pool"])
def test_an_error_of_the_model_breaks_off_and_hangs_nobody(videos, tmp_path, monkeypatch, error, said, broken_part):
    def broken(*arguments):
        raise error

    closed = []
    monkeypatch.setattr(f"streamfeat.model.encoder.{broken_part}", broken)
    monkeypatch.setattr(Encoder, "close", lambda self: closed.append(self))
    with pytest.raises(RunError, match=said):
        streamfeat.extract(videos, tmp_path / "out.h5", **SMALL_PYTHON)
    # or the process would compute what is still queued before it ends
    assert len(closed) == 1


class AheadEncoder:
    """An encoder that tells in which order it is used, and reads a batch's clips as late as one may."""

    def __init__(self, real):
        self.real, self.ahead, self.log = real, 1, []

    def __getattr__(self, name):
        return getattr(self.real, name)

    def submit(self, samples):
        number = sum(kind == "submit" for kind, _ in self.log)
        self.log.append(("submit", number))
        return _Ahead(self, number, samples)


class _Ahead:
    def __init__(self, encoder, number, samples):
        self.encoder, self.number, self.samples = encoder, number, samples

    def result(self):
        self.encoder.log.append(("result", self.number))
        return self.encoder.real.encode(self.samples)


def test_the_next_batch_is_submitted_before_the_last_is_read(videos, tmp_path, monkeypatch):
    write_video(videos / "c.mkv", 30)
    options = dict(SMALL_PYTHON, precision="fp32", batch_size=3)
    streamfeat.extract(videos, tmp_path / "plain.h5", **options)
    made = []
    monkeypatch.setattr(
        pipeline, "load_encoder", lambda *a, **k: made.append(AheadEncoder(load_encoder(*a, **k))) or made[-1]
    )
    summary = streamfeat.extract(videos, tmp_path / "ahead.h5", **options)
    assert summary.complete and summary.done == 3 and summary.clips == 13
    submits = [("submit", number) for number in range(5)]
    results = [("result", number) for number in range(5)]
    between = itertools.chain(*zip(submits[1:], results[:-1], strict=True))
    order = [submits[0], *between, results[-1]]
    assert made[0].log == order
    with streamfeat.open(tmp_path / "plain.h5") as plain, streamfeat.open(tmp_path / "ahead.h5") as ahead:
        assert list(plain) == list(ahead)
        for name in plain:
            np.testing.assert_allclose(ahead[name].features, plain[name].features, atol=1e-5)


def test_what_is_in_flight_at_an_interruption_is_kept(tmp_path, monkeypatch):
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in "abc":
        write_video(videos / f"{name}.mp4", 8)
    stop = threading.Event()

    class Stopping(AheadEncoder):
        def submit(self, samples):
            stop.set()
            return super().submit(samples)

    monkeypatch.setattr(pipeline, "load_encoder", lambda *a, **k: Stopping(load_encoder(*a, **k)))
    summary = streamfeat.extract(videos, tmp_path / "out.h5", **SMALL_PYTHON, batch_size=4, lanes=1, stop=stop)
    assert not summary.complete and summary.done >= 1


def test_what_completes_no_video_is_not_waited_for_at_an_interruption(tmp_path, monkeypatch):
    write_video(tmp_path / "long.mp4", 200)
    stop, made = threading.Event(), []

    class Stopping(AheadEncoder):
        def submit(self, samples):
            stop.set()
            return super().submit(samples)

    monkeypatch.setattr(
        pipeline, "load_encoder", lambda *a, **k: made.append(Stopping(load_encoder(*a, **k))) or made[-1]
    )
    summary = streamfeat.extract(tmp_path / "long.mp4", tmp_path / "out.h5", **SMALL_PYTHON, stop=stop)
    assert not summary.complete and summary.done == 0
    assert made[0].log == [("submit", 0)]


def test_one_line_says_what_was_chosen_and_why(videos, tmp_path):
    said = run(videos, tmp_path / "out.h5", "--device", "cpu", "--precision", "fp32", "--lanes", "1").stderr
    (line,) = [line for line in said.splitlines() if "videos to do" in line]
    assert line.startswith("2 videos to do: vit_tiny on cpu (asked for) in fp32 (asked for), batches of ")
    assert line.endswith("recipe wsvad+changes, decoded by PyAV in 1 lane (asked for)")
    chosen = run(videos, tmp_path / "auto.h5", "--device", "auto").stderr
    assert "(torch sees no CUDA device)" in chosen or "on cuda:0" in chosen
    assert "(a clip for each thread)" in chosen or "multiprocessors" in chosen


def test_the_largest_video_is_begun_first(tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for name, frames in (("a", 8), ("b", 200), ("c", 60)):
        write_video(videos / f"{name}.mp4", frames)
    opened = []

    class Recording(pipeline.Decoders):
        def __call__(self, video):
            opened.append(video.name)
            return super().__call__(video)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "Decoders", Recording)
        streamfeat.extract(videos, tmp_path / "two.h5", **SMALL_PYTHON, lanes=2)
        streamfeat.extract(videos, tmp_path / "one.h5", **SMALL_PYTHON, lanes=1)
    assert opened == ["b", "c", "a", "a", "b", "c"]
