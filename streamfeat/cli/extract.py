"""``streamfeat extract``"""

from __future__ import annotations

import json
import signal
from typing import Any

import click

from streamfeat.cli.errors import FAILED, one_line, stop
from streamfeat.recipe import PRESETS, Recipe, RecipeError

_RECIPE_FIELDS = (
    "clip_frames", "clip_stride", "frame_step", "tail", "upscale_below", "resize", "resize_short", "crops",
    "image_size", "channel_order", "mean", "std", "stats",
)


class _NumberOrNone(click.ParamType):
    name = "integer|none"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if str(value).lower() == "none":
            return "none"
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is neither a whole number nor 'none'", param, ctx)


class _Numbers(click.ParamType):
    name = "r,g,b"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        try:
            numbers = tuple(float(part) for part in value.split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers", param, ctx)
        return numbers * 3 if len(numbers) == 1 else numbers


@click.command("extract")
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.argument("output", metavar="OUTPUT.h5", type=click.Path())
@click.option("--recipe", "recipe_name", default="wsvad", show_default=True, metavar="NAME",
              help=f"What decides the numbers: {', '.join(PRESETS)}. See: streamfeat recipes.")
@click.option("--model", metavar="SIZE",
              help="vit_s, vit_b, vit_l, vit_h, vit_g, or vit_tiny for a try. Default: what the weights hold.")
@click.option("--weights", metavar="FILE|ID|random",
              help="A checkpoint, a Hugging Face id, or 'random'. Default: OpenGVLab's for the model size, "
                   "OpenGVLab/VideoMAEv2-Base if that is not given either.")
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda|cuda:N")
@click.option("--decoder", type=click.Choice(["auto", "dali", "pyav"]), default="auto", show_default=True,
              help="auto: DALI on a GPU, PyAV on a CPU.")
@click.option("--precision", type=click.Choice(["auto", "fp32", "fp16", "bf16", "fp8", "int8"]), default="auto",
              show_default=True, help="auto: fp16 on a GPU, bf16 on a CPU with AMX or an ARM one with bf16, else fp32. "
                                      "fp8: faster on a GPU of Ada or later; int8: faster on a CPU with VNNI. Both are "
                                      "refused where they are too coarse.")
@click.option("--batch-size", type=click.IntRange(1, 4096), help="Samples per step of the model.  [default: auto]")
@click.option("--lanes", type=click.IntRange(1, 64), help="Videos decoded side by side.  [default: auto]")
@click.option("--dtype", type=click.Choice(["float32", "float16"]), default="float32", show_default=True,
              help="Of the features in the store.")
@click.option("--root", type=click.Path(), help="Where the names in an @list.txt are looked up.")
@click.option("--overwrite", is_flag=True, help="Start anew where OUTPUT.h5 exists.")
@click.option("--strict", is_flag=True, help="A damaged video is a failure.")
@click.option("--dump-frames", type=click.Path(), metavar="DIR",
              help="Write the frames as JPEG files first, as streamfeat frames does.")
@click.option("--clip-frames", type=int, help="Frames the model sees at once.")
@click.option("--clip-stride", type=int, help="Frames from one clip to the next.")
@click.option("--frame-step", type=int, help="Frames from one frame of a clip to the next.")
@click.option("--tail", type=click.Choice(["drop", "pad"]), help="What becomes of frames after the last whole clip.")
@click.option("--upscale-below", type=_NumberOrNone(), help="Scale short sides under this up to it first.")
@click.option("--resize", type=click.Choice(["stretch", "center-crop"]))
@click.option("--resize-short", type=_NumberOrNone(), help="Bring the short side to this, then crop.")
@click.option("--crops", type=click.Choice(["1", "5", "10"]), help="Crops per clip (needs --resize-short).")
@click.option("--image-size", type=int, help="Height and width the model sees.")
@click.option("--channel-order", type=click.Choice(["rgb", "bgr"]))
@click.option("--mean", type=_Numbers(), help="Per channel, on the 0..1 scale.")
@click.option("--std", type=_Numbers(), help="Per channel, on the 0..1 scale.")
@click.option("--stats", metavar="NAMES", help="Out of mean,std,max,fc_norm, with commas.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON on standard output.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def command(inputs: tuple[str, ...], output: str, recipe_name: str, quiet: bool, as_json: bool, debug: bool,
            **options: Any) -> None:
    """Extract features of all videos of INPUT... into one HDF5 store.

    INPUT is a video file, a folder (searched through), a folder of numbered frames, or @list.txt with one
    path or name a line. The same command again does only what is missing, has failed, or has changed.

    \b
    streamfeat extract videos/ out.h5
    streamfeat extract --recipe fed-wsvad --weights vit_g_hybrid_pt_1200e_k710_ft.pth videos/ out.h5
    streamfeat extract --root /data/shanghaitech @shanghaitech.txt out.h5

    Exit codes: 0 all done, 1 some videos failed, 2 wrong usage (nothing written), 130 and 143 interrupted.
    """
    if not output.lower().endswith((".h5", ".hdf5", ".hdf")):
        stop(f"the last argument is the store to write and should end in .h5, not {output!r}: "
             "streamfeat extract INPUT... OUTPUT.h5", 2)
    with one_line(RecipeError, debug=debug):
        recipe = Recipe.named(recipe_name).replace(**_overrides(options))

    # torch comes with these: not before the arguments are known to be right
    from streamfeat import progress
    from streamfeat.cli.interrupt import run_interruptibly
    from streamfeat.pipeline import ExtractError, RunError, extract

    reporter = progress.choose(quiet)
    with one_line(ExtractError, debug=debug), one_line(RunError, code=FAILED, debug=debug):
        summary, signal_number = run_interruptibly(
            lambda event: extract(list(inputs), output, recipe=recipe, reporter=reporter, stop=event, **options)
        )
    if as_json:
        click.echo(json.dumps(summary.to_dict(), indent=2))
    elif not quiet:
        click.echo(str(summary), err=True)
    else:
        for name, reason in summary.failures.items():
            click.echo(f"streamfeat: {name}: {reason}", err=True)
    if signal_number is not None and not summary.complete:
        if not quiet:
            click.echo("stopped; the same command goes on where this one ended", err=True)
        raise SystemExit(130 if signal_number == signal.SIGINT else 143)
    raise SystemExit(FAILED if summary.failures else 0)


def _overrides(options: dict[str, Any]) -> dict[str, Any]:
    """Take the recipe's fields that were given out of ``options``."""
    given = {field: value for field in _RECIPE_FIELDS if (value := options.pop(field)) is not None}
    if "crops" in given:
        given["crops"] = int(given["crops"])
    if "stats" in given:
        given["stats"] = tuple(name.strip() for name in given["stats"].split(","))
    return {field: None if value == "none" else value for field, value in given.items()}
