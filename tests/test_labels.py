"""Every form that ground truth comes in, written as its owner writes it."""

import io
import json
import os
import pickle
import re
import warnings
import zipfile

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from streamfeat.cli import main
from streamfeat.labels import (
    LabelError,
    VideoNames,
    convert_labels,
    read_labels,
    read_video_labels,
    write_frame_labels,
    write_video_labels,
)
from streamfeat.labels.flat import read_list
from streamfeat.recipe import Recipe
from tests.feature_stores import write_store

TYPES = [np.int64, np.int32, np.uint8, np.float32, np.float64, np.float16, bool]
SHAPES = [(-1,), (1, -1), (-1, 1)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: np.dtype(dtype).name)
@pytest.mark.parametrize("form", ["pickle", "npz", "json", "lists", "objects", "npy"])
def test_every_type_and_shape(tmp_path, form, dtype, shape):
    labels = {"01_0014": np.array([0, 1, 1, 0]), "01_001": np.zeros(7)}
    kept = {name: values.astype(dtype).reshape(shape) for name, values in labels.items()}
    if form == "npz":
        source = tmp_path / "gt.npz"
        np.savez_compressed(source, **kept)
    elif form == "json":
        source = tmp_path / "gt.json"
        source.write_text(json.dumps({name: values.tolist() for name, values in kept.items()}))
    elif form == "npy":
        source = tmp_path / "gt.npy"
        np.save(source, kept)
    else:
        if form != "pickle":
            kept = {name: values.astype(object) for name, values in kept.items()}
        if form == "lists":
            kept = {name: values.tolist() for name, values in kept.items()}
        source = tmp_path / "gt.pickle"
        source.write_bytes(pickle.dumps(kept))
    read = read_labels(source)
    assert list(read.frame) == list(labels)
    for name, values in labels.items():
        assert read.frame[name].tolist() == values.tolist() and read.frame[name].dtype == np.uint8


def test_names_of_python_2_are_text(tmp_path):
    source = tmp_path / "gt.pkl"
    source.write_bytes(b"\x80\x02}U\x0701_0014]q\x01(K\x00K\x01es.")
    assert read_labels(source).frame["01_0014"].tolist() == [0, 1]


@pytest.mark.parametrize(("form", "content", "said"), [
    ("gt.pickle", b"not a pickle", "pickle"),
    ("gt.json", b"{", "not JSON"),
    ("gt.json", b"[" * 200_000, "not JSON"),
    pytest.param("gt.json", b'{"a": [' + b"9" * 5000 + b"]}", "^[^()]*gt.json: .*no label is that large$",
                 id="a number of 5000 digits"),
    ("gt.json", b'{"a": NaN}', "of type float"),
    ("gt.json", b'{"a": [0, "1"]}', "hold a str"),
    ("gt.npz", b"PK", "not an .npz"),
    ("gt.npy", b"\x93NUMPY", "not a .npy"),
    ("gt.mat", b"", "not a form that labels are read from"),
    ("gt.txt", b"", "nothing in it"),
    ("gt.txt", b"read me first", r"line 1: 'me' is no number of a frame; a line is 'name category start end \.\.\.'"),
    ("gt.txt", b"01_0014\n01_0015\n", "line 1: no interval; a line is .* or 'name start end ...' .XD-Violence"),
    ("gt.txt", b"01_0014 1\n01_001 0\n", "line 1: a start without an end; a line is"),
    ("gt.txt", b"a.mp4 Abuse\n", "line 1: no interval"),
    ("gt.txt", b"a.mp4 Abuse 1 2\nb.mp4 1 2", "line 2: no category"),
])
def test_broken_files_say_what_is_wrong(tmp_path, form, content, said):
    (tmp_path / form).write_bytes(content)
    with pytest.raises(LabelError, match=said):
        read_labels(tmp_path / form, {"a": 3})


def twice_in_json(folder):
    (folder / "gt.json").write_text('{"a": [0, 0], "b": [0, 1], "a": [1, 1]}')
    return folder / "gt.json"


def twice_in_pickle(folder, ending=b"u."):
    items = b"".join(b"\x8c\x01" + name + b"](K\x00K" + value + b"e" for name, value in
                     ((b"a", b"\x00"), (b"b", b"\x01"), (b"a", b"\x01")))
    (folder / "gt.pickle").write_bytes(b"\x80\x04}(" + items + ending)
    assert len(pickle.loads(b"\x80\x04}(" + items + ending)) == 2
    return folder / "gt.pickle"


