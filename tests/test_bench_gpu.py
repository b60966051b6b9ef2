"""The benchmark of the GPU, on a CPU: every stage runs, at a tiny size, and what needs a GPU says so."""

import json

import pytest

from bench.gpu import child, run
from bench.gpu.stage import TINY
from bench.gpu.targets import targets


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    path = tmp_path_factory.mktemp("gpu") / "gpu.json"
    run.main(["--quick", "--device", "cpu", "--json", str(path)])
    return json.loads(path.read_text())


def rows(document, name):
    return document["results"]["stages"][name]["rows"]


def test_every_stage_runs(document):
    found = document["results"]["stages"]
    assert list(found) == list(run.stages_of(TINY))
    errors = {name: [row["error"] for row in stage["rows"] if row.get("error")] for name, stage in found.items()}
    assert {name: told for name, told in errors.items() if told} == {"fp8": [
        "RuntimeError: cpu has no fp8 products; it needs an NVIDIA GPU of Ada, Hopper or Blackwell"]}
    assert document["machine"]["date"] and document["quick"] is True


def test_what_is_measured_means_what_it_says(document):
    encoder = rows(document, "encode-vit_tiny")
    assert [row["side"] for row in encoder] == ["auto", "eager", "batch 1", "torch.compile", "auto again"]
    assert all(row["clips/s"] > 0 and row["share"] > 0 for row in encoder)
    *alone, one, shared = rows(document, "decode")
    assert {row["lanes"] for row in alone} == {1, 2}
    assert all(row["frames"] == row["lanes"] * 16 * (2 if row["lanes"] == 1 else 1) for row in alone)
    assert [(row["lanes"], row["frames"]) for row in (one, shared)] == [(1, 32), (2, 32)]
    assert one["side"] == shared["side"] == "one video, lanes share it"
    (whole, _) = rows(document, "extract")
    assert (whole["frames"], whole["clips"], whole["decoder"]) == (32, 2, "pyav")
    assert "2 videos to do" in whole["chosen"]
    assert rows(document, "precision")[0]["cosine"] > 0.9999
    assert rows(document, "published")[0]["cosine"] > 0.999
    assert [(row["videos"], row["frames"]) for row in rows(document, "memory")] == [(2, 32), (1, 48)]
    assert [row["frames"] for row in rows(document, "jpeg")] == [32, 32]
    assert {row["stage"] for row in rows(document, "stages")} >= {"wait for clips", "write", "whole run"}


def test_the_targets_are_those_of_the_rows():
    stages = {
        "encode-vit_g": {"rows": [{"side": "auto", "share": 0.81}, {"side": "eager", "share": 0.9}]},
        "encode-vit_b": {"rows": [{"side": "auto", "error": "no"}]},
        "decode": {"rows": [
            {"video": "480p", "lanes": 1, "side": "streamfeat DALI", "frames/s": 900.0},
            {"video": "480p", "lanes": 7, "side": "streamfeat DALI", "frames/s": 90.0},
            {"video": "480p", "lanes": 7, "side": "torchcodec", "frames/s": 100.0},
            {"video": "480p", "lanes": 7, "side": "PyNvVideoCodec", "frames/s": 80.0},
            {"video": "1080p", "lanes": 7, "side": "streamfeat DALI", "frames/s": 90.0},
        ]},
        "memory": {"rows": [{"video": "minute", "GiB": 2.0}, {"video": "hour", "GiB": 2.05}]},
        "precision": {"rows": [{"model": "vit_g", "cosine": 0.9994}]},
    }  # fmt: skip
    found = {row["measure"]: (row["value"], row["met"]) for row in targets(stages)}
    assert found["vit_g fp16, share of the best product"] == (0.81, True)
    assert found["vit_b fp16, share of the best product"] == (None, None)
    assert found["decode 480p over the faster peer"] == (0.9, False)
    assert found["decode 1080p over the faster peer"] == (None, None)
    assert found["vit_g fp16 against fp32, lowest cosine"] == (0.9994, False)
    assert found["memory, minutes over an hour"] == (2.0 / 2.05, True)


def test_a_stage_that_crashes_is_one_line_and_no_more(tmp_path):
    with pytest.raises(RuntimeError, match="ended with exit code 1: KeyError: 'nonsense'"):
        child.run_child("nonsense", tmp_path, "cpu", True, 60, [])


def test_a_stage_that_hangs_is_ended(tmp_path, monkeypatch):
    sleeper = tmp_path / "python"
    sleeper.write_text("#!/bin/sh\nexec sleep 60\n")
    sleeper.chmod(0o755)
    monkeypatch.setattr(child.sys, "executable", str(sleeper))
    with pytest.raises(RuntimeError, match="took longer than -15 seconds"):
        child.run_child("media", tmp_path, "cpu", True, -15, [])


def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        run.main([])
    assert ended.value.code == 1 and "torch sees no CUDA device" in capsys.readouterr().err
