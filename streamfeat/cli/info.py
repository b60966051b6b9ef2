"""``streamfeat info``"""

from __future__ import annotations

import json

import click

from streamfeat.cli.errors import one_line


@click.command("info")
@click.argument("store", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Everything, for scripts.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def command(store: str, as_json: bool, debug: bool) -> None:
    """What is inside STORE: recipe, model, videos, clips, labels, failures."""
    from streamfeat.info import info
    from streamfeat.store import StoreError

    with one_line(StoreError, debug=debug):
        found = info(store)
    click.echo(json.dumps(found.to_dict(), indent=2) if as_json else str(found))