def twice_in_npz(folder, second="a.npy"):
    with zipfile.ZipFile(folder / "gt.npz", "w") as archive:
        for member in ("a.npy", "b.npy", second):
            content = io.BytesIO()
            np.save(content, np.zeros(2))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the name that is there already
                archive.writestr(member, content.getvalue())
    return folder / "gt.npz"


def twice_with_and_without_extension(folder):
    return twice_in_npz(folder, second="a")


def twice_among_tracks(folder):
    for scene in ("Scene1", "Scene2"):
        (folder / scene).mkdir()
        (folder / scene / "a_tracks.txt").write_text("1,2,3\n")
    return folder


@pytest.mark.parametrize("write", [twice_in_json, twice_in_pickle, twice_in_npz, twice_with_and_without_extension,
                                   twice_among_tracks])
def test_a_name_that_is_there_twice_is_an_error(tmp_path, write):
    source = write(tmp_path)
    with pytest.raises(LabelError, match=f"^{re.escape(str(source))}: .*'a' .*twice"):
        read_labels(source, {"a": 5})


@pytest.mark.parametrize("write", [twice_in_json, twice_in_pickle])
def test_a_video_label_that_is_there_twice_is_an_error(tmp_path, write):
    with pytest.raises(LabelError, match=r"'a' .*twice"):
        read_video_labels(write(tmp_path))


def test_an_npz_that_unpacks_to_gigabytes(tmp_path):
    source = tmp_path / "bomb.npz"
    zipped = zipfile.ZipFile(source, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
    with zipped as archive, archive.open("a.npy", "w") as member:
        for _ in range(1100):
            member.write(bytes(1 << 20))
    with pytest.raises(LabelError, match="larger than 1024 MiB when unpacked"):
        read_labels(source)


def test_a_npy_that_claims_terabytes(tmp_path):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (1 << 40,)})
    (tmp_path / "gt").mkdir()
    (tmp_path / "gt" / "a.npy").write_bytes(header.getvalue() + bytes(80))
    with pytest.raises(LabelError, match="do not fit"):
        read_labels(tmp_path / "gt")


def test_a_folder_of_masks_as_shanghaitech(tmp_path):
    """Masks for the test half; nothing happens in the training half, which has three digits."""
    masks = tmp_path / "test_frame_mask"
    masks.mkdir()
    np.save(masks / "01_0014.npy", np.array([0, 1, 1], np.uint8))
    read = read_labels(masks, {"01_0014": 3, "training/01_001": 5, "01_0015": 4})
    assert {name: values.tolist() for name, values in read.frame.items()} == {
        "01_0014": [0, 1, 1], "training/01_001": [0] * 5}


def test_ucf_crime_annotation(tmp_path):
    """0-based, the last frame is in; normal videos need no line, anomalous ones of the training half have none."""
    source = tmp_path / "Temporal_Anomaly_Annotation.txt"
    source.write_text("Abuse028_x264.mp4  Abuse  3  5  -1  -1  \nArson011_x264.mp4  Arson  0  1  4  4  \n"
                      "Normal_Videos_003_x264.mp4  Normal  -1  -1  -1  -1  \n")
    read = read_labels(source, {"Abuse/Abuse028_x264": 8, "Arson/Arson011_x264": 6, "Normal/Normal_Videos_003_x264": 2,
                                "Normal/Normal_Videos001_x264": 3, "Abuse/Abuse001_x264": 4})
    assert {name: values.tolist() for name, values in read.frame.items()} == {
        "Abuse028_x264.mp4": [0, 0, 0, 1, 1, 1, 0, 0],
        "Arson011_x264.mp4": [1, 1, 0, 0, 1, 0],
        "Normal_Videos_003_x264.mp4": [0, 0],
        "Normal/Normal_Videos001_x264": [0, 0, 0],
    }
    assert read.video == {"Abuse/Abuse001_x264": 1}


def test_ucf_crime_annotation_as_ur_dmu_has_it(tmp_path):
    source = tmp_path / "UCF_Annotation.txt"
    source.write_text("RoadAccidents/RoadAccidents021_x264.mp4 8 RoadAccidents 2 3 -1 -1 \n"
                      "Testing_Normal_Videos_Anomaly/Normal_Videos_872_x264.mp4 4 Normal -1 -1 -1 -1 \n")
    read = read_labels(source, {"RoadAccidents/RoadAccidents021_x264": 8})
    assert read.frame["RoadAccidents/RoadAccidents021_x264.mp4"].tolist() == [0, 0, 1, 1, 0, 0, 0, 0]


