"""Every checkpoint form in the wild, written to real files, and what is refused."""

import argparse
import hashlib
import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from streamfeat.model import weights
from streamfeat.model.vit import SIZES, VideoTransformer, parameter_shapes
from streamfeat.model.weights import WeightsError, load

TINY = SIZES["vit_tiny"]


def published(size=TINY):
    """A fine-tuned checkpoint's tensors under OpenGVLab's names, random values."""
    torch.manual_seed(0)
    state = {}
    for name, shape in parameter_shapes(size).items():
        if name.endswith("qkv.bias"):
            state[name.replace("qkv.bias", "q_bias")] = torch.randn(size.channels)
            state[name.replace("qkv.bias", "v_bias")] = torch.randn(size.channels)
        else:
            state[name] = torch.randn(shape)
    return state | {"head.weight": torch.randn(10, size.channels), "head.bias": torch.randn(10)}


def expected(state):
    """The same as the parameters of a VideoTransformer."""
    ours = {name: value for name, value in state.items() if not name.startswith("head.") and "_bias" not in name}
    for i in range(TINY.blocks):
        q, v = (state[f"blocks.{i}.attn.{part}_bias"] for part in "qv")
        ours[f"blocks.{i}.attn.qkv.bias"] = torch.cat([q, torch.zeros_like(q), v])
    return ours


def without(state, *parts):
    return {name: value for name, value in state.items() if not any(part in name for part in parts)}


