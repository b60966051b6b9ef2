"""From videos to a training run: the whole way that the README shows, with real videos and a real model."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from streamfeat.cli import main
from streamfeat.synthetic import SCENES, make_videos
from tests.published_detector import Detector, PublishedDataset, evaluate

SMALL = [
    "--model", "vit_tiny", "--weights", "random", "--image-size", "32", "--upscale-below", "none", "--device", "cpu",
]
ANOMALOUS, NORMAL, TEST = "01_street", "03_normal", "04_station"


def streamfeat(*arguments):
    result = CliRunner().invoke(main, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture(scope="module")
def way(tmp_path_factory):
    """The commands, in their order."""
    folder = tmp_path_factory.mktemp("way")
    make_videos(folder / "videos", tuple(scene for scene in SCENES if scene.name in (ANOMALOUS, NORMAL, TEST)))
    (folder / "train.txt").write_text(f"{ANOMALOUS}\n{NORMAL}\n")
    (folder / "test.txt").write_text(f"{TEST}\n")
    lists = ["--train-list", folder / "train.txt", "--test-list", folder / "test.txt"]
    streamfeat("extract", *SMALL, folder / "videos", folder / "out.h5")
    streamfeat("align", folder / "out.h5", folder / "videos" / "labels.pkl", "--strict")
    streamfeat("verify", folder / "out.h5", "--against", folder / "videos", "--device", "cpu", "--sample", "1")
    streamfeat("export", folder / "out.h5", folder / "VAD", "--layout", "fed-wsvad", *lists)
    return folder


def test_the_exported_tree_trains_and_evaluates_a_detector(way):
    torch.manual_seed(0)
    train = torch.utils.data.DataLoader(PublishedDataset(way / "VAD", "shanghaitech", train=True))
    channels = next(iter(train))[0].shape[-1]
    detector = Detector(channels)
    optimizer = torch.optim.Adam(detector.parameters(), lr=0.01)
    losses = []
    for _ in range(10):
        for anomalous, normal in train:
            loss = torch.relu(1 - detector(anomalous).mean() + detector(normal).mean())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < losses[0]
    test = PublishedDataset(way / "VAD", "shanghaitech", train=False)
    scores, labels = evaluate(detector, test, way / "VAD" / "shanghaitech" / "GT")
    scene = next(scene for scene in SCENES if scene.name == TEST)
    assert len(scores) == len(labels) == scene.frames // 16 * 16
    assert np.array_equal(labels, scene.labels()[: len(labels)]) and 0 < labels.sum() < len(labels)


def test_the_training_loop_of_the_readme(way, monkeypatch):
    """The block with FeatureDataset, as it stands there."""
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    block = next(code for code in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "FeatureDataset" in code)
    monkeypatch.chdir(way)
    torch.manual_seed(0)
    scope = {"detector": torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(1), torch.nn.Sigmoid())}
    exec(block, scope)
    assert scope["loss"].isfinite() and scope["detector"][1].weight.grad is not None


def test_every_command_of_the_readme_is_one(way):
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    for line in re.findall(r"^streamfeat (.*?)(?:#.*)?$", readme, re.MULTILINE):
        name, *arguments = line.split()
        command = main.get_command(None, name)
        assert command is not None, line
        options = {option for parameter in command.params for option in parameter.opts}
        assert {argument for argument in arguments if argument.startswith("--")} <= options, line