def test_xd_violence_annotation(tmp_path):
    """The last frame is out; names with label_A are normal."""
    source = tmp_path / "annotations.txt"
    violent, normal, unlabelled = "v=S-7rRLrxnVQ__#1_label_B4-0-0", "wangted.2008__#0-27-17_0-28-07_label_A", \
        "Bad.Boys.1995__#00-26-51_00-27-53_label_B2-0-0"
    source.write_text(f"{violent} 0 2 4 5\n")
    read = read_labels(source, {violent: 6, normal: 3, unlabelled: 9})
    assert read.frame[violent].tolist() == [1, 1, 0, 0, 1, 0]
    assert read.frame[normal].tolist() == [0, 0, 0] and unlabelled not in read.frame
    assert read.video == {unlabelled: 1}


def test_ubnormal_tracks(tmp_path):
    """The last frame is in, and several objects overlap."""
    folder = tmp_path / "Scene1" / "abnormal_scene_1_scenario_1_annotations"
    folder.mkdir(parents=True)
    (folder / "abnormal_scene_1_scenario_1_tracks.txt").write_text("1.0,2.0,4.0\n3,4,5\n")
    read = read_labels(tmp_path, {"Scene1/abnormal_scene_1_scenario_1": 7, "Scene1/normal_scene_1_scenario1_9": 3,
                                  "Scene2/abnormal_scene_2_scenario_1": 5})
    assert read.frame["abnormal_scene_1_scenario_1"].tolist() == [0, 0, 1, 1, 1, 1, 0]
    assert read.frame["Scene1/normal_scene_1_scenario1_9"].tolist() == [0, 0, 0]
    assert read.video == {"Scene2/abnormal_scene_2_scenario_1": 1}


def test_an_annotation_beyond_the_frames_shows(tmp_path):
    """It stays longer than the video, so that align can say so."""
    source = tmp_path / "annotations.txt"
    source.write_text("a_label_G 10 90\n")
    assert len(read_labels(source, {"a_label_G": 50}).frame["a_label_G"]) == 90


@pytest.mark.parametrize(("line", "said"), [
    ("a_label_G 10", "line 1: a start without an end"),
    ("a_label_G 10 5", "line 1: no interval of frames: 10 to 5"),
    ("a_label_G 0 999999999999", "no interval of frames"),
    ("a_label_G 0 nan", "line 1: 'nan' is no number of a frame"),
    ("a_label_G 0 1e999", "line 1: '1e999' is no number of a frame"),
    ("a_label_G 0 1\na_label_G 2 3", "line 2: 'a_label_G' is annotated twice"),
])
def test_bad_annotations_name_the_line(tmp_path, line, said):
    source = tmp_path / "annotations.txt"
    source.write_text(line)
    with pytest.raises(LabelError, match=said):
        read_labels(source, {"a_label_G": 50})


#: how the projects count clips, and what their array holds of a video of 40 frames and one of 32
FLAT = {"dropped": (32, 32), "padded": (48, 32), "without the last frame": (32, 16)}


@pytest.mark.parametrize(("first", "second"), FLAT.values(), ids=FLAT)
def test_one_array_for_a_list(tmp_path, first, second):
    flat = np.concatenate([np.ones(first), np.zeros(second)])
    np.save(tmp_path / "gt-ucf.npy", flat)
    (tmp_path / "test.list").write_text("G:\\UCF\\Abuse028_x264_i3d.npy\nG:\\UCF\\Normal_Videos_003_x264_i3d.npy\n")
    videos = {"Abuse/Abuse028_x264": 40, "Normal/Normal_Videos_003_x264": 32, "another": 100}
    read = read_labels(tmp_path / "gt-ucf.npy", videos, tmp_path / "test.list")
    assert [(name, len(values), set(values.tolist())) for name, values in read.frame.items()] == [
        ("G:\\UCF\\Abuse028_x264_i3d.npy", first, {1}), ("G:\\UCF\\Normal_Videos_003_x264_i3d.npy", second, {0})]


def test_one_array_for_a_list_of_crops(tmp_path):
    """UR-DMU and XD-Violence list every crop of a video."""
    np.save(tmp_path / "gt.npy", np.arange(48) % 2)
    (tmp_path / "test.list").write_text("".join(f"/x/{name}__{crop}.npy\n" for name in ("a#1_label_A", "b")
                                                for crop in range(5)))
    read = read_labels(tmp_path / "gt.npy", {"a#1_label_A": 32, "b": 20}, tmp_path / "test.list")
    assert [len(values) for values in read.frame.values()] == [32, 16]


