"""``streamfeat recipes``"""

from __future__ import annotations

import click

from streamfeat.recipe import PRESETS, Recipe


@click.command("recipes")
@click.option("--json", "as_json", is_flag=True, help="Print every field of every preset as JSON.")
def command(as_json: bool) -> None:
    """The presets: everything that decides the numbers.

    Any field can be overridden: streamfeat extract --recipe wsvad --clip-stride 8 ...
    """
    if as_json:
        import dataclasses
        import json

        click.echo(json.dumps({name: dataclasses.asdict(p.recipe) for name, p in PRESETS.items()}, indent=2))
        return
    for name, preset in PRESETS.items():
        click.secho(name, bold=True)
        click.echo(f"  {preset.summary}")
        for line in describe(preset.recipe):
            click.echo(f"  {line}")
        click.echo(f"  source       {preset.source}\n")


def describe(recipe: Recipe) -> list[str]:
    """A recipe in a few aligned lines, for people."""
    step = f", every {recipe.frame_step}th" if recipe.frame_step > 1 else ""
    size = recipe.image_size
    if recipe.resize_short:
        geometry = f"short side to {recipe.resize_short}, {recipe.crops} crop{'s' * (recipe.crops > 1)} of {size}"
    elif recipe.resize == "stretch":
        geometry = f"stretched to {size} x {size}"
    else:
        geometry = f"short side to {size}, centre crop"
    if recipe.upscale_below:
        geometry += f"; short sides under {recipe.upscale_below} scaled up to it first"
    return [
        f"clips        {recipe.clip_frames} frames{step}, one every {recipe.clip_stride} frames, "
        + ("the rest dropped" if recipe.tail == "drop" else "the last one padded"),
        f"geometry     {geometry}",
        f"colour       {recipe.channel_order}, mean {_triple(recipe.mean)}, std {_triple(recipe.std)}",
        f"statistics   {', '.join(recipe.stats)}",
    ]


def _triple(values: tuple[float, ...]) -> str:
    return f"{values[0]:g}" if len(set(values)) == 1 else "/".join(f"{value:g}" for value in values)
