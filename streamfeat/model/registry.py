"""The encoders under timm's roof: import this module, then ``timm.create_model("videomaev2_base_patch16_224")``.

Apart from the network itself, because importing timm takes a second that extraction need not spend.
"""

from __future__ import annotations

from typing import Any

from timm.models import register_model

from streamfeat.model import weights
from streamfeat.model.vit import SIZES, ModelSize, VideoTransformer

NAMES = {
    "videomaev2_tiny_patch16_224": "vit_tiny",
    "videomaev2_small_patch16_224": "vit_s",
    "videomaev2_base_patch16_224": "vit_b",
    "videomaev2_large_patch16_224": "vit_l",
    "videomaev2_huge_patch16_224": "vit_h",
    "videomaev2_giant_patch14_224": "vit_g",
}


def _register(name: str, size: ModelSize) -> None:
    def create(
        pretrained: bool = False, clip_frames: int = 16, img_size: int = 224, **options: Any
    ) -> VideoTransformer:
        # timm hands over its own bookkeeping (pretrained_cfg and the like), which means nothing here.
        unknown = {key for key in options if not key.startswith(("pretrained_", "cache_dir"))}
        if unknown:
            raise TypeError(f"{name} has no option {', '.join(sorted(unknown))}")
        model = VideoTransformer(size, clip_frames, img_size)
        if pretrained:
            model.load_state_dict(weights.load(size=size.name).state_dict)
        return model

    create.__name__ = create.__qualname__ = name
    create.__doc__ = f"VideoMAE V2 {size.name}: normalised clips (B, 3, T, S, S) to features (B, {size.channels})."
    register_model(create)


for _name, _size in NAMES.items():
    _register(_name, SIZES[_size])