def test_an_array_that_was_made_for_other_features(tmp_path):
    """One video has a clip less than its frames give: nobody can say which."""
    np.save(tmp_path / "gt.npy", np.zeros(8080 + 16))
    (tmp_path / "test.list").write_text("a\nb\n")
    said = r"8096 values, but the 2 videos .* 8112 \(the frames left over dropped\), .* 8080 .*made for other features"
    with pytest.raises(LabelError, match=said):
        read_labels(tmp_path / "gt.npy", {"a": 8096, "b": 16}, tmp_path / "test.list")
    (tmp_path / "test.list").write_text("a\nc\n")
    with pytest.raises(LabelError, match="1 of its videos is not in the store, 'c' first"):
        read_labels(tmp_path / "gt.npy", {"a": 8096, "b": 16}, tmp_path / "test.list")
    with pytest.raises(LabelError, match=r"give --list with the list that it follows$"):
        read_labels(tmp_path / "gt.npy", {"a": 8096})
    with pytest.raises(LabelError, match=r"give --videos with the store that has their frames$"):
        read_labels(tmp_path / "gt.npy", None, tmp_path / "test.list")
    with pytest.raises(LabelError, match="give --list with the list that it follows and --videos with the store"):
        read_labels(tmp_path / "gt.npy")


def test_a_list_has_one_name_a_line_whatever_is_in_it(tmp_path):
    """What Unicode takes for the end of a line is part of a name."""
    (tmp_path / "test.list").write_bytes("\ufeffa\u2028b\r\n\nc\x85d \r e\n".encode())
    assert read_list(tmp_path / "test.list") == ["a\u2028b", "c\x85d", "e"]


def test_video_labels(tmp_path):
    source = tmp_path / "video_label.pickle"
    source.write_bytes(pickle.dumps({"a": [1.0], "b": 0, "c": np.array([1]), "d": np.float32(0), "e": [[0.0]]}))
    assert read_video_labels(source) == {"a": 1, "b": 0, "c": 1, "d": 0, "e": 0}
    source.write_bytes(pickle.dumps({"a": [0, 1]}))
    with pytest.raises(LabelError, match="'a' is not 0 or 1"):
        read_video_labels(source)


def write_by_name(source, labels):
    """``{name: labels}`` in the form that the extension says."""
    match source.suffix:
        case ".npz":
            np.savez(source, **labels)
        case ".npy":
            np.save(source, labels)
        case ".json":
            source.write_text(json.dumps(labels))
        case ".pkl":
            source.write_bytes(pickle.dumps(labels))


@pytest.mark.parametrize("form", ["gt.npz", "gt.npy", "gt.json", "gt.pkl"])
def test_video_labels_of_every_form(tmp_path, form):
    source = tmp_path / form
    write_by_name(source, {"a": [1.0], "b": 0})
    assert read_video_labels(source) == {"a": 1, "b": 0}


@pytest.mark.parametrize("form", ["gt.txt", "gt.mat", "gt"])
def test_video_labels_that_are_in_no_form_say_which_there_are(tmp_path, form):
    source = tmp_path / form
    source.write_text("a 1\n")
    said = rf"^{re.escape(str(source))}: not a form that video labels are read from; these are: \.pickle or \.pkl, "
    with pytest.raises(LabelError, match=said):
        read_video_labels(source)
    (tmp_path / "folder").mkdir()
    with pytest.raises(LabelError, match="folder: a folder, not a file of video labels"):
        read_video_labels(tmp_path / "folder")


def test_one_array_of_video_labels_has_no_names(tmp_path):
    np.save(tmp_path / "v.npy", np.zeros(3))
    with pytest.raises(LabelError, match="holds a ndarray, not labels by video name"):
        read_video_labels(tmp_path / "v.npy")


