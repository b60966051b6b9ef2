"""Short surveillance-like videos with a known event, for demos and trials: ``python -m streamfeat.synthetic FOLDER``.

A still street scene, people who walk through it, and, in most videos, one sudden event: a bright figure that
runs across, falls and lies there. The ground truth says in which frames the event is.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import pickle
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

FPS = 25


@dataclasses.dataclass(frozen=True)
class Scene:
    """One video: what is in it and how it is written."""

    name: str
    #: encoder, and the extension that decides the container
    encoder: str
    extension: str
    width: int
    height: int
    frames: int
    seed: int
    #: first and last frame of the event, None where nothing happens
    event: tuple[int, int] | None

    def labels(self) -> np.ndarray:
        """Ground truth, uint8 ``(frames,)``: 1 where the event is."""
        labels = np.zeros(self.frames, np.uint8)
        if self.event is not None:
            first, last = self.event
            labels[first : last + 1] = 1
        return labels


SCENES = (
    Scene("01_street", "libx264", ".mp4", 320, 240, 130, 1, (60, 95)),
    Scene("02_square", "libx265", ".mp4", 480, 360, 100, 2, (40, 79)),
    Scene("03_normal", "mpeg4", ".avi", 320, 240, 100, 3, None),
    Scene("04_station", "libvpx-vp9", ".webm", 320, 180, 115, 4, (30, 64)),
    Scene("05_yard", "mjpeg", ".avi", 240, 160, 85, 5, (48, 75)),
    Scene("06_plaza", "libsvtav1", ".mkv", 320, 240, 85, 6, (20, 50)),
)

_OPTIONS = {
    "libx264": {"preset": "veryfast", "crf": "22"},
    "libx265": {"preset": "ultrafast", "crf": "24", "x265-params": "log-level=none"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "30", "b": "0"},
    "libsvtav1": {"preset": "12", "crf": "35"},
    "mpeg4": {"qscale": "3"},
    "mjpeg": {"qscale": "3"},
}


def make_videos(folder: str | Path, scenes: tuple[Scene, ...] = SCENES) -> list[Path]:
    """Writes the videos, and beside them ``labels.pkl``: ``{name: uint8 (frames,)}``, 1 where the event is.

    The same scenes give the same pictures every time. A scene whose encoder this FFmpeg lacks is left out.

    Returns:
        The video files, in the order of the scenes.
    """
    import av

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    made, labels = [], {}
    for scene in scenes:
        if scene.encoder not in av.codecs_available:
            continue
        path = folder / (scene.name + scene.extension)
        _write(path, scene)
        made.append(path)
        labels[scene.name] = scene.labels()
    (folder / "labels.pkl").write_bytes(pickle.dumps(labels))
    return made


def pictures(scene: Scene) -> Iterator[np.ndarray]:
    """The frames of a scene: uint8 RGB ``(height, width, 3)``."""
    random = np.random.default_rng(scene.seed)
    street = _street(random, scene.width, scene.height)
    walkers = [_Walker.any(random) for _ in range(4)]
    for index in range(scene.frames):
        canvas = street.copy()
        # the farther ones first, so that the nearer ones walk in front of them
        for walker in sorted(walkers, key=lambda walker: walker.depth):
            walker.draw(canvas, index)
        if scene.event is not None and scene.event[0] <= index <= scene.event[1]:
            _draw_event(canvas, (index - scene.event[0]) / (scene.event[1] - scene.event[0]), index)
        noise = random.normal(0, 2.0, canvas.shape[:2])[..., None]
        yield np.clip(canvas + noise, 0, 255).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class _Walker:
    #: 0 at the far side of the street to 1 at the near one
    depth: float
    #: widths of the picture a frame; negative to the left
    speed: float
    start: float
    phase: float
    coat: np.ndarray
    trousers: np.ndarray

    @classmethod
    def any(cls, random: np.random.Generator) -> _Walker:
        return cls(
            depth=random.uniform(0.05, 0.9),
            speed=random.choice([-1, 1]) * random.uniform(0.002, 0.004),
            start=random.uniform(0, 1),
            phase=random.uniform(0, 2 * np.pi),
            coat=random.uniform(40, 150, 3),
            trousers=random.uniform(25, 80, 3),
        )

    def draw(self, canvas: np.ndarray, index: int) -> None:
        # walkers leave on one side and come back on the other, out of sight in between
        x = (self.start + self.speed * index) % 1.3 - 0.15
        _draw_person(canvas, x, self.depth, self.phase + index * 0.35, self.coat, self.trousers)


def _street(random: np.random.Generator, width: int, height: int) -> np.ndarray:
    """The still background, float ``(height, width, 3)``: sky, houses with windows, pavement, street."""
    y, x = np.mgrid[0:height, 0:width] / [[[height]], [[width]]]
    canvas = np.empty((height, width, 3))
    canvas[:] = np.stack([150 + 60 * y, 170 + 50 * y, 200 + 20 * y], axis=-1)
    left = 0.0
    while left < 1:
        right = left + random.uniform(0.14, 0.3)
        roof = random.uniform(0.08, 0.25)
        house = (x >= left) & (x < right) & (y > roof) & (y < 0.5)
        canvas[house] = random.uniform(90, 170) * np.asarray([1.0, 0.93, 0.85])
        window = house & (np.sin((x - left) * 75) > 0.35) & (np.sin((y - roof) * 62) > 0.3) & (y < 0.44)
        canvas[window] = random.uniform(45, 80)
        left = right
    canvas[(y >= 0.5) & (y < 0.58)] = (165, 160, 152)
    road = y >= 0.58
    canvas[road] = (95 + 25 * (y[road] - 0.58))[:, None] * np.asarray([1.0, 1.0, 1.02])
    canvas[(np.abs(y - 0.76) < 0.008) & (np.sin(x * 40) > 0)] = (205, 205, 195)
    texture = random.normal(0, 4, (height, width))
    return canvas + texture[..., None]


def _draw_person(
    canvas: np.ndarray, x: float, depth: float, phase: float, coat: np.ndarray, trousers: np.ndarray, fallen: float = 0
) -> None:
    """Draws a person whose feet are at ``x`` (share of the width); ``fallen`` from 0, upright, to 1, lying."""
    height, width = canvas.shape[:2]
    size = (0.16 + 0.2 * depth) * height
    feet = np.asarray([x * width, (0.56 + 0.4 * depth) * height])
    lean = fallen * np.pi / 2
    up = np.asarray([np.sin(lean), -np.cos(lean)]) * size
    swing = np.sin(phase) * 0.16 * size * (1 - fallen)

    hips, neck, head = feet + 0.47 * up, feet + 0.82 * up, feet + 0.92 * up
    shadow = feet + [0.12 * size, 0]
    _draw_limb(canvas, shadow - [0.2 * size, 0], shadow + [0.3 * size, 0], 0.05 * size, np.full(3, 55.0), 0.5)
    for side in (-1, 1):
        _draw_limb(canvas, hips, feet + [side * swing, 0], 0.06 * size, trousers)
    for side in (-1, 1):
        _draw_limb(canvas, neck, hips + [side * swing, -0.04 * size], 0.04 * size, coat * 0.85)
    _draw_limb(canvas, hips, neck, 0.1 * size, coat)
    _draw_limb(canvas, head, head, 0.08 * size, np.asarray([205.0, 165.0, 140.0]))


def _draw_event(canvas: np.ndarray, progress: float, index: int) -> None:
    """A figure in bright yellow runs in from the left, falls when two thirds are over, and stays down."""
    fallen = float(np.clip((progress - 0.66) / 0.12, 0, 1))
    x = -0.05 + 0.75 * min(progress / 0.7, 1)
    bright, dark = np.asarray([250.0, 215.0, 30.0]), np.asarray([150.0, 25.0, 25.0])
    _draw_person(canvas, x, 0.75, index * 1.1, bright, dark, fallen)


def _draw_limb(
    canvas: np.ndarray, start: np.ndarray, end: np.ndarray, radius: float, colour: np.ndarray, opacity: float = 1.0
) -> None:
    """A thick line with round ends and soft edges, clipped to the picture."""
    height, width = canvas.shape[:2]
    low = np.floor(np.minimum(start, end) - radius - 1).astype(int).clip(0)
    high = np.ceil(np.maximum(start, end) + radius + 2).astype(int).clip(None, [width, height])
    if (low >= high).any():
        return
    y, x = np.mgrid[low[1] : high[1], low[0] : high[0]]
    along = end - start
    length = max(float(along @ along), 1e-9)
    share = (((x - start[0]) * along[0] + (y - start[1]) * along[1]) / length).clip(0, 1)
    distance = np.hypot(x - start[0] - share * along[0], y - start[1] - share * along[1])
    cover = ((radius + 0.5 - distance).clip(0, 1) * opacity)[..., None]
    region = canvas[low[1] : high[1], low[0] : high[0]]
    region += cover * (colour - region)


@contextlib.contextmanager
def priority_kept() -> Iterator[None]:
    """SVT-AV1, where root runs it, makes the thread that calls it, and all that come of it, real-time threads.

    Of these, two that wait for each other can keep all else from the processors for ever.
    """
    if not hasattr(os, "sched_setscheduler"):
        yield
        return
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)


def _write(path: Path, scene: Scene) -> None:
    import av

    # SVT-AV1 prints its settings past FFmpeg's log, unless told to print errors only
    os.environ.setdefault("SVT_LOG", "1")
    with priority_kept(), av.open(str(path), "w") as output:
        # one thread: some encoders give other bytes with more
        stream = output.add_stream(scene.encoder, rate=FPS, options=_OPTIONS[scene.encoder] | {"threads": "1"})
        stream.width, stream.height = scene.width, scene.height
        stream.pix_fmt = "yuvj420p" if scene.encoder == "mjpeg" else "yuv420p"
        for index, rgb in enumerate(pictures(scene)):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format=stream.pix_fmt)
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m streamfeat.synthetic",
        description="Make short videos with a known event, and labels.pkl beside them: which frames it is in.",
    )
    parser.add_argument("folder", metavar="FOLDER", help="where to write them; made if it is not there")
    try:
        for file in make_videos(parser.parse_args().folder):
            print(file)
    except OSError as error:
        parser.exit(1, f"{parser.prog}: {error.filename}: {error.strerror or error}\n")


if __name__ == "__main__":
    main()
