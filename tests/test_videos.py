"""Finding and naming inputs."""

import os
import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamfeat.videos import InputError, Video, find_videos, list_frames, natural_key


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")


def frames(root, *folders, count=3, extension="jpg"):
    for folder in folders:
        touch(root, *(f"{folder}/img_{number:05}.{extension}" for number in range(count)))


def names(*inputs, **options):
    return [video.name for video in find_videos(inputs, **options)]


def error(*inputs, **options):
    with pytest.raises(InputError) as caught:
        find_videos(inputs, **options)
    text = str(caught.value)
    assert "\n" not in text
    text.encode("utf-8")
    return text


# files and folders --------------------------------------------------------------------------------------------------


def test_a_file_of_any_extension(tmp_path):
    touch(tmp_path, "a.mp4", "camera.2024.h264x", "none")
    (video,) = find_videos([tmp_path / "a.mp4"])
    assert video == Video("a", tmp_path / "a.mp4", "file")
    assert names(str(tmp_path / "camera.2024.h264x")) == ["camera.2024"]
    assert names(tmp_path / "none") == ["none"]


def test_a_folder_is_searched_recursively(tmp_path):
    touch(tmp_path, "b.MP4", "Abuse/Abuse001_x264.mp4", "Abuse/deep/er/x.mkv", "a.avi", "notes.txt", "Abuse/labels.npy")
    assert names(tmp_path) == ["a", "Abuse/Abuse001_x264", "Abuse/deep/er/x", "b"]
    assert names(f"{tmp_path}/") == names(tmp_path)


def test_names_are_sorted_naturally(tmp_path):
    touch(tmp_path, "v10.mp4", "v9.mp4", "V8.mp4", "v1/2.mp4", "v1/10.mp4")
    assert names(tmp_path) == ["v1/2", "v1/10", "V8", "v9", "v10"]


def test_folders_of_frames(tmp_path):
    frames(tmp_path, "01_0014", "01_0015", "deep/02_001")
    touch(tmp_path, "03.avi")
    found = find_videos([tmp_path])
    assert [(video.name, video.kind) for video in found] == [
        ("01_0014", "frames"), ("01_0015", "frames"), ("03", "file"), ("deep/02_001", "frames"),
    ]  # fmt: skip
    assert found[0].path == tmp_path / "01_0014"


def test_a_folder_with_a_dot_keeps_all_its_name(tmp_path):
    frames(tmp_path, "clip.mp4", "v1.5_take.2")
    assert names(tmp_path) == ["clip.mp4", "v1.5_take.2"]


def test_a_folder_of_frames_itself(tmp_path, monkeypatch):
    frames(tmp_path, "01_0014")
    assert find_videos([tmp_path / "01_0014"]) == [Video("01_0014", tmp_path / "01_0014", "frames")]
    monkeypatch.chdir(tmp_path / "01_0014")
    assert names(".") == ["01_0014"]


def test_frames_may_have_folders_beside_them(tmp_path):
    frames(tmp_path, "a", "a/crops")
    assert names(tmp_path) == ["a", "a/crops"]


def test_images_beside_videos_are_thumbnails(tmp_path):
    touch(tmp_path, "a1.mp4", "a1.jpg", "b1.mp4", "b1.jpg")
    assert names(tmp_path) == ["a1", "b1"]


def test_images_without_a_number_are_no_frames(tmp_path):
    touch(tmp_path, "about/logo.png", "a.mp4")
    assert names(tmp_path) == ["a"]


def test_hidden_files_and_folders_are_left_out(tmp_path):
    touch(tmp_path, ".a.mp4", "._b.mp4", ".cache/c.mp4", "d.mp4")
    frames(tmp_path, ".thumbs")
    assert names(tmp_path) == ["d"]
    assert names(tmp_path / ".a.mp4") == [".a"]


def test_a_folder_called_like_a_video(tmp_path):
    touch(tmp_path, "a.mp4/b.mp4")
    assert names(tmp_path) == ["a.mp4/b"]


def test_several_inputs(tmp_path):
    touch(tmp_path, "one/a.mp4", "two/b.mp4", "c.mp4")
    assert names(tmp_path / "two", tmp_path / "c.mp4", tmp_path / "one") == ["a", "b", "c"]


def test_an_input_given_twice_is_one_video(tmp_path):
    touch(tmp_path, "a.mp4")
    os.symlink(tmp_path / "a.mp4", tmp_path / "elsewhere")
    assert names(tmp_path / "a.mp4", tmp_path / "a.mp4", tmp_path, f"{tmp_path}/./a.mp4") == ["a"]