def test_one_array_with_a_label_for_every_frame(tmp_path):
    """Where it fits exactly, and 16 labels a clip do not."""
    np.save(tmp_path / "gt.npy", np.r_[np.ones(40), np.zeros(33)])
    (tmp_path / "test.list").write_text("a\nb\n")
    read = read_labels(tmp_path / "gt.npy", {"a": 40, "b": 33}, tmp_path / "test.list")
    assert {name: values.tolist() for name, values in read.frame.items()} == {"a": [1] * 40, "b": [0] * 33}
    assert read.form == "one array for a list of videos, one label a frame"
    np.save(tmp_path / "gt.npy", np.zeros(64))
    read = read_labels(tmp_path / "gt.npy", {"a": 40, "b": 33}, tmp_path / "test.list")
    assert [len(values) for values in read.frame.values()] == [32, 32]
    assert read.form == "one array for a list of videos, 16 labels a clip"
    np.save(tmp_path / "gt.npy", np.zeros(72))
    with pytest.raises(LabelError, match=r"72 values, but .* give 64 \(.* or 73 \(one label a frame\); it was"):
        read_labels(tmp_path / "gt.npy", {"a": 40, "b": 33}, tmp_path / "test.list")


@pytest.mark.parametrize("form", ["gt.npz", "gt.npy", "gt.json", "gt.pkl", "gt.txt", "folder"])
def test_a_list_that_nothing_follows_is_an_error(tmp_path, form):
    source = tmp_path / form
    match form:
        case "gt.txt":
            source.write_text("a_label_G 1 2\n")
        case "folder":
            source.mkdir()
            np.save(source / "a.npy", [0, 1])
        case _:
            write_by_name(source, {"a": [0, 1]})
    assert read_labels(source, {"a": 2}).frame
    said = rf"^{re.escape(str(source))}: names its videos itself: leave out --list, which is for one flat array$"
    with pytest.raises(LabelError, match=said):
        read_labels(source, {"a": 2}, tmp_path / "test.list")


def test_published_pickles_load_anywhere(tmp_path):
    """Under the module names that numpy 1 knows; numpy 2 keeps them for such files."""
    labels = {"01_0014": np.array([0, 1, 1]), "unicode ä": np.zeros(0), "long": np.ones(70_000)}
    write_frame_labels(tmp_path / "frame_label.pickle", labels)
    content = (tmp_path / "frame_label.pickle").read_bytes()
    assert b"numpy._core" not in content and content[1] == 3
    loaded = pickle.loads(content)
    assert {name: values.tolist() for name, values in loaded.items()} == {
        name: values.tolist() for name, values in labels.items()}
    assert all(values.ndim == 1 and values.flags.writeable for values in loaded.values())
    assert list(read_labels(tmp_path / "frame_label.pickle").frame) == list(labels)
    write_video_labels(tmp_path / "video_label.pickle", {"a": 1, "b": 0})
    assert pickle.loads((tmp_path / "video_label.pickle").read_bytes()) == {"a": [1.0], "b": [0.0]}


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="aB1_/.\\", min_size=1, max_size=12),
       st.sets(st.text(alphabet="aB1_/", min_size=1, max_size=12)))
def test_a_name_means_one_video_or_none_or_is_an_error(name, videos):
    try:
        match = VideoNames(videos).find(name)
    except LabelError:
        return
    if name in videos:
        assert match.video == name and match.variant is None
    elif match is not None:
        assert match.video in videos and match.variant is not None


@pytest.mark.parametrize(("name", "variant"), [
    ("Abuse/Abuse028_x264", None),
    ("Abuse/Abuse028_x264.mp4", "extension"),
    ("Abuse\\Abuse028_x264.mp4", "extension"),
    ("abuse/abuse028_x264.MP4", "case"),
    ("Abuse028_x264", "folder prefix"),
    ("/data/ucf/Abuse/Abuse028_x264__7.npy", "folder prefix"),
    ("G:\\UCF\\Abuse028_x264_i3d.npy", "folder prefix"),
    ("ABUSE028_X264", "folder prefix and case"),
    ("Abuse028", "nothing"),
])
def test_known_variants_of_a_name(name, variant):
    match = VideoNames(["Abuse/Abuse028_x264", "scenario_1"]).find(name)
    assert (match.variant if match else "nothing") == variant


def test_a_number_at_the_end_is_no_crop():
    names = VideoNames(["abnormal_scene_1_scenario_1", "abnormal_scene_1_scenario"])
    assert names.find("abnormal_scene_1_scenario_1.npy").video == "abnormal_scene_1_scenario_1"


