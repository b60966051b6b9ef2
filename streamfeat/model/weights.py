"""Weights: any published VideoMAE V2 checkpoint to the state dict of a ``VideoTransformer``. No code is run.

Forms understood, in ``.pth``, ``.pt``, ``.bin`` or ``.safetensors``:

- OpenGVLab's own: state dict under ``model`` or ``module``; fine-tuned and distilled (``head.*``, ``fc_norm.*``) or
  pre-trained (prefix ``encoder.`` or ``backbone.``, beside a decoder); prefixes left by ``DataParallel``.
- ``OpenGVLab/VideoMAEv2-*`` on the Hugging Face hub: prefix ``model.``.
- Hugging Face transformers' ``VideoMAEModel``, ``VideoMAEForVideoClassification`` and
  ``VideoMAEForPreTraining``, with the biases of query and value as transformers 4 (``q_bias``) and 5
  (``query.bias``) name them.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from streamfeat.model.vit import SIZES, ModelError, ModelSize, parameter_shapes
from streamfeat.text import first_line

#: weights made from a seed; their features mean nothing
RANDOM = "random"

#: published on the Hugging Face hub; vit_s is not, but is linked from OpenGVLab's model zoo
HUB_IDS = {
    "vit_b": "OpenGVLab/VideoMAEv2-Base",
    "vit_l": "OpenGVLab/VideoMAEv2-Large",
    "vit_h": "OpenGVLab/VideoMAEv2-Huge",
    "vit_g": "OpenGVLab/VideoMAEv2-giant",
}
DEFAULT = HUB_IDS["vit_b"]

#: in the order in which they are looked for in a folder or on the hub
FILE_NAMES = ("model.safetensors", "pytorch_model.bin")

#: training scripts put the state dict under one of these, beside optimiser and arguments
_WRAPPERS = ("model", "module", "state_dict")

_PUBLISHED_ANCHOR = "patch_embed.proj.weight"
_TRANSFORMERS_ANCHOR = "embeddings.patch_embeddings.projection.weight"

#: what checkpoints hold beside the encoder: classifier, decoder of the pre-training, positions (fixed, computed)
_NOT_ENCODER = re.compile(
    r"(^|\.)(head|classifier|decoder|encoder_to_decoder|mask_token|pos_embed|position_embeddings)(\.|$)"
)

_TRANSFORMERS_NAMES = {
    "attention.output.dense": "attn.proj",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}


class WeightsError(ModelError):
    """Weights that cannot be had or do not fit; one line that names the file and what is wrong."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights ready for a ``VideoTransformer`` of ``size``."""

    #: float32, named as the parameters of ``VideoTransformer``; memory-mapped from the file where it can be
    state_dict: Mapping[str, Tensor]
    size: ModelSize
    #: what was asked for: a path, a Hugging Face id, or ``random``
    source: str
    #: of the file's bytes; for random weights, of names and values
    sha256: str

    @property
    def final_norm(self) -> bool:
        """Whether the checkpoint has the norm after the last block."""
        return "fc_norm.weight" in self.state_dict

    @property
    def identity(self) -> dict[str, str]:
        return {"size": self.size.name, "source": self.source, "sha256": self.sha256}


def load(source: str | Path | None = None, size: str | None = None, *, seed: int = 0) -> Weights:
    """Weights from ``source``, for the size that their shapes tell.

    Args:
        source: a checkpoint file, a folder holding ``model.safetensors`` or ``pytorch_model.bin``, a Hugging
            Face id, or ``random``. None: the published weights of ``size``.
        size: a name out of ``SIZES``; the weights must be of it. None: what the weights are, random ones vit_b.
        seed: of random weights.

    Raises WeightsError, one line, on anything that is missing, unreadable, of another model, or would run code.
    """
    if size is not None and size not in SIZES:
        raise WeightsError(f"no model size named {size!r}; there are {', '.join(SIZES)}")
    if source is None:
        source = DEFAULT if size is None else _hub_id(size)
    source = str(source)
    if not source:
        raise WeightsError("the weights are an empty name; give a file, a Hugging Face id, or random")
    if source == RANDOM:
        return _random(SIZES[size or "vit_b"], seed)
    path = _locate(source)
    weights = _from_file(path, source)
    if size not in (None, weights.size.name):
        raise WeightsError(f"{source}: holds {weights.size.name}, not {size}; leave the model size out"
                           f" or give other weights")
    return weights


def _hub_id(size: str) -> str:
    try:
        return HUB_IDS[size]
    except KeyError:
        raise WeightsError(f"there are no weights for {size} on the Hugging Face hub; pass --weights FILE"
                           f" (or --weights random to try things out)") from None


