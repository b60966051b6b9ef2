"""Decoding and resizing to 224 x 224, frames per second: streamfeat's decoders against OpenCV, decord and torchcodec.

Every side ends with what a model takes: float32 tensors (n, 3, 224, 224) of value / 127.5 - 1 in RGB. Each peer runs
in two ways. "own": it resizes as it does by itself, in bytes, which rounds and, in decord and torchcodec, smooths too.
"exact": it decodes to full size and resizes in floats, which gives streamfeat's numbers. How far each side's frames
are from streamfeat's is measured and shown. One video at a time with as many threads as the machine has cores; each
side is a process of its own, and the sides take turns.

    python -m bench.decode [--quick] [--json FILE] [VIDEO ...]
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from argparse import SUPPRESS
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench import common
from bench.processes import Crashed, Worker, serve

if TYPE_CHECKING:
    from torch import Tensor

SIZE = 224
#: frames that are handed over at once
CHUNK = 16
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
#: turns that count, after one in which each side warms up and its frames are looked at
ROUNDS = 3
#: codec and container of the made videos
CODECS = {"h264": "mp4", "hevc": "mp4", "vp9": "webm", "mpeg4": "avi", "mjpeg": "avi"}
#: not the 856 x 480 of ShanghaiTech: at that width torchcodec 0.10 crashes when it resizes
SIZES = {240: (320, 240), 480: (848, 480), 1080: (1920, 1080)}
#: mean difference from streamfeat's frames, in grey levels, beyond which a side shows other pictures: resizing with
#: smoothing gave up to 3, exchanged channels 8 and more
MOST_GREY_LEVELS = 5.0

#: a path to normalised frames, in chunks
Side = Callable[[Path], "Iterator[Tensor]"]


# the sides -----------------------------------------------------------------------------------------------------------


def _streamfeat(decoder: Any) -> Side:
    import torch

    from streamfeat.recipe import Recipe
    from streamfeat.videos import Video

    recipe, device = Recipe(upscale_below=None), torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def run(path: Path) -> Iterator[Tensor]:
        stream = decoder.open(Video(path.stem, path), recipe, device)
        try:
            yield from stream
        finally:
            stream.close()

    return run


def _pyav() -> Side:
    from streamfeat.decode.pyav import PyAVDecoder

    return _streamfeat(PyAVDecoder(threads=CORES))


def _dali() -> Side:
    import torch

    from streamfeat.decode import dali

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    reason = dali.unavailable(device)
    if reason:
        raise ImportError(reason)
    return _streamfeat(dali.DaliDecoder(device))


def _normalised(pixels: np.ndarray) -> Tensor:
    """``(n, h, w, 3)``, bytes or floats from 0 to 255, to float32 ``(n, 3, h, w)``."""
    import torch

    out = torch.empty(len(pixels), 3, *pixels.shape[1:3])
    return out.copy_(torch.from_numpy(pixels).permute(0, 3, 1, 2)).mul_(1 / 127.5).sub_(1)


def _resized_exactly(frames: np.ndarray) -> np.ndarray:
    """Bytes ``(n, h, w, 3)`` to floats ``(n, 224, 224, 3)``: OpenCV's is the fastest of the peers' at this."""
    import cv2

    return np.stack([cv2.resize(frame.astype(np.float32), (SIZE, SIZE)) for frame in frames])


def _opencv(exact: bool) -> Side:
    import cv2

    def picture(frame: np.ndarray) -> np.ndarray:
        small = cv2.resize(frame.astype(np.float32) if exact else frame, (SIZE, SIZE))
        return cv2.cvtColor(small, cv2.COLOR_BGR2RGB)

    def run(path: Path) -> Iterator[Tensor]:
        capture, pictures = cv2.VideoCapture(str(path)), []
        while (found := capture.read())[0]:
            pictures.append(picture(found[1]))
            if len(pictures) == CHUNK:
                yield _normalised(np.stack(pictures))
                pictures = []
        if pictures:
            yield _normalised(np.stack(pictures))

    return run


def _decord(exact: bool) -> Side:
    import decord

    size = {} if exact else {"width": SIZE, "height": SIZE}

    def run(path: Path) -> Iterator[Tensor]:
        reader = decord.VideoReader(str(path), num_threads=0, **size)
        for start in range(0, len(reader), CHUNK):
            frames = reader.get_batch(range(start, min(start + CHUNK, len(reader)))).asnumpy()
            yield _normalised(_resized_exactly(frames) if exact else frames)

    return run


def _torchcodec(exact: bool) -> Side:
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import Resize

    def run(path: Path) -> Iterator[Tensor]:
        decoder = VideoDecoder(
            str(path), num_ffmpeg_threads=0, dimension_order="NHWC", seek_mode="approximate",
            transforms=None if exact else [Resize((SIZE, SIZE))],
        )  # fmt: skip
        for start in range(0, len(decoder), CHUNK):
            frames = decoder.get_frames_in_range(start, min(start + CHUNK, len(decoder))).data.numpy()
            yield _normalised(_resized_exactly(frames) if exact else frames)

    return run


def _on_gpu(frames: Tensor) -> Tensor:
    """Bytes ``(n, 3, h, w)`` on a GPU to normalised ``(n, 3, 224, 224)`` there."""
    from torch.nn.functional import interpolate

    return interpolate(frames.float(), size=(SIZE, SIZE), mode="bilinear").mul_(1 / 127.5).sub_(1)


def _torchcodec_cuda() -> Side:
    import torch
    from torchcodec.decoders import VideoDecoder

    if not torch.cuda.is_available():
        raise ImportError("no GPU here")

    def run(path: Path) -> Iterator[Tensor]:
        decoder = VideoDecoder(str(path), device="cuda")
        for start in range(0, len(decoder), CHUNK):
            yield _on_gpu(decoder.get_frames_in_range(start, min(start + CHUNK, len(decoder))).data)

    return run


def _pynvvideocodec() -> Side:
    import PyNvVideoCodec as nvc
    import torch

    if not torch.cuda.is_available():
        raise ImportError("no GPU here")

    def run(path: Path) -> Iterator[Tensor]:
        decoder = nvc.SimpleDecoder(str(path), use_device_memory=True, output_color_type=nvc.OutputColorType.RGB)
        for start in range(0, len(decoder), CHUNK):
            batch = decoder.get_batch_frames(min(CHUNK, len(decoder) - start))
            yield _on_gpu(torch.stack([torch.from_dlpack(frame) for frame in batch]).permute(0, 3, 1, 2))

    return run


OURS = "streamfeat PyAV"
SIDES: dict[str, Callable[[], Side]] = {
    OURS: _pyav, "streamfeat DALI": _dali,
    "OpenCV own": lambda: _opencv(False), "OpenCV exact": lambda: _opencv(True),
    "decord own": lambda: _decord(False), "decord exact": lambda: _decord(True),
    "torchcodec own": lambda: _torchcodec(False), "torchcodec exact": lambda: _torchcodec(True),
    "torchcodec CUDA": _torchcodec_cuda, "PyNvVideoCodec": _pynvvideocodec,
}  # fmt: skip


def _answer(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What the process of one side answers: one pass over ``path``; with ``keep`` the first chunk is saved there."""
    sides: list[Side] = []

    def answer(question: dict[str, Any]) -> dict[str, Any]:
        import torch

        try:
            if not sides:
                sides.append(SIDES[name]())
            count, first, started = 0, None, time.perf_counter()
            for frames in sides[0](Path(question["path"])):
                count += len(frames)
                first = frames if first is None else first
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            seconds = time.perf_counter() - started
        except ImportError as error:
            return {"skipped": str(error).splitlines()[0]}
        except Exception as error:  # a peer's own, of any kind: it is this side's answer
            return {"error": (str(error).splitlines() or [type(error).__name__])[0][:120]}
        if question.get("keep") and first is not None:
            np.save(question["keep"], first[:CHUNK].cpu().numpy())
        return {"frames": count, "seconds": seconds}

    return answer


