"""``streamfeat labels``"""

from __future__ import annotations

import click

from streamfeat.cli.errors import one_line
from streamfeat.text import counted, shown


@click.command("labels")
@click.argument("source", type=click.Path())
@click.argument("output", metavar="OUT.pickle", type=click.Path())
@click.option("--videos", "store", type=click.Path(), metavar="STORE.h5",
              help="The store that has the videos' names and frames; annotations and flat arrays need it.")
@click.option("--list", "test_list", type=click.Path(), metavar="FILE",
              help="The list of videos that one flat array of labels follows.")
@click.option("--video-labels", "video_output", type=click.Path(), metavar="OUT.pickle",
              help="Write the labels of whole videos too, as GT/video_label.pickle has them.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def command(source: str, output: str, store: str | None, test_list: str | None, video_output: str | None,
            debug: bool) -> None:
    """Turn ground truth of any form into the published pickle, one 0 or 1 a frame.

    SOURCE is anything that streamfeat align reads. With --videos the labels go by the names in the store.

    \b
    streamfeat labels Temporal_Anomaly_Annotation.txt GT/frame_label.pickle --videos out.h5
    streamfeat labels gt-ucf.npy GT/frame_label.pickle --videos out.h5 --list ucf-i3d-test.list
    """
    from streamfeat.labels import LabelError, convert_labels
    from streamfeat.store import StoreError

    with one_line(LabelError, StoreError, debug=debug):
        converted = convert_labels(source, output, store=store, test_list=test_list, video_output=video_output)
    anomalous = sum(bool(values.any()) for values in converted.frame.values())
    frames = sum(map(len, converted.frame.values()))
    click.echo(f"{output}: {counted(len(converted.frame), 'video')}, {anomalous} of them anomalous, "
               f"{counted(frames, 'frame')} (read as {converted.form})")
    for match in converted.variants:
        click.echo(f"matched by {match.variant}: {shown(match.name)} → {shown(match.video)}")
    for name in converted.without_video:
        click.echo(f"labels without a video: {shown(name)}")
    for name, length in converted.beyond.items():
        values = converted.frame[name]
        click.echo(f"labels beyond the end: {shown(name)} has {counted(length, 'frame')} and {len(values)} labels, "
                   f"{int(values[length:].sum())} of them anomalous after its end")