def _random(size: ModelSize, seed: int) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    state, digest = {}, hashlib.sha256()
    for name, shape in parameter_shapes(size).items():
        if name.endswith("bias"):
            value = torch.zeros(shape)
        elif "norm" in name:
            value = torch.ones(shape)
        else:
            value = torch.randn(shape, generator=generator).mul_(torch.Size(shape[1:]).numel() ** -0.5)
        digest.update(name.encode())
        digest.update(value.numpy().data)
        state[name] = value
    return Weights(state, size, RANDOM, digest.hexdigest())


# Finding the file


def _locate(source: str) -> Path:
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.is_dir():
        return _in_folder(path)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not source.endswith((".pth", ".pt", ".bin", ".safetensors")):
        return _from_hub(source)
    raise WeightsError(f"{source}: no such file or folder, nor the form of a Hugging Face id (owner/name)")


def _in_folder(folder: Path) -> Path:
    for name in FILE_NAMES:
        if (folder / name).is_file():
            return folder / name
    raise WeightsError(f"{folder}: holds neither {' nor '.join(FILE_NAMES)}; give the checkpoint file itself")


def _from_hub(repo: str) -> Path:
    """The checkpoint in the local cache, downloaded if it is not there yet."""
    import huggingface_hub
    from huggingface_hub import errors
    from huggingface_hub.utils import logging

    # each of its retries would be a warning; the one error below says it all
    logging.set_verbosity_error()

    def fetch(name: str, **options: bool) -> Path:
        return Path(huggingface_hub.hf_hub_download(repo, name, **options))

    def fetch_with_config(name: str, **options: bool) -> Path:
        path = fetch(name, **options)
        with contextlib.suppress(errors.EntryNotFoundError, errors.LocalEntryNotFoundError):
            fetch("config.json", **options)
        return path

    for name in FILE_NAMES:
        with contextlib.suppress(errors.LocalEntryNotFoundError):
            return fetch_with_config(name, local_files_only=True)
    try:
        for name in FILE_NAMES:
            try:
                return fetch_with_config(name)
            except errors.LocalEntryNotFoundError:
                raise
            except errors.EntryNotFoundError:
                continue
    except errors.RepositoryNotFoundError:
        raise WeightsError(f"{repo}: no such model on the Hugging Face hub, or it needs `hf auth login`") from None
    except Exception as error:
        folder = repo.partition("/")[2]
        raise WeightsError(
            f"{repo}: not in the local cache, and the Hugging Face hub gives no answer ({first_line(error)}); where"
            f" there is network run `hf download {repo} --local-dir {folder}`, bring the folder here and pass"
            f" --weights {folder}; or pass any checkpoint by --weights FILE"
        ) from error
    raise WeightsError(f"{repo}: has neither {' nor '.join(FILE_NAMES)}")


# Reading it


def _from_file(path: Path, source: str) -> Weights:
    try:
        tensors = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
        if not tensors:
            raise WeightsError("holds no tensors")
        named = _encoder_tensors(tensors)
        size = _recognise(named)
        _check_heads(path.parent / "config.json", size)
        state = _fit(named, size)
        digest = _sha256(path)
    except WeightsError as error:
        raise WeightsError(f"{source}: {error}") from error.__cause__
    except OSError as error:
        raise WeightsError(f"{source}: {error.strerror or first_line(error)}") from error
    return Weights(state, size, source, digest)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    import safetensors
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except safetensors.SafetensorError as error:
        raise WeightsError(f"not a whole safetensors file ({first_line(error)})") from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    # Published checkpoints carry the training script's arguments: a Namespace holds data and runs nothing.
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            try:
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError:  # files of before torch 1.6 cannot be memory-mapped
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(_why_refused(error)) from error
    except OSError:
        raise
    except Exception as error:
        raise WeightsError(f"not a checkpoint that torch can read ({first_line(error)})") from error
    return _unwrap(content)


def _why_refused(error: pickle.UnpicklingError) -> str:
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    if found is None:
        return "not a checkpoint that torch can read (no pickled tensors)"
    return (f"would run code when loaded ({found[1]}), which is refused; save the state dict alone"
            f" (torch.save(model.state_dict(), FILE))")


def _unwrap(content: object) -> dict[str, Tensor]:
    while isinstance(content, Mapping):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        content = inner
    raise WeightsError(f"holds a {type(content).__name__}, not a state dict")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


# Naming its tensors as ours


