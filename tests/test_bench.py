"""The benchmarks at a tiny size: they run, say what they measured, and count no side that computes something else."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest

from bench import decode, encode, extract, media, report, scale
from bench.processes import Crashed, Worker, run, tree_bytes
from streamfeat.model.vit import SIZES


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "scene.mp4"
    return media.surveillance_video(path, codec="h264", size=(240, 228), frames=32)


def test_decode_measures_what_each_side_delivers(tmp_path, capsys, video):
    results, chart = tmp_path / "decode.json", tmp_path / "decode.svg"
    tiny = ["--quick", "--codec", "mjpeg", "--height", "240", "--frames", "24", "--only", "OpenCV"]
    decode.main([*tiny, "--json", str(results), "--chart", str(chart), str(video)])
    shown = capsys.readouterr().out
    made, real_coded, real = json.loads(results.read_text())["results"]["videos"]
    assert (made["video"], made["frames"]) == ("made-240p-mjpeg.avi", 24)
    assert (real_coded["video"], real["video"]) == ("real-240p-mjpeg.avi", "scene.mp4")
    assert real["frames"] == 32
    exact, own = real["sides"]["OpenCV exact"], real["sides"]["OpenCV own"]
    assert exact["grey levels off"] < 0.01 < own["grey levels off"] < 1
    assert len(own["seconds"]) == 3 and own["frames/s"] > 0 and real["over own"] > 0
    assert "made-240p-mjpeg.avi" in shown and "grey levels off" in shown
    assert "<svg" in chart.read_text()


@pytest.mark.parametrize(
    ("first", "frames", "why"),
    [
        (lambda ours: ours[:, ::-1], 32, "other pictures"),
        (lambda ours: np.roll(ours, 60, axis=3), 32, "other pictures"),
        (lambda ours: ours.astype(np.float64), 32, "other pictures"),
        (lambda ours: ours, 31, "gives 31 of 32 frames"),
    ],
)
def test_decode_refuses_a_side_that_delivers_something_else(monkeypatch, video, first, frames, why):
    ours = decode.SIDES[decode.OURS]()
    pictures = np.concatenate([chunk.numpy() for chunk in ours(video)])[: decode.CHUNK]

    class Side:
        def __init__(self, module, option, name):
            self._ours = name == decode.OURS

        def ask(self, question):
            if "keep" in question:
                np.save(question["keep"], pictures if self._ours else first(pictures))
            return {"frames": 32 if self._ours else frames, "seconds": 1.0}

        def close(self):
            pass

    monkeypatch.setattr(decode, "Worker", Side)
    comparison = decode.Comparison([decode.OURS, "OpenCV own"])
    found = comparison.measure(video, rounds=2)
    assert list(found["sides"]) == [decode.OURS] and found["over own"] is None
    assert len(comparison.notes) == 1 and why in comparison.notes[0]


def test_encode_rows(tmp_path, capsys, monkeypatch):
    pytest.importorskip("transformers")
    monkeypatch.setattr(encode, "_shapes", lambda size: [(256, 128, 256)])
    results = tmp_path / "encode.json"
    encode.main(["--quick", "--model", "vit_tiny", "--turns", "1", "--no-compile", "--json", str(results)])
    (found,) = json.loads(results.read_text())["results"]
    sides = {(row["side"], row["precision"], row["batch"]): row for row in found["rows"]}
    assert {("published", "fp32", 2), ("streamfeat", "fp32", 2)} <= set(sides)
    assert ("transformers", "fp32", 2) in sides
    assert sides["published", "fp32", 2]["x published"] == 1
    assert all(row["lowest cosine"] >= 0.999 and row["clips/s"] > 0 for row in found["rows"])
    assert sides["streamfeat", "fp32", 2]["of best product"] > 0
    assert "of best product" in capsys.readouterr().out


def test_encode_leaves_out_what_fails_and_what_computes_something_else(monkeypatch, capsys):
    def sides(weights, batches, compiled, processes):
        def missing():
            raise RuntimeError("no compiler here\nand more")

        published = encode.PublishedModel(weights)
        return {
            encode.BASELINE: lambda: published,
            ("swapped", "fp32", 2): lambda: lambda clips: published(clips.flip(1)),
            ("broken", "fp32", 2): lambda: lambda clips: published(clips) * float("nan"),
            ("missing", "fp32", 2): missing,
        }

    monkeypatch.setattr(encode, "_builders", sides)
    monkeypatch.setattr(encode, "_shapes", lambda size: [(256, 128, 256)])
    found = encode.measure(SIZES["vit_tiny"], 1, (2,), ())
    assert [row["side"] for row in found["rows"]] == ["published"]
    swapped, broken, missing = found["left out"]
    assert swapped.startswith("refused: swapped, fp32, batch 2") and broken.startswith("refused: broken")
    assert missing == "skipped: missing, fp32, batch 2: no compiler here"
    assert capsys.readouterr().err.splitlines() == found["left out"]


def test_extract_compares_features_memory_and_disk(tmp_path, capsys, video):
    results = tmp_path / "extract.json"
    tiny = ["--model", "vit_tiny", "--rounds", "1", "--only", "published"]
    extract.main([*tiny, "--json", str(results), str(video)])
    found = json.loads(results.read_text())["results"]
    assert found["left out"] == [] and found["clips"] == 2
    sides = {side["side"]: side for side in found["sides"]}
    assert set(sides) == {extract.PUBLISHED, extract.OURS}
    assert sides[extract.OURS]["cosine"] >= 0.999 and sides[extract.OURS]["times ours"] == 1
    # 32 JPEG files, against a store with 2 x 3 x 128 numbers
    assert sides[extract.PUBLISHED]["disk_mb"] > 5 * sides[extract.OURS]["disk_mb"] > 0
    assert sides[extract.OURS]["memory_mb"] > 50
    assert found["share of encoder"] > 0
    assert "lowest cosine" in capsys.readouterr().out


def test_the_usual_scripts_give_the_same_features(tmp_path, video):
    pytest.importorskip("transformers")
    from bench.published import write_checkpoint

    weights = tmp_path / "vit_tiny.pth"
    write_checkpoint("vit_tiny", weights)
    features = {}
    for side in (extract.PUBLISHED, extract.USUAL, f"{extract.WELL}, fp32", f"{extract.WELL}, bf16"):
        out = tmp_path / side
        out.mkdir()
        try:
            features[side], _ = extract.SIDES[side]([video], weights, out)
        except extract.Unavailable as error:
            pytest.skip(str(error))
    assert [extract.refusal(found, features[extract.PUBLISHED]) for found in features.values()] == [None] * 4


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (lambda found: {name: rows[:, :, ::-1] for name, rows in found.items()}, "computes something else: cosine"),
        (lambda found: {name: rows * np.nan for name, rows in found.items()}, "computes something else: cosine nan"),
        (lambda found: {name: rows[1:] for name, rows in found.items()}, "of shape (1, 3, 128) instead of (2,"),
        (lambda found: {}, "features of 0 videos instead of 1"),
    ],
)
def test_extract_refuses_a_side_with_wrong_features(monkeypatch, capsys, video, wrong, why):
    right = {"scene": np.random.default_rng(1).normal(1, 1, (2, 3, 128)).astype(np.float32)}

    def run_side(side, weights, videos):
        features = {extract.USUAL: wrong(right), extract.ALONE: {}}.get(side, right)
        return {"seconds": 1.0, "disk_mb": 1.0, "memory_mb": 100.0}, features

    monkeypatch.setattr(extract, "run_side", run_side)
    sides = [extract.PUBLISHED, extract.USUAL, extract.OURS, extract.ALONE]
    found = extract.compare([video], "vit_tiny", 2, sides)
    assert [side["side"] for side in found["sides"]] == [extract.PUBLISHED, extract.OURS]
    (line,) = found["left out"]
    assert line.startswith(f"refused: {extract.USUAL}: ") and why in line
    assert line in capsys.readouterr().err and extract.USUAL not in extract.report(found)


def test_extract_fails_where_streamfeat_is_wrong(monkeypatch, video):
    random = np.random.default_rng(1)
    monkeypatch.setattr(
        extract, "run_side",
        lambda *_: ({"seconds": 1.0, "disk_mb": 1.0, "memory_mb": 1.0}, {"scene": random.normal(0, 1, (2, 3, 128))}),
    )  # fmt: skip
    with pytest.raises(SystemExit, match="refused: streamfeat: computes something else"):
        extract.compare([video], "vit_tiny", 1, [extract.PUBLISHED, extract.OURS])


def test_the_comparison_notices_exchanged_channels(tmp_path, video):
    import torch

    from bench.published import PublishedModel, write_checkpoint

    weights = tmp_path / "vit_tiny.pth"
    write_checkpoint("vit_tiny", weights)
    model = PublishedModel(weights)
    clip = torch.cat(list(decode.SIDES[decode.OURS]()(video)))[:16].transpose(0, 1)[None]
    right, exchanged = ({"scene": model(frames).numpy()} for frames in (clip, clip.flip(1)))
    assert "computes something else" in extract.refusal(exchanged, right)


def test_scale(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(scale.QUICK, "frames", ({"videos": 1}, (16, 160)))
    monkeypatch.setitem(scale.BASE, "lanes", 1)
    results = tmp_path / "scale.json"
    scale.main(["--quick", "--only", "frames", "--json", str(results)])
    short, long = json.loads(results.read_text())["results"]["frames"]
    assert (short["frames"], long["frames"]) == (16, 160)
    assert long["clips/s"] > 0 and short["peak MB"] > 50
    assert "more frames" in capsys.readouterr().out


def test_repeated_videos_hold_every_frame(tmp_path, video):
    times = media.repeat(video, tmp_path / "long.mp4", 3)
    assert sum(len(chunk) for chunk in decode.SIDES[decode.OURS]()(times)) == 3 * 32


def test_a_peer_that_crashes_ends_only_itself(tmp_path):
    (tmp_path / "peer.py").write_text(
        "import os, sys\n"
        "from bench.processes import serve\n"
        "def answer(question):\n"
        "    print('noise')\n"
        "    if question['crash']:\n"
        "        os.abort()\n"
        "    return question\n"
        "serve(answer)\n"
    )
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import runpy; runpy.run_module('peer')"
    worker = Worker("unused")
    worker._command = [sys.executable, "-c", code]
    try:
        with pytest.raises(Crashed, match="signal 6"):
            worker.ask({"crash": True})
        assert worker.ask({"crash": False}) == {"crash": False}
    finally:
        worker.close()


def test_a_process_that_fails_leaves_its_last_words():
    ended = run("bench.decode", "--no-such-option")
    assert ended.returncode == 2 and "--no-such-option" in ended.last_words


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_that_of_the_whole_tree():
    code = (
        "import subprocess, sys; held = bytearray(80 << 20);"
        "child = subprocess.Popen([sys.executable, '-c', 'held = bytearray(60 << 20); print(1, flush=True); input()'],"
        " stdin=sys.stdin, stdout=sys.stdout); child.wait()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        process.stdout.readline()
        assert 140 << 20 < tree_bytes(process.pid) < 220 << 20
    finally:
        process.communicate("\n")


# the report ----------------------------------------------------------------------------------------------------------


MACHINE = {
    "date": "2031-02-03", "processor": "Abacus", "cores": 7, "vector_extension": "BEADS", "python": "3.12.0",
    "versions": {"torch": "2.99"},
}  # fmt: skip


@pytest.fixture
def results(tmp_path):
    """A folder with the result of a full run of one benchmark, and a README."""
    side = {"seconds": [2.0], "cosine": 0.99999, "disk_mb": 3.5, "memory_mb": 900.0}
    found = {
        "model": "vit_b", "videos": ["a.mp4"], "clips": 12, "rounds": 1, "left out": [], "share of encoder": 0.96,
        "sides": [
            side | {"side": extract.PUBLISHED, "clips/s": 0.25, "times ours": 6.125},
            side | {"side": extract.OURS, "clips/s": 1.53, "times ours": 1.0},
        ],
    }  # fmt: skip
    document = {"benchmark": "extract", "quick": False, "machine": MACHINE, "results": found}
    (tmp_path / "extract.json").write_text(json.dumps(document))
    (tmp_path / "README.md").write_text(f"before\n\n{report.BEGIN}\nold\n{report.END}\n\nafter\n")
    return tmp_path


def reports(folder, *options):
    report.main([*options, "--results", str(folder), "--readme", str(folder / "README.md")])


def test_the_readme_gets_its_figures_from_the_results(results):
    pytest.importorskip("matplotlib")
    reports(results)
    text = (results / "README.md").read_text()
    assert text.startswith("before\n\n<!--") and text.endswith("-->\n\nafter\n") and "old" not in text
    assert re.search(r"\| published way, fp32 \| 0\.25 \| 6\.\d+ \|", text) and "0.96" in text
    assert all(part in text for part in ("2031-02-03", "Abacus", "7 cores", "torch 2.99", "vit_b", "12 clips"))
    assert "<svg" in (results / report.CHART).read_text()
    reports(results, "--check")


def test_check_fails_where_readme_chart_and_results_disagree(results):
    pytest.importorskip("matplotlib")
    with pytest.raises(SystemExit, match=r"README\.md differs"):
        reports(results, "--check")
    reports(results)
    readme, chart = results / "README.md", results / report.CHART
    right = readme.read_text()
    readme.write_text(right.replace("1.53", "1.93"))
    with pytest.raises(SystemExit, match=r"README\.md differs"):
        reports(results, "--check")
    readme.write_text(right)
    chart.write_text(chart.read_text().replace("sha256:", "sha256:0"))
    with pytest.raises(SystemExit, match="not drawn from the results"):
        reports(results, "--check")
    readme.write_text(right.replace(report.END, ""))
    with pytest.raises(SystemExit, match="needs the markers"):
        reports(results, "--check")


def test_decoders_are_shown_by_codec_and_size():
    videos = [
        {"video": name, "over own": own, "over exact": exact}
        for name, own, exact in (
            ("made-240p-h264.mp4", 1.25, 1.5), ("made-240p-vp9.webm", 0.75, None), ("made-480p-h264.mp4", 1.125, 2.0),
            ("my walk.mp4", 1.0, 3.0),
        )
    ]  # fmt: skip
    table = report.block({"decode": {"machine": MACHINE, "results": {"videos": videos}}})
    assert "| over own / over exact | 240p | 480p | as it is |\n" in table
    assert "| made h264 | 1.25 / 1.50 | 1.12 / 2.00 |  |\n| made vp9 | 0.75 / - |  |  |\n" in table
    assert "| my walk.mp4 |  |  | 1.00 / 3.00 |\n" in table


def test_a_quick_run_is_no_result(results):
    document = json.loads((results / "extract.json").read_text()) | {"quick": True}
    (results / "extract.json").write_text(json.dumps(document))
    with pytest.raises(SystemExit, match="quick run"):
        reports(results)


def test_the_figures_in_our_readme_are_those_of_the_results():
    report.check(report.RESULTS, report.README)
