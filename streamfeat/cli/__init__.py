"""The command line: each command parses, calls the Python function of the same name, and prints."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import click

import streamfeat

#: command -> its line in ``streamfeat --help``; the command itself is in the module of that name
COMMANDS = {
    "extract": "Videos in, one HDF5 store of features out.",
    "align": "Ground truth into a store, and how it fits.",
    "export": "Features in the layouts that detectors read.",
    "frames": "Frames as JPEG files, one folder a video.",
    "labels": "Ground truth of any form into the published pickle.",
    "info": "What is inside a store, at a glance.",
    "verify": "Is a store what it says it is?",
    "doctor": "What this machine can do, and what is missing.",
    "recipes": "The presets that decide the numbers.",
}

#: exit code after Ctrl-C: 128 + SIGINT, as shells have it
INTERRUPTED = 130


class LazyGroup(click.Group):
    """Imports a command's module only when that command runs, so that --help answers at once."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        return import_module(f"streamfeat.cli.{name}").command

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # of which click makes exit code 1, which has another meaning for some commands
            click.echo("\nstreamfeat: interrupted", err=True)
            ctx.exit(INTERRUPTED)

    def main(self, *arguments: Any, **options: Any) -> Any:
        try:
            return super().main(*arguments, **options)
        except SystemExit as end:
            from streamfeat.cli.interrupt import end_if_hung

            end_if_hung(end.code if isinstance(end.code, int) else int(end.code is not None))
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(streamfeat.__version__, prog_name="streamfeat")
def main() -> None:
    """VideoMAE V2 features of whole video datasets, streamed into one HDF5 file.

    \b
    streamfeat extract videos/ out.h5
    """
    # names come from other people's files, and not every terminal can show all of them
    if getattr(sys.stdout, "errors", None) == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
