import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamfeat.recipe import PRESETS, Recipe, RecipeError


def test_presets_hold_the_published_numbers():
    fed = Recipe.named("fed-wsvad")
    assert (fed.clip_frames, fed.clip_stride, fed.upscale_below, fed.channel_order) == (16, 16, 226, "bgr")
    assert fed.mean == fed.std == (0.5, 0.5, 0.5)  # v / 255 * 2 - 1
    assert fed.stats == ("mean", "std", "max")
    thumos = Recipe.named("thumos14")
    assert (thumos.clip_stride, thumos.mean, thumos.std, thumos.stats) == (4, (0,) * 3, (1,) * 3, ("fc_norm",))
    assert dataclasses.replace(thumos, clip_stride=16, name="fineaction") == Recipe.named("fineaction")
    assert dataclasses.replace(fed, channel_order="rgb", name="wsvad") == Recipe.named("wsvad")
    assert Recipe.named("kinetics").mean == (0.485, 0.456, 0.406)
    assert Recipe.named("wsvad-10crop").crops == 10
    assert Recipe.named("xd-5crop").crops == 5
    for name, preset in PRESETS.items():
        assert preset.recipe.name == name


@pytest.mark.parametrize("name", PRESETS)
def test_json_round_trip(name):
    recipe = Recipe.named(name)
    assert Recipe.from_dict(json.loads(json.dumps(dataclasses.asdict(recipe)))) == recipe


def test_a_changed_recipe_does_not_carry_the_presets_name():
    recipe = Recipe.named("wsvad")
    assert recipe.replace(clip_stride=16) is recipe
    changed = recipe.replace(clip_stride=8)
    assert changed.name == "wsvad+changes"
    assert changed.replace(clip_stride=4).name == "wsvad+changes"


def test_recipes_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().clip_frames = 8


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"clip_frames": 0}, "clip_frames"), ({"clip_frames": 15}, "clip_frames"),
        ({"clip_frames": 10**9}, "clip_frames"),
        ({"clip_stride": 0}, "clip_stride"), ({"clip_stride": -4}, "clip_stride"), ({"frame_step": 0}, "frame_step"),
        ({"tail": "keep"}, "tail"), ({"resize": "squash"}, "resize"), ({"image_size": 10**6}, "image_size"),
        ({"crops": 3}, "crops"), ({"crops": 5}, "resize_short"), ({"resize_short": 100}, "resize_short"),
        ({"channel_order": "grb"}, "channel_order"), ({"mean": (0.5,)}, "mean"),
        ({"mean": (float("nan"), 0, 0)}, "mean"), ({"std": (float("inf"), 1, 1)}, "std"), ({"std": (0, 1, 1)}, "std"),
        ({"stats": ()}, "stats"), ({"stats": ("median",)}, "stats"), ({"stats": ("max", "max")}, "stats"),
        ({"upscale_below": 0}, "upscale_below"),
    ],
)  # fmt: skip
def test_absurd_values_are_refused_by_name(changes, named):
    with pytest.raises(RecipeError, match=f"^{named} must be"):
        Recipe(**changes)


def test_unknown_names_and_fields():
    with pytest.raises(RecipeError, match="wsvad, fed-wsvad"):
        Recipe.named("i3d")
    with pytest.raises(RecipeError, match="colour_space"):
        Recipe.from_dict({"colour_space": "bt709"})


@given(
    frames=st.integers(0, 300), clip_frames=st.sampled_from([2, 4, 16]), stride=st.integers(1, 40),
    step=st.integers(1, 4), tail=st.sampled_from(["drop", "pad"]),
)  # fmt: skip
def test_count_clips_against_listing_them(frames, clip_frames, stride, step, tail):
    recipe = Recipe(clip_frames=clip_frames, clip_stride=stride, frame_step=step, tail=tail)
    span = (clip_frames - 1) * step + 1
    starts = [start for start in range(0, frames, stride) if start + span <= frames]
    if tail == "pad":
        within = {frame for start in starts for frame in range(start, start + span)}
        next_start = len(starts) * stride
        if any(frame not in within for frame in range(next_start, frames)):
            starts.append(next_start)
    assert recipe.count_clips(frames) == len(starts)
