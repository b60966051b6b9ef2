"""What every stage of the measurement works with: how much is measured, where its rows go, models and clips."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CLIP_FRAMES = 16
IMAGE_SIZE = 224
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Scale:
    """How much is measured."""

    #: the larger and the smaller model
    models: tuple[str, str]
    #: width and height of the made videos, by name
    sizes: dict[str, tuple[int, int]]
    #: frames that are coded once, and how often they come again in each length
    base_frames: int
    lengths: dict[str, int]
    #: videos of a whole run, for the larger and the smaller model: how many, and of which length
    runs: tuple[tuple[int, str], tuple[int, str]]
    #: frames of a video of a minute, and of the long one whose memory is measured against such
    minute: int
    long: int
    #: seconds that one rate is measured for
    seconds: float
    batches: tuple[int, ...]


FULL = Scale(
    ("vit_g", "vit_b"), {"480p": (856, 480), "1080p": (1920, 1080)}, 64, {"short": 12, "middle": 36, "long": 100},
    ((8, "middle"), (16, "long")), 1500, 90_000, 1.5, (16, 32, 64),
)  # fmt: skip
QUICK = dataclasses.replace(
    FULL, lengths={"short": 6, "middle": 12, "long": 25}, runs=((4, "short"), (8, "long")), long=15_000, seconds=0.5,
    batches=(16, 64),
)  # fmt: skip
#: for a machine without a GPU: every line of these modules that can run there does
TINY = Scale(
    ("vit_tiny", "vit_tiny"), {"480p": (128, 96), "1080p": (160, 120)}, 16, {"short": 1, "middle": 2, "long": 2},
    ((2, "short"), (2, "short")), 16, 48, 0.01, (1,),
)  # fmt: skip


class Stage:
    """What a stage works with, and where its rows go: each is on disk as soon as it is there."""

    def __init__(self, name: str, folder: Path, device: str, scale: Scale, seconds: float, videos: list[Path]) -> None:
        self.name, self.folder, self.device, self.scale, self.videos = name, folder, device, scale, videos
        self._ends = time.monotonic() + seconds
        self._rows: list[Row] = []

    def row(self, **values: Any) -> Row:
        self._rows.append(values)
        (self.folder / f"{self.name}.json").write_text(json.dumps(self._rows))
        return values

    @contextlib.contextmanager
    def attempt(self, **labels: Any) -> Iterator[None]:
        """Whatever goes wrong in here becomes a row with these labels and the error."""
        try:
            yield
        except Exception as error:
            if type(error).__name__ == "OutOfMemoryError":
                self.empty()
            traceback.print_exc()
            self.row(**labels, error=one_line(error))

    def left(self) -> float:
        return self._ends - time.monotonic()

    def rows_of(self, name: str) -> list[Row]:
        """What an earlier stage has measured."""
        try:
            return json.loads((self.folder / f"{name}.json").read_text())
        except OSError:
            return []

    # what all of them need

    @property
    def on_gpu(self) -> bool:
        return self.device != "cpu"

    def synchronise(self) -> None:
        if self.on_gpu:
            import torch

            torch.cuda.synchronize()

    def empty(self) -> None:
        if self.on_gpu:
            import torch

            torch.cuda.empty_cache()

    def torch_device(self) -> Any:
        import torch

        return torch.device("cuda", 0) if self.on_gpu else torch.device("cpu")

    def path(self, kind: str, length: str, number: int = 0) -> Path:
        return self.folder / "videos" / f"{kind}-{length}-{number}.mp4"

    def weights(self, model: str) -> Path:
        return self.folder / f"{model}.pth"

    def encoder(self, weights: Any, precision: str, *, batch: int | str = "auto", engine: str = "graph") -> Any:
        """An encoder of weights that are loaded already: reading vit_g's file takes seconds."""
        from streamfeat.model import Encoder

        return Encoder(
            weights, self.torch_device(), precision, ("mean", "std", "max"), IMAGE_SIZE, CLIP_FRAMES, batch, engine
        )

    def load(self, model: str) -> Any:
        from streamfeat.model import weights

        return weights.load(self.weights(model))

    def clips(self, count: int) -> Any:
        """Decoded, normalised clips ``(count, 3, T, S, S)``, float32, from the videos given or the made ones."""
        import torch

        from streamfeat.clips import ClipWindow
        from streamfeat.decode.pyav import PyAVDecoder
        from streamfeat.recipe import Recipe
        from streamfeat.videos import Video

        found: list[Any] = []
        for video in self.videos or [self.path(kind, "middle") for kind in self.scale.sizes]:
            stream = PyAVDecoder(threads=4).open(Video(video.stem, video), Recipe(), torch.device("cpu"))
            window = ClipWindow(Recipe(), torch.empty)
            for chunk in stream:
                found += [clip.frames for clip in window.push(chunk)]
                if len(found) >= count:
                    break
            stream.close()
            if len(found) >= count:
                break
        return torch.stack(found[:count])


def one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
