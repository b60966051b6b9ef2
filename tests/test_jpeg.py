"""Frames that are decoded and coded on one device: here DALI's and torchvision's CPU side of the same calls."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from streamfeat.decode import dali
from streamfeat.decode.base import FallBack
from streamfeat.decode.jpeg import JpegFrames
from streamfeat.decode.pyav import Pictures
from streamfeat.frame_layout import FED_WSVAD, PLAIN, fault, jpeg
from streamfeat.frames import dump_frames
from streamfeat.videos import Video

from .media import break_packet, read_index, write_video

CPU = torch.device("cpu")


def folder_of(tmp_path, **videos):
    folder = tmp_path / "videos"
    folder.mkdir()
    for name, codec in videos.items():
        write_video(folder / f"{name}.{'webm' if codec == 'vp9' else 'mp4'}", 37, codec=codec, size=(160, 96))
    return folder


def test_files_hold_the_frames_in_order(tmp_path):
    path = write_video(tmp_path / "a.webm", 37, codec="vp9", size=(160, 96))
    source = JpegFrames(Video("a", path), CPU, 95)
    shown = [np.asarray(Image.open(io.BytesIO(content))) for content in source]
    source.close()
    assert [read_index(picture) for picture in shown] == list(range(37))
    for picture, wanted in zip(shown, Pictures(path, 1), strict=True):
        assert picture.shape == wanted.shape
        assert np.abs(picture.astype(int) - wanted[..., ::-1]).mean() < 4  # another interpolation of chroma, and JPEG


def test_a_dump_takes_the_device_where_it_can_and_the_processor_elsewhere(tmp_path, monkeypatch):
    folder = folder_of(tmp_path, good="vp9", other="h264", broken="vp9")
    break_packet(folder / "broken.webm", 20)
    coded = []
    code = JpegFrames._code
    monkeypatch.setattr(JpegFrames, "_code", lambda self, frames: coded.append(len(frames)) or code(self, frames))
    dumped = dump_frames([folder], tmp_path / "out", device=CPU)
    assert not dumped.failures and dumped.frames["good"] == dumped.frames["other"] == 37
    assert dumped.damaged == {"broken": 1} and sum(coded) >= 37
    plain = dump_frames([folder], tmp_path / "plain")
    assert plain.frames == dumped.frames
    for name in ("good", "other", "broken"):
        files = sorted((tmp_path / "out" / name).iterdir())
        assert [file.name for file in files] == [file.name for file in sorted((tmp_path / "plain" / name).iterdir())]
    # PyAV's frames, to the last byte, for what fell back
    for name in ("other", "broken"):
        for file in (tmp_path / "plain" / name).iterdir():
            assert (tmp_path / "out" / name / file.name).read_bytes() == file.read_bytes()
    # and the same call goes on
    assert sorted(dump_frames([folder], tmp_path / "out", device=CPU).kept) == ["broken", "good", "other"]


def test_the_published_layout_is_the_processor_s(tmp_path, monkeypatch):
    folder = folder_of(tmp_path, a="vp9")
    monkeypatch.setattr(JpegFrames, "__init__", lambda *arguments: pytest.fail("not for this layout"))
    assert dump_frames([folder], tmp_path / "out", layout=FED_WSVAD, device=CPU).frames == {"a": 37}


@pytest.mark.parametrize("what", ["dali", "nvjpeg"])
def test_what_the_device_lacks_falls_back(tmp_path, monkeypatch, what):
    folder = folder_of(tmp_path, a="vp9")
    if what == "dali":
        monkeypatch.setattr(dali, "unavailable", lambda device: "the driver has no libnvcuvid.so.1")
        with pytest.raises(FallBack, match="libnvcuvid"):
            JpegFrames(Video("a", folder / "a.webm"), CPU, 95)
    else:
        import torchvision

        def encode_jpeg(pictures, quality):
            raise RuntimeError("encode_jpegs_cuda: torchvision not compiled with nvJPEG support")

        monkeypatch.setattr(torchvision.io, "encode_jpeg", encode_jpeg)
        source = JpegFrames(Video("a", folder / "a.webm"), CPU, 95)
        with pytest.raises(FallBack, match="not compiled with nvJPEG"):
            list(source)
        source.close()
    dump_frames([folder], tmp_path / "out", device=CPU)
    first = next(iter(Pictures(folder / "a.webm", threads=1)))
    assert fault(tmp_path / "out" / "a", PLAIN, first) is None


def test_the_estimate_knows_that_all_chroma_takes_more():
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    assert len(jpeg(picture, PLAIN, all_chroma=True)) > 1.3 * len(jpeg(picture, PLAIN))


def test_a_folder_from_a_gpu_may_have_its_colours_but_no_other_picture(tmp_path):
    """A limited range taken for the full one is as far as converters can differ; processors differ in rounding only."""
    picture = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    full = (picture / 255 * 219 + 16).astype(np.uint8)
    path = tmp_path / PLAIN.file_name(0)
    for all_chroma, stored, kept in ((True, full, True), (False, full, False), (False, picture, True),
                                     (True, picture[::-1], False)):
        path.write_bytes(jpeg(stored, PLAIN, all_chroma=all_chroma))
        said = fault(tmp_path, PLAIN, picture)
        assert said is None if kept else "another picture" in said, (all_chroma, kept, said)
