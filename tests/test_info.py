"""info: what is in a store, whatever its names are and wherever it was filled."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

import streamfeat
from streamfeat.cli import main
from streamfeat.store import StoreError, StoreWriter
from tests.feature_stores import features_of, write_store


def fill(store, precisions):
    """Videos made in these precisions, as machines with other processors do; None: not noted."""
    with StoreWriter.open_existing(store) as writer:
        for number, precision in enumerate(precisions):
            video = writer.begin(f"v{number}")
            video.append(features_of(number, 2, writer.header.row_shape), np.arange(2) * 16)
            video.finish({"frames": 32, "fps": 25.0, "source": "x"} | ({"precision": precision} if precision else {}))


@pytest.mark.parametrize(("precisions", "line", "counts"), [
    (["bf16", "fp32", "bf16"], "  precision bf16 2 videos, fp32 1 video", {"bf16": 2, "fp32": 1}),
    (["bf16", None], "  precision bf16 1 video, unknown 1 video", {"bf16": 1, "unknown": 1}),
    (["bf16", "bf16"], None, {"bf16": 2}),
])
def test_more_than_one_precision_is_said(tmp_path, precisions, line, counts):
    store = write_store(tmp_path / "out.h5", {})
    fill(store, precisions)
    page = CliRunner().invoke(main, ["info", str(store)]).output
    assert [said for said in page.splitlines() if said.startswith("  precision")] == ([line] if line else [])
    found = json.loads(CliRunner().invoke(main, ["info", str(store), "--json"]).output)
    assert found["precisions"] == counts
    assert [video["precision"] for video in found["videos"].values()] == [name or "" for name in precisions]


def test_nothing_in_a_store_acts_on_the_terminal(tmp_path):
    name, reason = "red\x1b[31m\nvideos 99", "broken\x1b]0;mine\x07"
    store = write_store(tmp_path / "out.h5", {name: 40})
    with StoreWriter.open_existing(store) as writer:
        writer.fail(f"{name} too", "decode", reason)
    page = CliRunner().invoke(main, ["info", str(store)]).output
    assert all(line.isprintable() for line in page.splitlines()), page
    assert repr(name) in page and repr(f"{name} too") in page and repr(reason) in page
    assert name in json.loads(CliRunner().invoke(main, ["info", str(store), "--json"]).output)["videos"]


def test_a_video_of_a_store_that_was_closed_says_so(tmp_path):
    store = write_store(tmp_path / "out.h5", {"a": 40})
    with streamfeat.open(store) as reader:
        video = reader["a"]
        assert len(video.features) == 2
    for read in (lambda: video.features, lambda: video.labels, lambda: video.attrs, lambda: reader["a"],
                 lambda: len(reader)):
        with pytest.raises(StoreError, match=r"out\.h5: the store is closed; .* open it again"):
            read()