# comparing them ------------------------------------------------------------------------------------------------------


class Comparison:
    """All sides on one video after another, each in a process that lives as long as it does not crash."""

    def __init__(self, sides: list[str]) -> None:
        self._workers = {name: Worker("bench.decode", "--serve", name) for name in sides}
        #: one line for each side and reason
        self.notes: list[str] = []

    def close(self) -> None:
        for worker in self._workers.values():
            worker.close()

    def measure(self, path: Path, rounds: int) -> dict[str, Any]:
        """Frames/s of each side that gives the right frames: the median of ``rounds`` turns."""
        with tempfile.TemporaryDirectory() as folder:
            delivered = {name: self._first_pass(name, path, Path(folder)) for name in list(self._workers)}
        ours = delivered[OURS]
        if ours is None:
            raise SystemExit(f"bench.decode: {path}: streamfeat gives no frames")
        sides: dict[str, dict[str, Any]] = {}
        for name, found in delivered.items():
            if found is None:
                continue
            difference = _grey_levels(found["first"], ours["first"])
            if difference is None or difference > MOST_GREY_LEVELS:
                self._note(f"refused: {name} shows other pictures than streamfeat: {path.name}")
            elif found["frames"] != ours["frames"]:
                self._note(f"refused: {name} gives {found['frames']} of {ours['frames']} frames: {path.name}")
            else:
                sides[name] = {"grey levels off": difference, "seconds": []}
        for _ in range(rounds):
            for name in list(sides):
                answer = self._ask(name, {"path": str(path)})
                if answer is None:
                    del sides[name]
                else:
                    sides[name]["seconds"].append(answer["seconds"])
        for found in sides.values():
            found["frames/s"] = ours["frames"] / statistics.median(found["seconds"])
        return {"video": path.name, "frames": ours["frames"], "sides": sides, **_ratios(sides)}

    def _first_pass(self, name: str, path: Path, folder: Path) -> dict[str, Any] | None:
        kept = folder / f"{name}.npy"
        answer = self._ask(name, {"path": str(path), "keep": str(kept)})
        if answer is None:
            return None
        return {"frames": answer["frames"], "first": np.load(kept) if kept.exists() else None}

    def _ask(self, name: str, question: dict[str, Any]) -> dict[str, Any] | None:
        try:
            answer = self._workers[name].ask(question)
        except Crashed as error:
            answer = {"error": str(error)}
        if "skipped" in answer:
            self._note(f"skipped: {name}: {answer['skipped']}")
            self._workers.pop(name).close()
        elif "error" in answer:
            self._note(f"skipped: {name}: {Path(question['path']).name}: {answer['error']}")
        else:
            return answer
        return None

    def _note(self, line: str) -> None:
        if line not in self.notes:
            self.notes.append(line)
            print(line, file=sys.stderr)