# clashes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inputs", [["one", "two"], ["one/a.mp4", "two/a.mp4"], ["one", "two/a.mp4"]])
def test_two_inputs_with_one_name(inputs, tmp_path):
    touch(tmp_path, "one/a.mp4", "two/a.mp4")
    text = error(*(tmp_path / name for name in inputs))
    assert text.startswith("two videos would be called 'a': ")
    assert str(tmp_path / "one/a.mp4") in text and str(tmp_path / "two/a.mp4") in text and "rename one" in text
    assert names(tmp_path) == ["one/a", "two/a"]


def test_two_extensions_with_one_name(tmp_path):
    touch(tmp_path, "a.mp4", "a.avi")
    assert "two videos would be called 'a'" in error(tmp_path)


def test_a_file_and_its_frames_with_one_name(tmp_path):
    touch(tmp_path, "01_0014.avi")
    frames(tmp_path, "01_0014")
    assert "two videos would be called '01_0014'" in error(tmp_path)


# links --------------------------------------------------------------------------------------------------------------


def test_links_are_followed(tmp_path):
    touch(tmp_path, "store/x.mp4", "store/deep/y.mp4")
    (tmp_path / "inputs").mkdir()
    os.symlink(tmp_path / "store", tmp_path / "inputs/linked")
    os.symlink(tmp_path / "store/x.mp4", tmp_path / "inputs/z.mp4")
    assert names(tmp_path / "inputs") == ["linked/deep/y", "linked/x", "z"]


def test_links_that_lead_back_end(tmp_path):
    touch(tmp_path, "a/b/x.mp4")
    os.symlink(tmp_path, tmp_path / "a/b/top")
    os.symlink(tmp_path / "a/b", tmp_path / "a/b/self")
    os.symlink("..", tmp_path / "a/b/up")
    assert names(tmp_path) == ["a/b/x"]


def test_links_to_themselves_or_nowhere_are_left_out(tmp_path):
    touch(tmp_path, "a.mp4")
    os.symlink("loop.mp4", tmp_path / "loop.mp4")
    os.symlink("gone.mp4", tmp_path / "broken.mp4")
    os.symlink("loop", tmp_path / "loop")
    assert names(tmp_path) == ["a"]
    assert "no such file or folder" in error(tmp_path / "broken.mp4")


# odd names ----------------------------------------------------------------------------------------------------------


def test_undecodable_names_are_escaped(tmp_path):
    """Names are written into HDF5, which takes valid Unicode only."""
    folder = os.fsencode(tmp_path)
    for name in (b"/\xff.mp4", b"/caf\xe9.mp4"):
        with open(folder + name, "wb"):
            pass
    found = find_videos([tmp_path])
    assert [video.name for video in found] == ["\\udcff", "caf\\udce9"]
    for video in found:
        video.name.encode("utf-8")
        assert video.path.exists()
    assert "\\udcfe" in error(os.fsdecode(folder + b"/\xfe"))


def test_unicode_and_spaces(tmp_path):
    touch(tmp_path, "視頻 1.mp4", "über all/a b.mp4")
    assert sorted(names(tmp_path)) == sorted(["視頻 1", "über all/a b"])


# nothing there ------------------------------------------------------------------------------------------------------


def test_nothing_found_says_what_was_looked_for(tmp_path):
    touch(tmp_path, "notes.txt", "cover.jpg")
    text = error(tmp_path)
    assert text.startswith(f"no video found in {tmp_path}: looked for video files (")
    for what in ("avi", "mkv", "mp4", "webm", "folders of numbered frames", "bmp", "jpg", "png", "tif"):
        assert what in text
    assert "no video found in no input" in error()


def test_missing_input(tmp_path):
    assert error(tmp_path / "gone") == f"no such file or folder: {tmp_path}/gone"
    touch(tmp_path, "a.mp4")
    assert "gone" in error(tmp_path / "a.mp4", tmp_path / "gone")


