"""Features equal those of the published code, through the command line, from frames written without loss."""

import av
import h5py
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from streamfeat.cli import main

from . import standin
from .data import DATA

SCENES = ("small_160x120", "wide_400x240")


@pytest.fixture(scope="module")
def expected():
    return dict(np.load(DATA / "parity_features.npz"))


@pytest.fixture(scope="module")
def material(tmp_path_factory):
    """Image folders of both scenes, PNG and JPEG, and the stand-in weights of vit_s."""
    folder = tmp_path_factory.mktemp("parity")
    for scene in SCENES:
        (folder / "png" / scene).mkdir(parents=True)
        (folder / "swapped-jpg" / scene).mkdir(parents=True)
        with av.open(str(DATA / f"parity_{scene}.mkv")) as container:
            for index, frame in enumerate(container.decode(video=0)):
                pixels = frame.to_ndarray(format="rgb24")
                Image.fromarray(pixels).save(folder / "png" / scene / f"img_{index:05}.png")
                # as the published script leaves them: from 1, red and blue exchanged, quality 95, 4:2:0
                Image.fromarray(pixels[..., ::-1]).save(
                    folder / "swapped-jpg" / scene / f"img_{index + 1:05}.jpg", quality=95, subsampling="4:2:0"
                )
    state = {name: torch.from_numpy(array) for name, array in standin.state_dict("vit_s").items()}
    torch.save({"module": state}, folder / "vit_s.pth")
    return folder


def extract(material, tmp_path, recipe, *options, inputs="png"):
    out = tmp_path / "out.h5"
    result = CliRunner().invoke(
        main,
        ["extract", "--recipe", recipe, "--weights", str(material / "vit_s.pth"), *options,
         str(material / inputs), str(out)],
        catch_exceptions=False,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    with h5py.File(out) as file:
        return {scene: file[f"videos/{scene}/features"][:] for scene in SCENES}


def lowest_cosine(ours, theirs):
    assert ours.shape == theirs.shape
    a, b = (x.reshape(-1, x.shape[-1]).astype(np.float64) for x in (ours, theirs))
    return ((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min()


@pytest.mark.parametrize(
    ("recipe", "variant"), [("wsvad", "wsvad"), ("fed-wsvad", "fed_wsvad"), ("thumos14", "thumos14")]
)
def test_fp32_equals_the_published_code(material, tmp_path, expected, recipe, variant):
    features = extract(material, tmp_path, recipe, "--precision", "fp32")
    for scene in SCENES:
        theirs = expected[f"{scene}/{variant}"]
        assert lowest_cosine(features[scene], theirs) > 0.99999
        # frames below 226 pixels go through OpenCV's fixed-point arithmetic first, which is rebuilt to the bit
        assert np.abs(features[scene] - theirs).max() < 1e-3


def test_the_published_jpeg_folders_give_the_published_features(material, tmp_path, expected):
    # the exchange of red and blue is on the disk, so true RGB reading feeds the model what it was fed
    features = extract(material, tmp_path, "wsvad", "--precision", "fp32", inputs="swapped-jpg")
    for scene in SCENES:
        assert lowest_cosine(features[scene], expected[f"{scene}/fed_wsvad_jpeg"]) > 0.9999


def test_bf16_is_near(material, tmp_path, expected):
    features = extract(material, tmp_path, "wsvad", "--precision", "bf16")
    for scene in SCENES:
        assert lowest_cosine(features[scene], expected[f"{scene}/wsvad"]) > 0.9995


def test_the_channel_exchange_matters(expected):
    # if it did not, the tests above could not tell the recipes apart
    assert lowest_cosine(expected["wide_400x240/wsvad"], expected["wide_400x240/fed_wsvad"]) < 0.99
