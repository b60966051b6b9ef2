"""``streamfeat export``"""

from __future__ import annotations

import json

import click

from streamfeat.cli.errors import one_line


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
@click.option("--overwrite", is_flag=True, help="Replace files that exist; without it they are kept.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def command(store: str, destination: str, layout: str, dataset: str, stats: str | None, flatten: bool,
            train_list: str | None, test_list: str | None, overwrite: bool, as_json: bool, debug: bool) -> None:
    """Write the aligned clips of STORE.h5 below DEST, as a detector reads them.

    \b
    fed-wsvad    the tree of Fed_WSVAD and AR-Net: feature.npy a video, splits, GT
    npy          <video>.npy, as ActionFormer and other temporal detectors read
    rtfm         <video>_i3d.npy, lists and flat ground truth: RTFM, MGFN
    xd           <video>__0.npy and so on, one a crop, lists and ground truth: XDVioDet, UR-DMU
    safetensors  a few large files for training at scale

    \b
    streamfeat export out.h5 VAD --layout fed-wsvad --train-list SH_Train.txt --test-list SH_Test.txt
    streamfeat export out.h5 rtfm --layout rtfm --stats mean --train-list train.txt --test-list test.txt
    """
    from streamfeat.export import ExportError, export
    from streamfeat.files import UnsafeName
    from streamfeat.labels import LabelError
    from streamfeat.store import StoreError

    chosen = None if stats is None else [name.strip() for name in stats.split(",")]
    with one_line(ExportError, UnsafeName, LabelError, StoreError, OSError, debug=debug):
        exported = export(store, destination, layout=layout, dataset=dataset, stats=chosen, flatten=flatten,
                          train_list=train_list, test_list=test_list, overwrite=overwrite)
    if as_json:
        click.echo(json.dumps(exported.to_dict(), indent=2))
        return
    shape = ", ".join(map(str, exported.row_shape))
    click.echo(f"{destination}: {exported.videos} videos, {exported.clips} clips of ({shape}): "
               f"{exported.written} files written" + (f", {exported.kept} kept (--overwrite replaces them)"
                                                      if exported.kept else ""))
    for name in exported.empty:
        click.echo(f"left out: {name}: no clip to train on")
    for note in exported.notes:
        click.echo(note)
