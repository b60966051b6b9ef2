"""``streamfeat export``"""

from __future__ import annotations

import json

import click

from streamfeat.cli.errors import FAILED, one_line


@click.command("export")
@click.argument("store", metavar="STORE.h5", type=click.Path())
@click.argument("destination", metavar="DEST", type=click.Path())
@click.option("--layout", required=True, type=click.Choice(["fed-wsvad", "npy", "rtfm", "xd", "safetensors"]))
@click.option("--dataset", default="shanghaitech", show_default=True, metavar="NAME",
              help="The top folder of the layout fed-wsvad.")
@click.option("--stats", metavar="NAMES", help="Statistics to take, with commas: mean.  [default: all]")
@click.option("--flatten", is_flag=True, help="Join statistics and channels: (T, statistics * C).")
@click.option("--train-list", type=click.Path(), metavar="FILE", help="Videos for training, one name a line.")
@click.option("--test-list", type=click.Path(), metavar="FILE", help="Videos for evaluation, one name a line.")
@click.option("--overwrite", is_flag=True,
              help="Replace files that exist; without it an older export that differs is refused.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def command(store: str, destination: str, layout: str, dataset: str, stats: str | None, flatten: bool,
            train_list: str | None, test_list: str | None, overwrite: bool, as_json: bool, debug: bool) -> None:
    """Write the aligned clips of STORE.h5 below DEST, as a detector reads them.

    With lists, only the videos that are in one are exported. An interrupted export goes on with the same command.
    An older one that differs is refused, and so are damaged features.

    \b
    fed-wsvad    the tree of Fed_WSVAD and AR-Net: feature.npy a video, splits, GT
    npy          <video>.npy, as ActionFormer and other temporal detectors read
    rtfm         <video>_i3d.npy, lists and flat ground truth: RTFM, MGFN
    xd           <video>__0.npy and so on, one a crop, lists and ground truth: XDVioDet, UR-DMU
    safetensors  a few large files for training at scale

    \b
    streamfeat export out.h5 VAD --layout fed-wsvad --train-list SH_Train.txt --test-list SH_Test.txt
    streamfeat export out.h5 rtfm --layout rtfm --stats mean --train-list train.txt --test-list test.txt

    Exit codes: 0 done, 1 refused for what is in the store or at DEST, or broken off, 2 wrong usage (nothing written).
    """
    from streamfeat.export import ExportError, ExportRefused, export
    from streamfeat.files import UnsafeName
    from streamfeat.labels import LabelError
    from streamfeat.store import StoreError
    from streamfeat.text import counted

    chosen = None if stats is None else [name.strip() for name in stats.split(",") if name.strip()]
    with (one_line(ExportError, UnsafeName, LabelError, StoreError, debug=debug),
          one_line(ExportRefused, OSError, code=FAILED, debug=debug)):
        exported = export(store, destination, layout=layout, dataset=dataset, stats=chosen, flatten=flatten,
                          train_list=train_list, test_list=test_list, overwrite=overwrite)
    if as_json:
        click.echo(json.dumps(exported.to_dict(), indent=2))
        return
    shape = ", ".join(map(str, exported.row_shape))
    click.echo(f"{destination}: {counted(exported.videos, 'video')}, {counted(exported.clips, 'clip')} of ({shape}): "
               f"{counted(exported.written, 'file')} written"
               + (f", {counted(exported.kept, 'was', 'were')} there already" if exported.kept else ""))
    for name in exported.empty:
        click.echo(f"left out: {name}: no clip to train on")
    if exported.stale:
        them = counted(len(exported.stale), "file there is", "files there are")
        click.echo(f"{them} no part of this export, {exported.stale[0]} first: remove them if nothing else needs them")
    for note in exported.notes:
        click.echo(note)
