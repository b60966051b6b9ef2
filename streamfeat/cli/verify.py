"""``streamfeat verify``"""

from __future__ import annotations

import json

import click

from streamfeat.cli.errors import FAILED, one_line
from streamfeat.text import counted


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
    (half precision gives 0.9995 and more, red and blue exchanged 0.99 and less).

    \b
    streamfeat verify out.h5
    streamfeat verify out.h5 --against videos/ --sample 10

    Exit codes: 0 nothing wrong, 1 something is, 2 wrong usage, 130 interrupted.
    """
    from streamfeat.store import StoreError
    from streamfeat.verify import SAME_COSINE, VerifyError, verify

    with one_line(StoreError, VerifyError, debug=debug):
        result = verify(store, against, sample=sample, weights=weights, device=device)
    if as_json:
        click.echo(json.dumps(result.to_dict(), indent=2))
    else:
        for name, problem in result.problems:
            click.echo(f"{name}: {problem}")
        for what in result.unchecked:
            click.echo(f"not checked: {what}")
        for video in result.compared:
            click.echo(f"{video.video}: {counted(video.clips, 'clip')} extracted anew, cosine at least "
                       f"{video.smallest_cosine:.6f}, greatest difference {video.largest_difference:.2g}")
        if result.compared:
            click.echo(f"extracted anew: {counted(sum(video.clips for video in result.compared), 'clip')} of "
                       f"{counted(len(result.compared), 'video')}, cosine at least "
                       f"{min(video.smallest_cosine for video in result.compared):.6f} "
                       f"(equal from {SAME_COSINE} on), greatest difference "
                       f"{max(video.largest_difference for video in result.compared):.2g}")
        click.echo(f"{store}: {counted(result.videos, 'video')}, {counted(result.clips, 'clip')}: "
                   + (counted(len(result.problems), "problem") if result.problems else "nothing wrong"))
    if result.problems:
        raise SystemExit(FAILED)