def test_the_command_writes_the_published_pickles(tmp_path):
    store = write_store(tmp_path / "out.h5", {"Abuse/Abuse028_x264": 40, "Abuse/Abuse001_x264": 20}, Recipe())
    source = tmp_path / "Temporal_Anomaly_Annotation.txt"
    source.write_text("Abuse028_x264.mp4  Abuse  3  5  -1  -1\nArson011_x264.mp4  Arson  0  1  4  4\n")
    output, videos = tmp_path / "frame_label.pickle", tmp_path / "video_label.pickle"
    result = CliRunner().invoke(main, ["labels", str(source), str(output), "--videos", str(store), "--video-labels",
                                       str(videos)])
    assert result.exit_code == 0, result.output
    assert "1 video, 1 of them anomalous, 40 frames (read as UCF-Crime annotation)" in result.output
    assert "matched by folder prefix: Abuse028_x264.mp4 → Abuse/Abuse028_x264" in result.output
    assert "labels without a video: Arson011_x264.mp4" in result.output
    labels = pickle.loads(output.read_bytes())
    assert list(labels) == ["Abuse/Abuse028_x264"]
    assert np.flatnonzero(labels["Abuse/Abuse028_x264"]).tolist() == [3, 4, 5]
    assert pickle.loads(videos.read_bytes()) == {"Abuse/Abuse028_x264": [1.0], "Abuse/Abuse001_x264": [1.0]}


def test_the_command_without_frames_says_what_to_give(tmp_path):
    source = tmp_path / "Temporal_Anomaly_Annotation.txt"
    source.write_text("Abuse028_x264.mp4  Abuse  3  5  -1  -1\n")
    result = CliRunner().invoke(main, ["labels", str(source), str(tmp_path / "out.pickle")])
    assert result.exit_code == 2 and "give --videos" in result.output and not (tmp_path / "out.pickle").exists()


def test_conversion_keeps_old_output_when_it_fails(tmp_path):
    output = tmp_path / "out.pickle"
    output.write_bytes(b"old")
    (tmp_path / "gt.json").write_text('{"a": "x"}')
    with pytest.raises(LabelError):
        convert_labels(tmp_path / "gt.json", output)
    assert output.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 2


def test_outputs_never_destroy_what_is_not_an_older_pickle(tmp_path):
    source = tmp_path / "gt.json"
    source.write_text(json.dumps({"a": [0, 1]}))
    precious = tmp_path / "out.h5"
    precious.write_bytes(b"\x89HDF")
    for output, video_output in [(source, None), (precious, None), (tmp_path / "x.pickle", precious),
                                 (tmp_path / "x.pickle", tmp_path / "x.pickle")]:
        with pytest.raises(LabelError, match="choose another output"):
            convert_labels(source, output, video_output=video_output)
    assert precious.read_bytes() == b"\x89HDF" and not (tmp_path / "x.pickle").exists()
    convert_labels(source, tmp_path / "x.pickle")
    convert_labels(source, tmp_path / "x.pickle")  # an older pickle is replaced


def test_outputs_that_cannot_be_written_are_named_as_they_were_given(tmp_path):
    source = tmp_path / "gt.json"
    source.write_text(json.dumps({"a": [0, 1]}))
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for output, said in (("gone/x.pickle", "there is no folder"), ("gt.json/x.pickle", "there is no folder"),
                         ("folder", "is no file"), ("pipe", "is no file"), ("/proc/x.pickle", "cannot be written")):
        for arguments in ([tmp_path / output], [tmp_path / "ok.pickle", "--video-labels", tmp_path / output]):
            result = CliRunner().invoke(main, ["labels", str(source), *map(str, arguments)])
            assert result.exit_code == 2 and f"{tmp_path / output}: " in result.stderr and said in result.stderr
            assert len(result.stderr.splitlines()) == 1 and ".part" not in result.stderr
    assert not [path for path in tmp_path.rglob("*") if path.suffix == ".part"]


def test_intervals_beyond_the_end_of_a_video_are_told(tmp_path):
    store = write_store(tmp_path / "out.h5", {"Abuse028_x264": 40, "Abuse001_x264": 20}, Recipe())
    source = tmp_path / "Temporal_Anomaly_Annotation.txt"
    source.write_text("Abuse028_x264.mp4  Abuse  30  49  -1  -1\nAbuse001_x264.mp4  Abuse  0  19  -1  -1\n")
    result = CliRunner().invoke(main, ["labels", str(source), str(tmp_path / "x.pickle"), "--videos", str(store)])
    assert result.exit_code == 0 and result.output.count("beyond the end") == 1
    assert "Abuse028_x264 has 40 frames and 50 labels, 10 of them anomalous after its end" in result.output
