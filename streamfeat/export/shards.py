"""The layout ``safetensors``: a few large files, read in any order without reading the rest.

Training on weak labels draws videos at random, in pairs of normal and anomalous, and windows of long videos.
A tar of a webdataset has to be read from front to back for that, with a buffer of shuffled samples in memory;
a safetensors file is mapped, and a slice of one video costs the pages that hold it, shared by all workers. It
needs no HDF5 library, and nothing in it can run.

``features-00001-of-00003.safetensors`` holds ``features/<video>`` and, where there are labels, ``labels/<video>``,
one a clip; ``index.json`` says which video is where.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from streamfeat.export.layouts import Job
from streamfeat.stored import aligned_clips

#: bytes of features in one file, unless a single video has more
SHARD_BYTES = 1 << 30
_DTYPES = {"<f4": "F32", "<f2": "F16", "|u1": "U8"}


def safetensors(job: Job) -> None:
    dtype = job.store.dtype.str
    row_bytes = math.prod(job.selection.row_shape) * job.store.dtype.itemsize
    shards = _plan(job, row_bytes)
    job.destination.claim("features-*-of-*.safetensors", "index.json")
    index: dict[str, Any] = {"recipe": job.store.recipe, "model": job.store.model, "videos": {}}
    for number, videos in enumerate(shards, 1):
        file = f"features-{number:05d}-of-{len(shards):05d}.safetensors"
        job.destination.add(file, functools.partial(_chunks, job, videos, dtype))
        for name in videos:
            index["videos"][name] = {"file": file, "clips": job.clips(name), "frames": job.store[name].frames,
                                     "video_label": job.label(name)}
    job.destination.add("index.json", lambda: [json.dumps(index, indent=1).encode()])


def _plan(job: Job, row_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = []
    room = 0
    for name in job.videos:
        size = job.clips(name) * row_bytes
        if not shards or size > room:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append(name)
        room -= size
    return shards


def _clip_labels(job: Job, name: str) -> np.ndarray | None:
    video = job.store[name]
    if video.labels is None or video.aligned_clips is None:
        return None
    return video.labels.clip[: aligned_clips(video)]


def _chunks(job: Job, videos: Sequence[str], dtype: str) -> Iterator[Any]:
    """A file in the format of safetensors: the length of the header, the header, the tensors without gaps."""
    labels = {name: values for name in videos if (values := _clip_labels(job, name)) is not None}
    # labels, whose size is odd at times, come last: features stay aligned for whoever maps the file
    tensors = [(f"features/{name}", dtype, (job.clips(name), *job.selection.row_shape)) for name in videos]
    tensors += [(f"labels/{name}", values.dtype.str, values.shape) for name, values in labels.items()]
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "recipe": json.dumps(job.store.recipe)}}
    end = 0
    for key, kind, shape in tensors:
        start, end = end, end + math.prod(shape) * np.dtype(kind).itemsize
        header[key] = {"dtype": _DTYPES[kind], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little")
    yield text
    blocks = itertools.chain.from_iterable(
        job.selection.blocks(job.store[name], job.clips(name), dtype=dtype) for name in videos)
    for block in itertools.chain(blocks, labels.values()):
        yield np.ascontiguousarray(block).data if block.size else b""
