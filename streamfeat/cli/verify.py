"""``streamfeat verify``"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from streamfeat.cli.errors import FAILED, one_line
from streamfeat.text import counted, shown

if TYPE_CHECKING:
    from streamfeat.verify import Verification

#: names in a line
_MOST_NAMES = 10


@click.command("verify")
@click.argument("store", metavar="STORE.h5", type=click.Path())
@click.option("--against", multiple=True, metavar="INPUT", type=click.Path(),
              help="Extract a random sample of these videos anew, and compare. May be given several times.")
@click.option("--sample", type=click.IntRange(1), default=3, show_default=True, help="Videos to extract anew.")
@click.option("--weights", metavar="FILE|ID", help="Where the weights are now, if not where they were.")
@click.option("--device", default="auto", show_default=True, metavar="auto|cpu|cuda|cuda:N")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def command(store: str, against: tuple[str, ...], sample: int, weights: str | None, device: str, as_json: bool,
            debug: bool) -> None:
    """Check every checksum, value, clip count and label of STORE.h5, and look for what belongs to no video.

    With --against it also extracts some of the videos anew: features with a cosine of 0.999 or more are equal
    (half precision gives 0.9995 and more). Random weights may not tell other colours from the right ones.

    \b
    streamfeat verify out.h5
    streamfeat verify out.h5 --against videos/ --sample 10

    Exit codes: 0 nothing wrong, 1 something is, 2 wrong usage, 130 interrupted.
    """
    from streamfeat.store import StoreError
    from streamfeat.verify import VerifyError, verify

    with one_line(StoreError, VerifyError, debug=debug):
        result = verify(store, against, sample=sample, weights=weights, device=device)
    if as_json:
        click.echo(json.dumps(result.to_dict(), indent=2))
    else:
        for name, problem in result.problems:
            click.echo(f"{shown(name)}: {problem}")
        for what in result.unchecked:
            click.echo(f"not checked: {what}")
        for line in _left_out(result) + _compared(result):
            click.echo(line)
        click.echo(f"{store}: {counted(result.videos, 'video')}, {counted(result.clips, 'clip')}: "
                   + (counted(len(result.problems), "problem") if result.problems else "nothing wrong"))
    if result.problems:
        raise SystemExit(FAILED)


def _left_out(result: Verification) -> list[str]:
    """Which videos the inputs do not have, and so were not drawn from."""
    from streamfeat.verify import SAME_NAMES

    lines = []
    missing = [shown(name) for name, other in result.left_out if other is None]
    if missing:
        more = f" and {len(missing) - _MOST_NAMES} more (all: --json)" if len(missing) > _MOST_NAMES else ""
        lines.append(f"not compared: {counted(len(missing), 'video')} not among the inputs: "
                     f"{', '.join(missing[:_MOST_NAMES])}{more}")
    renamed = [f"{shown(name)} (there: {shown(other)})" for name, other in result.left_out if other is not None]
    if renamed:
        more = f" and {len(renamed) - _MOST_NAMES} more (all: --json)" if len(renamed) > _MOST_NAMES else ""
        lines.append(f"not compared: {counted(len(renamed), 'video')} that may be among the inputs by another name, "
                     f"{SAME_NAMES}: {', '.join(renamed[:_MOST_NAMES])}{more}")
    return lines


def _compared(result: Verification) -> list[str]:
    from streamfeat.verify import SAME_COSINE

    lines = []
    for video in result.compared:
        if video.clips:
            lines.append(f"{shown(video.video)}: {counted(video.clips, 'clip')} extracted anew, cosine at least "
                         f"{video.smallest_cosine:.6f}, greatest difference {video.largest_difference:.2g}")
        else:
            lines.append(f"{shown(video.video)}: extracted anew, no clips to compare")
    with_clips = [video for video in result.compared if video.clips]
    if with_clips:
        lines.append(f"extracted anew: {counted(sum(video.clips for video in with_clips), 'clip')} of "
                     f"{counted(len(with_clips), 'video')}, cosine at least "
                     f"{min(video.smallest_cosine for video in with_clips):.6f} "
                     f"(equal from {SAME_COSINE} on), greatest difference "
                     f"{max(video.largest_difference for video in with_clips):.2g}")
    elif result.compared:
        lines.append("extracted anew: no clips, so no feature was compared")
    return lines