def test_what_is_neither_file_nor_folder(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    assert error(tmp_path / "pipe.mp4") == f"{tmp_path}/pipe.mp4 is neither a file nor a folder"
    touch(tmp_path, "a.mp4")
    assert names(tmp_path) == ["a"]


# lists --------------------------------------------------------------------------------------------------------------


def write_list(path, text, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return f"@{path}"


def test_paths_are_looked_up_beside_the_list(tmp_path):
    touch(tmp_path, "videos/a.mp4", "videos/deep/b.avi")
    given = write_list(tmp_path / "list.txt", "videos/a.mp4\nvideos/deep/b.avi\n")
    assert names(given) == ["videos/a", "videos/deep/b"]
    assert find_videos([given])[0].path == tmp_path / "videos/a.mp4"


def test_then_below_the_current_folder(tmp_path, monkeypatch):
    touch(tmp_path, "work/videos/a.mp4")
    given = write_list(tmp_path / "lists/list.txt", "videos/a.mp4\n")
    assert "(--root says where the videos are)" in error(given)
    monkeypatch.chdir(tmp_path / "work")
    assert names(given) == ["videos/a"]


def test_root_is_the_only_place_when_given(tmp_path):
    touch(tmp_path, "lists/a.mp4", "data/b.mp4")
    given = write_list(tmp_path / "lists/list.txt", "a.mp4\n")
    text = error(given, root=tmp_path / "data")
    assert text == f"{tmp_path}/lists/list.txt, line 1: no video 'a.mp4' below {tmp_path}/data"
    assert names(write_list(tmp_path / "lists/list.txt", "b.mp4\n"), root=tmp_path / "data") == ["b"]


def test_bare_names_as_published(tmp_path):
    """shanghaitech.txt: one name a line; the test half is frame folders, the training half AVI."""
    frames(tmp_path, "testing/frames/01_0014")
    touch(tmp_path, "training/videos/01_001.avi")
    given = write_list(tmp_path / "shanghaitech.txt", "01_0014\n01_001\n")
    assert names(given, root=tmp_path) == ["01_001", "01_0014"]
    kinds = {video.name: video.kind for video in find_videos([given], root=tmp_path)}
    assert kinds == {"01_0014": "frames", "01_001": "file"}


def test_bare_names_with_the_extension_of_another_file(tmp_path):
    touch(tmp_path, "x/Abuse001_x264.mkv", "x/v1.5.mp4")
    frames(tmp_path, "y/Arrest002")
    given = write_list(tmp_path / "list.txt", "Abuse001_x264.mp4\nArrest002.mp4\nv1.5\n")
    assert names(given) == ["Abuse001_x264", "Arrest002", "v1.5"]


def test_a_bare_name_may_have_a_part_of_the_path(tmp_path):
    touch(tmp_path, "data/Abuse/1.mp4", "data/Arson/1.mp4")
    assert names(write_list(tmp_path / "list.txt", "Abuse/1\nArson/1.mp4\n")) == ["Abuse/1", "Arson/1"]


def test_a_name_as_streamfeat_gives_it_is_never_ambiguous(tmp_path):
    touch(tmp_path, "a.mp4", "sub/a.webm")
    assert names(write_list(tmp_path / "list.txt", "a\nsub/a\n")) == ["a", "sub/a"]


def test_a_bare_name_at_two_places(tmp_path):
    touch(tmp_path, "Abuse/1.mp4", "Arson/1.mp4")
    text = error(write_list(tmp_path / "list.txt", "Abuse/1\n\n1\n"))
    assert f"{tmp_path}/list.txt, line 3: '1' may be {tmp_path}/Abuse/1.mp4 or {tmp_path}/Arson/1.mp4" in text
    assert "write more of its path" in text


@pytest.mark.parametrize(
    "line",
    ["a/v 1.mp4", "a/v 1.mp4 265", "a/v 1.mp4\t265 0", "a/v 1.mp4,1,0.5", "a/v 1.mp4; 1", "  a/v 1.mp4  ",
     "a/v 1.mp4 # the first", '"a/v 1.mp4" 3', "'a/v 1.mp4'", "a/v 1.mp4  Abuse  150 300 -1 -1", "./a/v 1.mp4"],
)  # fmt: skip
def test_what_follows_on_the_line_is_left_out(line, tmp_path):
    touch(tmp_path, "a/v 1.mp4", "a/v.mp4")
    assert names(write_list(tmp_path / "list.txt", line + "\n")) == ["a/v 1"]


def test_comments_and_empty_lines_are_left_out(tmp_path):
    touch(tmp_path, "a.mp4", "b#1.mp4")
    assert names(write_list(tmp_path / "list.txt", "# all of them\n\n  \na.mp4\n#a.mp4\nb#1.mp4\n")) == ["a", "b#1"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_lists_from_windows(encoding, ending, tmp_path):
    touch(tmp_path, "ü/a.mp4", "b.mp4")
    assert names(write_list(tmp_path / "list.txt", f"ü/a.mp4{ending}b.mp4", encoding)) == ["b", "ü/a"]


def test_absolute_paths_and_paths_upwards(tmp_path):
    touch(tmp_path, "data/a.mp4", "other/b.mp4", "c.mp4")
    lines = f"{tmp_path}/data/a.mp4\n{tmp_path}/other/b.mp4\n../c.mp4\n"
    given = write_list(tmp_path / "data/list.txt", lines)
    assert names(given) == ["a", "b", "c"]


def test_undecodable_names_in_lists(tmp_path):
    with open(os.fsencode(tmp_path) + b"/\xff.mp4", "wb"):
        pass
    (tmp_path / "list.txt").write_bytes(b"\xff.mp4\n")
    assert names(f"@{tmp_path}/list.txt") == ["\\udcff"]
    (tmp_path / "list.txt").write_bytes(b"\xfe.mp4\n")
    assert "no video '\\udcfe.mp4'" in error(f"@{tmp_path}/list.txt")


def test_an_entry_that_is_missing(tmp_path):
    touch(tmp_path, "a.mp4")
    text = error(write_list(tmp_path / "list.txt", "a.mp4\nb.mp4 7\n"))
    assert text.startswith(f"{tmp_path}/list.txt, line 2: no video 'b.mp4 7' below {tmp_path}")


def test_a_list_that_is_missing(tmp_path):
    assert error(f"@{tmp_path}/gone.txt") == f"cannot read the list {tmp_path}/gone.txt: No such file or directory"


def test_an_empty_list(tmp_path):
    assert f"no video found in @{tmp_path}/list.txt" in error(write_list(tmp_path / "list.txt", "# nothing\n"))


def test_an_entry_listed_twice_is_one_video(tmp_path):
    touch(tmp_path, "a.mp4")
    assert names(write_list(tmp_path / "list.txt", "a.mp4\na.mp4 2\n")) == ["a"]


def test_root_must_be_a_folder(tmp_path):
    touch(tmp_path, "a.mp4")
    assert error(tmp_path / "a.mp4", root=tmp_path / "gone").startswith(f"no folder {tmp_path}/gone")


def test_a_file_whose_name_starts_with_an_at(tmp_path, monkeypatch):
    touch(tmp_path, "@home.mp4")
    monkeypatch.chdir(tmp_path)
    assert names("@home.mp4") == ["@home"]


# what a video is on the disk ----------------------------------------------------------------------------------------


def test_stat_of_a_file(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"12345")
    os.utime(tmp_path / "a.mp4", ns=(7, 10**18 + 1))
    (video,) = find_videos([tmp_path])
    assert video.stat() == (5, 10**18 + 1)
    (tmp_path / "a.mp4").unlink()
    with pytest.raises(OSError):
        video.stat()


def test_stat_of_frames_is_their_sum_and_the_newest(tmp_path):
    frames(tmp_path, "v")
    for number, path in enumerate(list_frames(tmp_path / "v"), 1):
        path.write_bytes(b"x" * number)
        os.utime(path, ns=(0, number * 10**9))
    (video,) = find_videos([tmp_path])
    assert video.stat() == (6, 3 * 10**9)
    for path in list_frames(tmp_path / "v"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="no frames"):
        video.stat()


def test_list_frames(tmp_path):
    touch(tmp_path, "img_10.jpg", "img_9.JPG", ".img_1.jpg", "cover.jpg", "img_1.txt", "2/img_1.jpg")
    assert list_frames(str(tmp_path)) == [tmp_path / "img_9.JPG", tmp_path / "img_10.jpg"]
    with pytest.raises(FileNotFoundError):
        list_frames(tmp_path / "gone")


# natural order ------------------------------------------------------------------------------------------------------


def test_natural_key():
    expected = ["1", "2a", "02b", "10", "a1", "A2", "a10", "a10b", "a10b2", "b", "img_00009", "img_00010", "img_100"]
    shuffled = random.Random(0).sample(expected, len(expected))
    assert sorted(shuffled, key=natural_key) == expected


def test_natural_key_tells_equal_numbers_apart():
    assert sorted(["a01", "a1", "A1", "a001"], key=natural_key) == sorted(["A1", "a001", "a1", "a01"], key=natural_key)
    assert len({natural_key(text) for text in ("a01", "a1", "A1", "a001")}) == 4


@given(st.lists(st.text(max_size=12)))
def test_natural_key_orders_any_text(texts):
    """Digits of other scripts, superscripts and empty names included."""
    ordered = sorted(texts, key=natural_key)
    assert sorted(reversed(ordered), key=natural_key) == ordered


@given(st.integers(0, 10**9), st.integers(0, 10**9))
def test_natural_key_orders_numbers(one, other):
    assert (natural_key(f"x{one}") < natural_key(f"x{other}")) == (one < other)


def test_paths_are_as_given(tmp_path, monkeypatch):
    touch(tmp_path, "v/a.mp4")
    monkeypatch.chdir(tmp_path)
    assert find_videos(["v"])[0].path == Path("v/a.mp4")
