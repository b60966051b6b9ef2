"""``streamfeat frames``"""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING

import click

from streamfeat.cli.errors import FAILED, WRONG_USAGE, one_line, stop
from streamfeat.text import counted

if TYPE_CHECKING:
    import threading

    from streamfeat.frames import Dumped


class _BrokeOff(Exception):
    """The disk failed a dump amid it."""


@click.command("frames")
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.argument("destination", metavar="DEST", type=click.Path())
@click.option("--layout", type=click.Choice(["fed-wsvad"]),
              help="What the published script writes: numbers from 1, red and blue exchanged, quality 95, folders "
                   "named by the last part of the video's name.")
@click.option("--first-index", type=click.Choice(["0", "1"]), help="Number of the first frame.  [default: 0]")
@click.option("--digits", type=click.IntRange(1, 12), help="Digits of a number; UCF-Crime has 6.  [default: 5]")
@click.option("--quality", type=click.IntRange(1, 100), help="Of JPEG.  [default: 95]")
@click.option("--root", type=click.Path(), help="Where the names in an @list.txt are looked up.")
@click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON on standard output.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def command(inputs: tuple[str, ...], destination: str, layout: str | None, first_index: str | None, digits: int | None,
            quality: int | None, root: str | None, quiet: bool, as_json: bool, debug: bool) -> None:
    """Write the frames of all videos of INPUT... as DEST/<video>/img_00000.jpg and on.

    A folder appears when it is complete, and one that is there is kept: the same command again does the rest. It is
    refused if it was made with other options, has another number of frames than its video, or begins with another
    picture.
    Nothing is written when the disk cannot hold it. Features do not need this: streamfeat extract reads videos.

    \b
    streamfeat frames videos/ Rgb_Fig/
    streamfeat frames --layout fed-wsvad videos/ Rgb_Fig/

    Exit codes: 0 all done, 1 some videos failed, 2 wrong usage (nothing written), 130 and 143 interrupted.
    """
    import dataclasses

    from streamfeat.cli.interrupt import run_interruptibly
    from streamfeat.files import UnsafeName
    from streamfeat.frames import FED_WSVAD, PLAIN, FramesError, dump_frames
    from streamfeat.videos import InputError

    given = {"first_index": None if first_index is None else int(first_index), "digits": digits, "quality": quality}
    if layout:
        for field in ("first_index", "quality"):
            fixed = getattr(FED_WSVAD, field)
            if given[field] not in (None, fixed):
                option = field.replace("_", "-")
                stop(f"--layout {layout} has --{option} {fixed}: leave out --{option} {given[field]}, or the layout",
                     WRONG_USAGE)
    chosen = dataclasses.replace(FED_WSVAD if layout else PLAIN,
                                 **{field: value for field, value in given.items() if value is not None})

    def say(text: object) -> None:
        if not quiet:
            click.echo(str(text), err=True)

    def dump(stop: threading.Event) -> Dumped:
        try:
            return dump_frames(inputs, destination, layout=chosen, root=root, stop=stop, on_estimate=say,
                               on_video=lambda name, frames: say(f"{name}: {counted(frames, 'frame')}"))
        except OSError as error:
            # its path is one that nobody knows of
            raise _BrokeOff(f"{destination}: {error.strerror or error}; the same command goes on where this one "
                           "ended") from error

    with one_line(InputError, FramesError, UnsafeName, debug=debug), one_line(_BrokeOff, code=FAILED, debug=debug):
        dumped, signal_number = run_interruptibly(dump)
    for name, packets in dumped.damaged.items():
        say(f"damaged: {name}: {counted(packets, 'bad packet')}")
    for name, reason in dumped.failures.items():
        click.echo(f"failed: {name}: {reason}", err=True)
    say(f"{destination}: {counted(len(dumped.frames), 'folder')} made, {len(dumped.kept)} were there already")
    if chosen.swapped:
        say("red and blue are exchanged in these files: extract them with --recipe wsvad for what --recipe fed-wsvad "
            "gives on the videos, the published features")
    if as_json:
        click.echo(json.dumps(dumped.to_dict(), indent=2))
    if signal_number is not None and dumped.stopped:
        say("stopped; the same command goes on where this one ended")
        raise SystemExit(130 if signal_number == signal.SIGINT else 143)
    raise SystemExit(FAILED if dumped.failures else 0)
