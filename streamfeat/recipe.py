"""Recipes: everything that decides the numbers, as one frozen value with named presets."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

#: ImageNet statistics on the 0..1 scale (Kinetics evaluation of VideoMAE V2, Hugging Face image processor).
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

STATISTICS = ("mean", "std", "max", "fc_norm")
MAX_CLIP_FRAMES = 1024
MAX_IMAGE_SIZE = 2048


class RecipeError(ValueError):
    """A recipe that cannot be: an unknown name or field, or values that contradict each other."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a video becomes features: sampling, geometry, colour, normalisation, pooling.

    Clip ``i`` holds the frames ``i * clip_stride + k * frame_step`` for ``k < clip_frames``.

    Geometry, in this order: a frame whose short side is below ``upscale_below`` is scaled up to it on bytes;
    then it is either resized (``resize``) straight to ``image_size``, or, with ``resize_short``, its short
    side is brought to that length and one, five or ten crops of ``image_size`` are taken. Resizing is
    bilinear, without antialiasing, on floats. Pixels are then ``(value / 255 - mean) / std`` per channel.
    """

    name: str = "wsvad"
    #: frames the model sees at once
    clip_frames: int = 16
    #: frames from the start of one clip to the start of the next
    clip_stride: int = 16
    #: frames from one frame of a clip to the next
    frame_step: int = 1
    #: frames left over after the last whole clip: dropped, or made a clip by repeating the last frame
    tail: Literal["drop", "pad"] = "drop"
    #: pixels; short sides below this are scaled up first (Fed_WSVAD: 226), None: never
    upscale_below: int | None = 226
    resize: Literal["stretch", "center-crop"] = "stretch"
    #: pixels; the short side is brought to this before cropping, None: to ``image_size``
    resize_short: int | None = None
    #: 1 (centre), 5 (corners, centre) or 10 (the same five, then those of the mirrored frame)
    crops: Literal[1, 5, 10] = 1
    #: pixels, height and width of what the model sees
    image_size: int = 224
    channel_order: Literal["rgb", "bgr"] = "rgb"
    #: per channel, on the 0..1 scale, in ``channel_order``
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    #: statistics over the tokens of the last block (``std`` unbiased), or ``fc_norm``: mean, then the final norm
    stats: tuple[str, ...] = ("mean", "std", "max")

    def __post_init__(self) -> None:
        for field in ("mean", "std", "stats"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        self._check("clip_frames", 2 <= self.clip_frames <= MAX_CLIP_FRAMES and self.clip_frames % 2 == 0,
                    f"an even number from 2 to {MAX_CLIP_FRAMES} (the model joins frames in pairs)")
        self._check("clip_stride", 1 <= self.clip_stride <= 1_000_000, "a number from 1 to 1000000")
        self._check("frame_step", 1 <= self.frame_step <= 10_000, "a number from 1 to 10000")
        self._check("tail", self.tail in ("drop", "pad"), "'drop' or 'pad'")
        self._check("upscale_below", self.upscale_below is None or 1 <= self.upscale_below <= MAX_IMAGE_SIZE,
                    f"none or a number of pixels up to {MAX_IMAGE_SIZE}")
        self._check("resize", self.resize in ("stretch", "center-crop"), "'stretch' or 'center-crop'")
        self._check("image_size", 14 <= self.image_size <= MAX_IMAGE_SIZE,
                    f"a number of pixels from 14 to {MAX_IMAGE_SIZE}")
        self._check("resize_short",
                    self.resize_short is None or self.image_size <= self.resize_short <= MAX_IMAGE_SIZE,
                    f"none or a number of pixels from the image size ({self.image_size}) to {MAX_IMAGE_SIZE}")
        self._check("crops", self.crops in (1, 5, 10), "1, 5 or 10")
        if self.crops > 1:
            self._check("resize_short", self.resize_short is not None,
                        f"given when there are {self.crops} crops (256 is usual)")
        self._check("channel_order", self.channel_order in ("rgb", "bgr"), "'rgb' or 'bgr'")
        self._check("mean", len(self.mean) == 3 and all(map(math.isfinite, self.mean)), "three numbers")
        self._check("std", len(self.std) == 3 and all(1e-6 < value < 1e6 for value in self.std),
                    "three positive numbers, on the 0..1 scale")
        self._check("stats", bool(self.stats) and set(self.stats) <= set(STATISTICS)
                    and len(set(self.stats)) == len(self.stats), f"different names out of {', '.join(STATISTICS)}")

    def _check(self, field: str, holds: bool, wanted: str) -> None:
        if not holds:
            raise RecipeError(f"{field} must be {wanted}, not {getattr(self, field)!r}")

    @property
    def clip_span(self) -> int:
        """Frames from the first to the last frame of a clip, both counted."""
        return (self.clip_frames - 1) * self.frame_step + 1

    def count_clips(self, frames: int) -> int:
        """Number of clips in a video of ``frames`` frames.

        With ``tail="pad"`` one more follows where frames are left over; a video with no frame has no clip.
        """
        whole = max(0, (frames - self.clip_span) // self.clip_stride + 1)
        if self.tail == "drop" or frames == 0:
            return whole
        covered = (whole - 1) * self.clip_stride + self.clip_span if whole else 0
        left_over = frames > covered and whole * self.clip_stride < frames
        return whole + left_over

    def replace(self, **changes: Any) -> Recipe:
        """This recipe with other values; the name says that it is no longer the preset."""
        changes = {key: value for key, value in changes.items() if getattr(self, key) != value}
        if not changes:
            return self
        name = self.name if self.name.endswith("+changes") else f"{self.name}+changes"
        return dataclasses.replace(self, **{"name": name, **changes})

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Recipe:
        """The recipe with these fields, as ``dataclasses.asdict`` gives them and stores hold them.

        Raises RecipeError on unknown fields.
        """
        unknown = set(fields) - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise RecipeError(f"unknown recipe fields: {', '.join(sorted(unknown))}")
        return cls(**fields)

    @classmethod
    def named(cls, name: str) -> Recipe:
        """The preset ``name``. Raises RecipeError with the names there are."""
        try:
            return PRESETS[name].recipe
        except KeyError:
            raise RecipeError(f"no recipe named {name!r}; there are {', '.join(PRESETS)}") from None


@dataclasses.dataclass(frozen=True)
class Preset:
    recipe: Recipe
    #: one line for ``streamfeat recipes``
    summary: str
    #: where its numbers come from
    source: str


_TEN_CROP = Recipe(name="wsvad-10crop", upscale_below=None, resize_short=256, crops=10)
_TAD = Recipe(
    name="thumos14", clip_stride=4, upscale_below=None, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), stats=("fc_norm",)
)

PRESETS: Mapping[str, Preset] = {
    preset.recipe.name: preset
    for preset in (
        Preset(Recipe(), "the published geometry and statistics, in true RGB (default)",
               "Fed_WSVAD Backbone, without its exchange of red and blue"),
        Preset(Recipe(name="fed-wsvad", channel_order="bgr"),
               "reproduces features made by the published code, which feeds the model BGR",
               "Fed_WSVAD Backbone, feature_extract.py"),
        Preset(_TAD, "temporal action detection on THUMOS14: clips every 4 frames, final norm",
               "OpenGVLab VideoMAE V2, extract_tad_feature.py"),
        Preset(dataclasses.replace(_TAD, name="fineaction", clip_stride=16),
               "temporal action detection on FineAction: clips every 16 frames, final norm",
               "OpenGVLab VideoMAE V2, extract_tad_feature.py"),
        Preset(Recipe(name="kinetics", upscale_below=None, resize="center-crop",
                      mean=IMAGENET_MEAN, std=IMAGENET_STD, stats=("fc_norm",)),
               "geometry and normalisation of Kinetics evaluation (which takes every 4th frame: --frame-step 4)",
               "OpenGVLab VideoMAE V2, Hugging Face VideoMAEImageProcessor"),
        Preset(_TEN_CROP, "wsvad on ten crops of 224 after the short side is brought to 256",
               "ten-crop features as used by RTFM, UR-DMU and MGFN; order of torchvision's TenCrop"),
        Preset(dataclasses.replace(_TEN_CROP, name="xd-5crop", crops=5),
               "wsvad on five crops, as XD-Violence features are published",
               "XD-Violence (Wu et al., ECCV 2020); order of torchvision's FiveCrop"),
    )
}
