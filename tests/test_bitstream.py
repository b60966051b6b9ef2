"""Packets of every codec that a GPU decodes: one frame each, or not."""

import av
import pytest

from streamfeat.decode.bitstream import one_frame_test

from .media import write_video


def packets_of(path):
    """Packets that hold something, in the order of storing, and the test for them."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        packets = [bytes(packet) for packet in container.demux(stream) if packet.size]
        return packets, one_frame_test(context.codec.canonical_name, context.extradata)


@pytest.mark.parametrize(
    ("codec", "name", "b_frames"),
    [
        ("h264", "a.mp4", 3), ("h264", "a.mkv", 3), ("h264", "a.ts", 3), ("h264", "a.avi", 0), ("h264", "a.h264", 0),
        ("hevc", "a.mp4", 3), ("hevc", "a.mkv", 3), ("hevc", "a.ts", 3), ("mpeg4", "a.avi", 0), ("mpeg4", "a.mp4", 2),
        ("vp8", "a.webm", 0), ("vp9", "a.webm", 0), ("mjpeg", "a.avi", 0), ("av1", "a.mkv", 0),
    ],
)  # fmt: skip
def test_what_encoders_write_is_one_frame_a_packet(tmp_path, codec, name, b_frames):
    packets, is_one_frame = packets_of(write_video(tmp_path / name, 30, codec=codec, b_frames=b_frames))
    assert len(packets) == 30 and all(map(is_one_frame, packets))


def test_pictures_in_slices_are_one_frame(tmp_path):
    for codec, options in (("h264", {"x264-params": "slices=4"}), ("hevc", {"x265-params": "slices=2:log-level=none"})):
        path = write_video(tmp_path / f"{codec}.mp4", 5, codec=codec, size=(320, 240), options=options)
        packets, is_one_frame = packets_of(path)
        assert all(map(is_one_frame, packets))


@pytest.mark.parametrize(
    ("codec", "name"),
    [("h264", "a.mp4"), ("h264", "a.ts"), ("hevc", "a.mp4"), ("hevc", "a.ts"), ("mpeg4", "a.avi")],
)
def test_two_frames_none_and_damage_are_not(tmp_path, codec, name):
    packets, is_one_frame = packets_of(write_video(tmp_path / name, 5, codec=codec))
    packet = packets[2]
    assert is_one_frame(packet) and is_one_frame(memoryview(packet))
    assert not is_one_frame(packet + packets[3])
    assert not is_one_frame(b"\xa5" * len(packet))
    if name.endswith("mp4"):
        assert not is_one_frame(packet[:-1]) and not is_one_frame(packet[:3])


@pytest.mark.parametrize(("codec", "end"), [("h264", b"\x0a"), ("hevc", b"\x48\x01")])
def test_units_that_end_a_sequence_or_hold_nothing_do_not_count(tmp_path, codec, end):
    packets, is_one_frame = packets_of(write_video(tmp_path / "a.mp4", 3, codec=codec))
    assert is_one_frame(packets[1] + len(end).to_bytes(4, "big") + end + bytes(4))
    assert not is_one_frame(len(end).to_bytes(4, "big") + end)


def test_an_mpeg_4_picture_that_is_not_coded_is_none():
    assert not one_frame_test("mpeg4", None)(bytes.fromhex("000001b6 5d1b20"))


@pytest.mark.parametrize(
    ("codec", "packet", "shown"),
    [
        ("vp8", b"\x10\x02\x00", True), ("vp8", b"\x00\x02\x00", False),
        # frame_marker, profile, show_existing_frame, frame_type, show_frame
        ("vp9", b"\x82\x49\x83\x00", True), ("vp9", b"\x86\x00\x00", True),
        ("vp9", b"\x88", False), ("vp9", b"\x84\x00\x00", False),
        ("vp9", b"\x86\x00\xc9", False),  # a superframe
        ("vp9", bytes([0b10110010, 0b10000000]), False), ("vp9", bytes([0b10110011, 0]), True),  # profile 3
    ],
)  # fmt: skip
def test_frames_that_are_never_shown_are_seen(codec, packet, shown):
    assert one_frame_test(codec, None)(packet) is shown
