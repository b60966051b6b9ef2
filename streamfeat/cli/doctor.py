"""``streamfeat doctor``"""

from __future__ import annotations

import json

import click

from streamfeat.cli.errors import FAILED


@click.command("doctor")
@click.option("--device", type=click.Choice(["cuda", "cpu", "auto"]), default="cuda", show_default=True,
              help="Where extract is to run. auto: as extract chooses, a GPU where torch sees one.")
@click.option("--json", "as_json", is_flag=True, help="Everything, for scripts.")
def command(device: str, as_json: bool) -> None:
    """What this machine can do, what is missing, and the remedy.

    \b
    ok        fine
    warning   extract works, but slower or not for everything
    missing   extract would not work

    Exit codes: 0 extract on the device would work, 1 it would not.
    """
    from streamfeat.doctor import doctor

    report = doctor(device)
    click.echo(json.dumps(report.to_dict(), indent=2) if as_json else str(report))
    raise SystemExit(0 if report.works else FAILED)