def _encoder_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The encoder's tensors under our names, without prefix, query, key and value joined."""
    anchors = {key: anchor for key in tensors for anchor in (_PUBLISHED_ANCHOR, _TRANSFORMERS_ANCHOR)
               if key == anchor or key.endswith(f".{anchor}")}
    if len(anchors) != 1:
        what = "no" if not anchors else "more than one"
        raise WeightsError(f"not one VideoMAE encoder: {what} {_PUBLISHED_ANCHOR} among {len(tensors)} tensors"
                           f" ({_some(anchors or tensors)})")
    (key, anchor), = anchors.items()
    prefix = key.removesuffix(anchor)
    named = {}
    for key, value in tensors.items():
        name = key.removeprefix(prefix)
        if not _NOT_ENCODER.search(name):
            named[_ours(name) if anchor == _TRANSFORMERS_ANCHOR else name] = value
    _join_qkv(named)
    for ending in ("weight", "bias"):
        for published in (f"norm.{ending}", f"layernorm.{ending}"):
            if published in named:
                named.setdefault(f"fc_norm.{ending}", named.pop(published))
    return named


def _ours(name: str) -> str:
    """Our name of a tensor that Hugging Face transformers names ``name``."""
    name = name.replace("embeddings.patch_embeddings.projection", "patch_embed.proj")
    layer = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)\.(\w+)", name)
    if layer is None:
        return name
    block, part, ending = layer.groups()
    part = part.replace("attention.attention", "attn")
    return f"blocks.{block}.{_TRANSFORMERS_NAMES.get(part, part)}.{ending}"


def _join_qkv(named: dict[str, Tensor]) -> None:
    """Make ``attn.qkv`` of whatever stands for it. Published models have no bias for the key: zero."""
    for prefix in {key[: key.index("attn.") + len("attn.")] for key in named if "attn." in key}:
        separate = [f"{prefix}{part}.weight" for part in ("query", "key", "value")]
        if all(key in named for key in separate):
            named[f"{prefix}qkv.weight"] = torch.cat([named.pop(key) for key in separate])
        for q, v in (("q_bias", "v_bias"), ("query.bias", "value.bias")):
            if f"{prefix}{q}" in named and f"{prefix}{v}" in named:
                query, value = named.pop(f"{prefix}{q}"), named.pop(f"{prefix}{v}")
                key = named.pop(f"{prefix}key.bias", torch.zeros_like(query))
                named[f"{prefix}qkv.bias"] = torch.cat([query, key, value])


# Checking that they fit


def _recognise(named: Mapping[str, Tensor]) -> ModelSize:
    shape = tuple(named[_PUBLISHED_ANCHOR].shape)
    for size in SIZES.values():
        if shape == parameter_shapes(size)[_PUBLISHED_ANCHOR]:
            return size
    known = ", ".join(f"{size.name} ({size.channels}, {size.patch})" for size in SIZES.values())
    raise WeightsError(f"of no known size: {_PUBLISHED_ANCHOR} is {shape}; known channels and patches: {known}")


def _check_heads(config: Path, size: ModelSize) -> None:
    """The number of heads is in no tensor's shape; a wrong one gives plausible nonsense."""
    if not config.is_file():
        return
    try:
        content = json.loads(config.read_text(encoding="utf-8"))
        heads = content.get("num_attention_heads") or content.get("model_config", {}).get("num_heads")
    except (ValueError, AttributeError):
        raise WeightsError(f"{config} beside it is not a model's configuration; mend or remove it") from None
    if heads not in (None, size.heads):
        raise WeightsError(f"has {heads} attention heads by its config.json, where {size.name} has {size.heads}")


def _fit(named: Mapping[str, Tensor], size: ModelSize) -> dict[str, Tensor]:
    shapes = parameter_shapes(size, final_norm="fc_norm.weight" in named or "fc_norm.bias" in named)
    missing = [name for name in shapes if name not in named]
    extra = [name for name in named if name not in shapes]
    misshapen = [
        f"{name} is {_describe(named[name])}, not {shape}"
        for name, shape in shapes.items()
        if name in named and (tuple(named[name].shape) != shape or not named[name].is_floating_point())
    ]
    found = [(missing, "missing"), (extra, "not part of the model"), (misshapen, "of another shape")]
    if problems := [f"{len(names)} {what} ({_some(names)})" for names, what in found if names]:
        raise WeightsError(f"does not fit {size.name}: tensors {'; '.join(problems)}")
    return {name: named[name].float() for name in shapes}


def _describe(value: Tensor) -> str:
    shape = str(tuple(value.shape))
    return shape if value.is_floating_point() else f"{shape} of {value.dtype}"


def _some(names: Iterable[str], count: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