def prefixed(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def pretrained(prefix=""):
    """As saved by the pre-training script: an encoder with its norm and no head, beside a decoder."""
    encoder = without(published(), "head.", "fc_norm")
    encoder |= {"norm.weight": torch.ones(TINY.channels), "norm.bias": torch.zeros(TINY.channels)}
    decoder = {"decoder.blocks.0.attn.qkv.weight": torch.zeros(6, 2), "decoder.norm.weight": torch.zeros(2),
               "decoder.head.weight": torch.zeros(3, 2), "mask_token": torch.zeros(1, 1, 2),
               "encoder_to_decoder.weight": torch.zeros(2, TINY.channels), "pos_embed": torch.zeros(1, 4, 4)}
    return prefixed(prefix, prefixed("encoder.", encoder) | decoder)


def transformers_state(prefix, biases, classifier=True):
    """As Hugging Face transformers' VideoMAE classes save it; ``biases`` names those of query and value."""
    names = {"attn.proj": "attention.output.dense", "norm1": "layernorm_before", "norm2": "layernorm_after",
             "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
    state = {}
    for name, value in published().items():
        if name.startswith("patch_embed"):
            state[name.replace("patch_embed.proj", f"{prefix}embeddings.patch_embeddings.projection")] = value
        elif name.startswith("blocks"):
            _, block, part = name.split(".", 2)
            layer = f"{prefix}encoder.layer.{block}."
            if part == "attn.qkv.weight":
                for which, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                    state[f"{layer}attention.attention.{which}.weight"] = third
            elif part.endswith("_bias"):
                state[f"{layer}attention.attention.{biases[part[5]]}"] = value
            else:
                part, ending = part.rsplit(".", 1)
                state[f"{layer}{names[part]}.{ending}"] = value
        elif classifier:
            state[name.replace("head", "classifier")] = value
    if biases is V5:
        for block in range(TINY.blocks):
            state[f"{prefix}encoder.layer.{block}.attention.attention.key.bias"] = torch.zeros(TINY.channels)
    return state


V4 = {"q": "q_bias", "v": "v_bias"}
V5 = {"q": "query.bias", "v": "value.bias"}

FORMS = {
    "bare": lambda: published(),
    "model": lambda: {"model": published(), "optimizer": {"state": {}}, "epoch": 3},
    "module": lambda: {"module": published()},
    "script arguments": lambda: {"model": published(), "args": argparse.Namespace(lr=0.1, model="vit")},
    "data parallel": lambda: {"model": prefixed("module.", published())},
    "backbone": lambda: {"state_dict": prefixed("backbone.", without(published(), "head."))},
    "hub": lambda: prefixed("model.", without(published(), "head.")),
    "transformers 4, classifier": lambda: transformers_state("videomae.", V4),
    "transformers 5, classifier": lambda: transformers_state("videomae.", V5),
    "half precision": lambda: {"module": {name: value.half() for name, value in published().items()}},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_model(form, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(FORMS[form](), path)
    loaded = load(path)
    wanted = expected(published())
    if form == "half precision":
        wanted = {name: value.half().float() for name, value in wanted.items()}
    assert loaded.size is TINY
    assert loaded.final_norm
    assert loaded.identity == {"size": "vit_tiny", "source": str(path),
                               "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert dict(loaded.state_dict).keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(loaded.state_dict[name], value), name
    VideoTransformer(TINY, 2, 16).load_state_dict(loaded.state_dict)


@pytest.mark.parametrize("state, final_norm", [
    (pretrained(), True), ({"model": pretrained("module.")}, True),
    (transformers_state("", V4, classifier=False), False),
    ({**transformers_state("", V4, classifier=False), "layernorm.weight": torch.ones(TINY.channels),
      "layernorm.bias": torch.zeros(TINY.channels)}, True),
], ids=["pre-trained", "pre-trained, data parallel", "transformers", "transformers, pre-trained"])
def test_forms_without_a_classifier(state, final_norm, tmp_path):
    torch.save(state, tmp_path / "weights.pth")
    loaded = load(tmp_path / "weights.pth")
    assert loaded.final_norm == final_norm
    for name, value in without(expected(published()), "fc_norm").items():
        assert torch.equal(loaded.state_dict[name], value), name


def test_files_of_old_torch_and_safetensors_and_folders(tmp_path):
    torch.save(published(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    folder = tmp_path / "VideoMAEv2-Tiny"
    folder.mkdir()
    save_file(prefixed("model.", published()), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_config": {"num_heads": TINY.heads}}))
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    for path in (tmp_path / "old.pth", folder, folder / "model.safetensors"):
        loaded = load(path, "vit_tiny")
        assert torch.equal(loaded.state_dict["blocks.1.mlp.fc1.weight"], published()["blocks.1.mlp.fc1.weight"])
    assert loaded.sha256 == digest


def test_every_size_is_recognised_by_its_tensors():
    for size in SIZES.values():
        with torch.device("meta"):
            state = {name: torch.empty(shape) for name, shape in parameter_shapes(size).items()}
        assert weights._recognise(state) is size
        assert weights._fit(state, size).keys() == state.keys()


def changed(**changes):
    state = published() | changes
    return {name: value for name, value in state.items() if value is not None}


@pytest.mark.parametrize("state, told", [
    (changed(**{"blocks.2.mlp.fc1.bias": None}), "does not fit vit_tiny: tensors 1 missing (blocks.2.mlp.fc1.bias)"),
    (without(published(), "blocks.3."), "12 missing (blocks.3.norm1.weight, blocks.3.norm1.bias, blocks.3.attn."),
    (changed(cls_token=torch.zeros(1)), "1 not part of the model (cls_token)"),
    (changed(**{"blocks.0.gamma_1": torch.zeros(1)}), "1 not part of the model (blocks.0.gamma_1)"),
    (changed(**{"blocks.0.norm1.weight": torch.zeros(7)}), "(blocks.0.norm1.weight is (7,), not (128,))"),
    (changed(**{"blocks.0.norm1.weight": torch.zeros(128, dtype=torch.int8)}), "(128,) of torch.int8"),
    (changed(**{"patch_embed.proj.weight": torch.zeros(96, 3, 2, 16, 16)}), "of no known size"),
    (changed(**{"patch_embed.proj.weight": None}), "no patch_embed.proj.weight among"),
    (prefixed("student.", published()) | prefixed("teacher.", published()), "more than one patch_embed.proj.weight"),
    ({"epoch": 3}, "holds no tensors"),
    ([1, 2], "holds a list, not a state dict"),
    (torch.zeros(3), "holds a Tensor, not a state dict"),
])
def test_what_does_not_fit_is_named(state, told, tmp_path):
    torch.save(state, tmp_path / "weights.pth")
    refused(tmp_path / "weights.pth", told)


def refused(source, told, **options):
    with pytest.raises(WeightsError) as error:
        load(source, **options)
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


class Exploit:
    def __reduce__(self):
        return os.mkdir, ("exploited",)


@pytest.mark.parametrize("old", [False, True])
def test_code_is_never_run(old, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": published(), "args": Exploit()}, "weights.pth", _use_new_zipfile_serialization=not old)
    refused("weights.pth", "would run code when loaded (posix.mkdir)" if os.name == "posix" else "would run code")
    assert not os.path.exists("exploited")


@pytest.mark.parametrize("name, content, told", [
    ("empty.pth", b"", "not a checkpoint that torch can read"),
    ("page.pth", b"<html>quota exceeded</html>", "not a checkpoint that torch can read"),
    ("pointer.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "not a checkpoint"),
    ("empty.safetensors", b"", "not a whole safetensors file"),
    ("page.safetensors", b"<html>quota exceeded</html>", "not a whole safetensors file"),
])
def test_broken_files(name, content, told, tmp_path):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, told)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_truncated_files(name, tmp_path):
    path = tmp_path / name
    (save_file if name.endswith("safetensors") else torch.save)(published(), path)
    os.truncate(path, path.stat().st_size // 2)
    refused(path, "not a whole safetensors file" if name.endswith("safetensors") else "not a checkpoint that torch")


def test_heads_of_the_configuration_must_be_the_size_s(tmp_path):
    save_file(published(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"num_attention_heads": 16}')
    refused(tmp_path, "has 16 attention heads by its config.json, where vit_tiny has 2")
    (tmp_path / "config.json").write_text("[")
    refused(tmp_path, "not a model's configuration")


def test_sources_that_are_not_there(tmp_path):
    refused(tmp_path / "none.pth", "no such file or folder")
    refused("some/weights.pth", "no such file or folder")
    refused(tmp_path, "holds neither model.safetensors nor pytorch_model.bin")
    refused("random", "no model size named 'vit_x'", size="vit_x")
    refused(None, "no weights for vit_s on the Hugging Face hub; pass --weights FILE", size="vit_s")


def test_size_must_be_the_weights_own(tmp_path):
    torch.save(published(), tmp_path / "weights.pth")
    refused(tmp_path / "weights.pth", "holds vit_tiny, not vit_b", size="vit_b")


OFFLINE = """
import sys
from streamfeat.model.weights import WeightsError, load
try:
    print(load(*sys.argv[1:]).identity)
except WeightsError as error:
    sys.exit(str(error))
"""


def offline(home, *arguments):
    environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, "-c", OFFLINE, *arguments], capture_output=True, text=True, check=False,
                          env=environment)


def test_offline_with_an_empty_cache_says_what_to_do(tmp_path):
    ran = offline(tmp_path)
    assert ran.returncode == 1
    message, = ran.stderr.strip().splitlines()
    assert message.startswith("OpenGVLab/VideoMAEv2-Base: not in the local cache")
    assert "hf download OpenGVLab/VideoMAEv2-Base --local-dir VideoMAEv2-Base" in message
    assert "--weights FILE" in message


def test_offline_with_a_filled_cache_uses_it(tmp_path):
    # The cache as huggingface_hub lays it out.
    repository = tmp_path / "hub" / "models--lab--video-tiny"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    save_file(prefixed("model.", published()), snapshot / "model.safetensors")
    ran = offline(tmp_path, "lab/video-tiny")
    assert "'size': 'vit_tiny', 'source': 'lab/video-tiny'" in ran.stdout, ran.stderr


def test_random_weights_come_from_the_seed():
    one, again, other = load("random", "vit_tiny"), load("random", "vit_tiny"), load("random", "vit_tiny", seed=1)
    assert one.source == "random"
    assert one.sha256 == again.sha256 != other.sha256
    assert all(torch.equal(value, again.state_dict[name]) for name, value in one.state_dict.items())
    VideoTransformer(TINY).load_state_dict(one.state_dict)
