"""``streamfeat align``"""

from __future__ import annotations

import json

import click

from streamfeat.cli.errors import FAILED, one_line


@click.command("align")
@click.argument("store", metavar="STORE.h5", type=click.Path())
@click.argument("source", metavar="LABELS", type=click.Path())
@click.option("--video-labels", type=click.Path(), metavar="FILE",
              help="Labels of whole videos (GT/video_label.pickle, .npz, .json), for videos whose frames have none.")
@click.option("--list", "test_list", type=click.Path(), metavar="FILE",
              help="The list of videos that one flat array of labels follows.")
@click.option("--clip-label", type=click.Choice(["any", "majority", "fraction"]), default="any", show_default=True,
              help="A clip is anomalous when any of its frames is, when at least half are, or by their share.")
@click.option("--strict", is_flag=True, help="Write nothing, and exit with 1, when labels or clips would be lost.")
@click.option("--json", "as_json", is_flag=True, help="Print the table as JSON.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def command(store: str, source: str, video_labels: str | None, test_list: str | None, clip_label: str, strict: bool,
            as_json: bool, debug: bool) -> None:
    """Write ground truth into STORE.h5, and how many clips of each video it covers.

    LABELS are the published pickle, .npz or .json of labels by video, a folder of one .npy a video, one flat
    .npy with --list, UCF-Crime's or XD-Violence's annotation .txt, or a folder of UBnormal's tracks. Pickles
    are read without running anything in them. Features are not touched; labels from before are replaced.

    \b
    streamfeat align out.h5 GT/frame_label.pickle --video-labels GT/video_label.pickle
    streamfeat align out.h5 Temporal_Anomaly_Annotation.txt
    """
    from streamfeat.align import align, table
    from streamfeat.labels import LabelError
    from streamfeat.store import StoreError

    with one_line(LabelError, StoreError, debug=debug):
        alignment = align(store, source, video_labels=video_labels, test_list=test_list, clip_label=clip_label,
                          strict=strict)
    if as_json:
        click.echo(json.dumps(alignment.to_dict(), indent=2))
    else:
        click.echo("\n".join(table(alignment)))
    if strict and alignment.loses_data:
        click.echo("streamfeat: labels or clips would be lost (see the table): nothing was written", err=True)
        raise SystemExit(FAILED)