def _grey_levels(theirs: np.ndarray | None, ours: np.ndarray) -> float | None:
    """Mean absolute difference in grey levels of 255; None if it is not the same kind of thing at all."""
    if theirs is None or theirs.shape != ours.shape or theirs.dtype != ours.dtype:
        return None
    return float(np.abs(theirs - ours).mean() * 127.5)


def _ratios(sides: dict[str, dict[str, Any]]) -> dict[str, float | None]:
    """The faster of streamfeat's decoders over the fastest peer, turn by turn, of each kind."""

    def fastest(names: list[str]) -> str | None:
        return max(names, key=lambda name: sides[name]["frames/s"], default=None)

    ours = fastest([name for name in sides if name.startswith("streamfeat")])
    found: dict[str, float | None] = {}
    for kind, belongs in (("own", lambda name: not name.endswith("exact")), ("exact", lambda n: n.endswith("exact"))):
        peer = fastest([name for name in sides if not name.startswith("streamfeat") and belongs(name)])
        found[f"over {kind}"] = (
            common.median_ratio(sides[peer]["seconds"], sides[ours]["seconds"]) if ours and peer else None
        )
    return found


def make_videos(folder: Path, heights: list[int], codecs: list[str], frames: int, real: Path | None) -> list[Path]:
    """A made scene in each codec and size, and the pictures of ``real`` too; fewer frames where they are large."""
    from bench.media import encode, made_pictures, real_pictures

    made = []
    for height in heights:
        count = max(24, frames * 240 // height)
        shown = {"made": made_pictures(SIZES[height], count)}
        if real is not None:
            shown["real"] = real_pictures(real, SIZES[height], count)
        for kind, pictures in shown.items():
            made += [encode(pictures, folder / f"{kind}-{height}p-{codec}.{CODECS[codec]}", codec) for codec in codecs]
    return made


def report(results: list[dict[str, Any]]) -> str:
    names = [name for name in SIDES if any(name in result["sides"] for result in results)]
    rows = [
        {
            "video": result["video"], "frames": result["frames"],
            **{name: result["sides"].get(name, {}).get("frames/s") for name in names},
            "x best own": result["over own"], "x best exact": result["over exact"],
        }
        for result in results
    ]  # fmt: skip
    off = {
        name: [result["sides"][name]["grey levels off"] for result in results if name in result["sides"]]
        for name in names
    }
    delivers = [
        {
            "side": name, "gives": "float32 (n, 3, 224, 224)",
            "grey levels off, mean": statistics.mean(found), "most": max(found),
        }
        for name, found in off.items()
    ]  # fmt: skip
    return "\n\n".join([
        common.table("decode + resize to 224 x 224, frames/s; x: streamfeat over the fastest peer", rows),
        common.table(f"what each side delivers, against {OURS}", delivers),
    ])


def main(arguments: list[str] | None = None) -> None:
    parser = common.arguments(__doc__)
    parser.add_argument(
        "videos", nargs="*", type=Path, help="besides the made ones; the first one's pictures in all codecs too"
    )
    parser.add_argument("--codec", action="append", choices=CODECS, help="of the made videos (default: all)")
    parser.add_argument("--height", action="append", type=int, choices=SIZES, help="likewise")
    parser.add_argument("--frames", type=int, help="likewise, at 240p (default: 120, quick: 100)")
    parser.add_argument("--only", action="append", help="sides whose name contains this (and streamfeat's PyAV)")
    parser.add_argument("--serve", help=SUPPRESS)
    options = parser.parse_args(arguments)
    if options.serve:
        serve(_answer(options.serve))
        return
    frames = options.frames or (100 if options.quick else 120)
    names = [name for name in SIDES if name == OURS or not options.only or any(part in name for part in options.only)]
    comparison = Comparison(names)
    try:
        with tempfile.TemporaryDirectory() as folder:
            real = options.videos[0] if options.videos else None
            heights, codecs = options.height or list(SIZES), options.codec or list(CODECS)
            if options.quick and not options.height and not options.codec:
                paths = make_videos(Path(folder), [480], codecs, frames, None)
                paths += make_videos(Path(folder), [240, 1080], ["h264"], frames, None)
            else:
                paths = make_videos(Path(folder), heights, codecs, frames, real)
            results = [comparison.measure(path, ROUNDS) for path in [*paths, *options.videos]]
    finally:
        comparison.close()
    print(report(results))
    if options.json:
        common.save(options.json, "decode", {"videos": results, "notes": comparison.notes}, quick=options.quick)
    if options.chart:
        chart(options.chart, results)


def chart(path: Path, results: list[dict[str, Any]]) -> None:
    common.bars(
        path, "decode + resize to 224 x 224", "frames/s",
        {
            result["video"]: {name: side["frames/s"] for name, side in result["sides"].items()}
            for result in results
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
