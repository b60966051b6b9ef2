"""Files that appear whole, and names that stay below their folder."""

import subprocess
import sys

import pytest

from streamfeat.files import UnsafeName, check_name, path_inside, write_whole


def test_what_another_process_writes_is_not_abandoned(tmp_path):
    def chunks():
        yield b"half"
        subprocess.run([sys.executable, "-c", "import sys; from streamfeat.files import remove_abandoned\n"
                        "remove_abandoned(sys.argv[1])", str(tmp_path)], check=True)
        yield b" and half"

    (tmp_path / ".0123456789abcdef.part").write_bytes(b"abandoned")
    (tmp_path / ".mine.part").write_bytes(b"of somebody else")
    write_whole(tmp_path / "file", chunks())
    assert (tmp_path / "file").read_bytes() == b"half and half"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mine.part", "file"]


@pytest.mark.parametrize("name", [
    "", "/etc/passwd", "../x", "a/../../x", "a//b", "./a", "C:/x", "c:x", "a\\..\\b", "a\x00b", "a\nb", "NUL",
    "com1.npy", "a/aux.txt", "a.", "a ", "x" * 256,
])
def test_names_that_lead_elsewhere_are_refused(name, tmp_path):
    with pytest.raises(UnsafeName):
        check_name(name)
    with pytest.raises(UnsafeName):
        path_inside(tmp_path, name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [
    "01_0014", "a/b.c/d", "Bad.Boys.1995__#01-11-55_label_B2-0-0", "v=x", "ä", "12:30", "console",
])
def test_names_of_real_videos_are_not(name):
    assert "/".join(check_name(name)) == name


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    def chunks():
        yield b"half"
        raise OSError("disk full")

    (tmp_path / "old").write_bytes(b"old")
    for name in ("old", "new"):
        with pytest.raises(OSError, match="disk full"):
            write_whole(tmp_path / name, chunks())
    assert [path.name for path in tmp_path.iterdir()] == ["old"] and (tmp_path / "old").read_bytes() == b"old"
