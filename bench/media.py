"""Videos for the benchmarks: made scenes of any size and codec."""

from __future__ import annotations

from pathlib import Path

from streamfeat.synthetic import Scene, make_videos

_ENCODERS = {
    "h264": "libx264", "hevc": "libx265", "vp9": "libvpx-vp9", "mpeg4": "mpeg4", "mjpeg": "mjpeg", "av1": "libsvtav1",
}  # fmt: skip


def surveillance_video(path: Path, *, codec: str, size: tuple[int, int], frames: int) -> Path:
    """Write a surveillance-like scene of ``size`` (width, height) to ``path``, whose extension is the container."""
    event = (frames // 2, frames // 2 + min(40, frames // 4))
    scene = Scene(path.stem, _ENCODERS[codec], path.suffix, *size, frames, seed=1, event=event)
    (made,) = make_videos(path.parent, (scene,))
    return made
