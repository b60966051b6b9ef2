import queue

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as tv

from streamfeat import clips
from streamfeat.clips import Batcher, Clip, ClipBuffers, ClipWindow, crop
from streamfeat.recipe import Recipe


def numbered(count: int, size: int = 14) -> torch.Tensor:
    """Frames ``(count, 3, size, size)`` that each hold their own index."""
    return torch.arange(count, dtype=torch.float32)[:, None, None, None].expand(-1, 3, size, size)


def run(recipe: Recipe, chunks: list[torch.Tensor]) -> list[tuple[int, list[int]]]:
    window = ClipWindow(recipe, torch.empty)
    clips = [clip for chunk in chunks for clip in window.push(chunk)]
    clips += window.finish()
    return [(clip.start_frame, clip.frames[0, :, 0, 0].int().tolist()) for clip in clips]


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_clips_are_the_definition_however_frames_arrive(data):
    recipe = Recipe(
        clip_frames=data.draw(st.sampled_from([2, 4, 6])), clip_stride=data.draw(st.integers(1, 12)),
        frame_step=data.draw(st.integers(1, 3)), tail=data.draw(st.sampled_from(["drop", "pad"])), image_size=14,
    )  # fmt: skip
    total = data.draw(st.integers(0, 50))
    frames, chunks, start = numbered(total), [], 0
    while start < total:
        length = data.draw(st.integers(1, 9))
        chunks.append(frames[start : start + length])
        start += length
    expected = []
    for index in range(recipe.count_clips(total)):
        first = index * recipe.clip_stride
        wanted = [min(first + k * recipe.frame_step, total - 1) for k in range(recipe.clip_frames)]
        expected.append((first, wanted))
    assert run(recipe, chunks) == expected


def test_the_window_holds_no_more_frames_than_a_clip_needs():
    window = ClipWindow(Recipe(clip_stride=4, image_size=14), torch.empty)
    for frame in numbered(200).split(1):
        list(window.push(frame))
        assert len(window._held) <= 16
    assert window.frames == 200


def test_the_window_lets_go_of_whole_chunks():
    window = ClipWindow(Recipe(clip_stride=40, image_size=14), torch.empty)
    held = []
    for chunk in numbered(200).split(16):
        list(window.push(chunk))
        held.append(len(window._held))
    # from frame 16 to 40 nothing is needed, and then one chunk and its neighbour
    assert held[:3] == [0, 0, 1] and max(held) <= 2


def test_clips_come_in_the_memory_that_is_given_for_them():
    buffers = ClipBuffers(1, torch.bfloat16, torch.device("cpu"))
    window = ClipWindow(Recipe(image_size=14), buffers.take)
    (first,) = window.push(numbered(16))
    assert first.frames.dtype == torch.bfloat16 and first.frames.shape == (3, 16, 14, 14)
    with pytest.raises(queue.Empty):
        buffers.take((1,), timeout=0.01)
    buffers.give_back(first.frames)
    assert buffers.take((3, 2, 2)).data_ptr() == first.frames.data_ptr()


def test_buffers_grow_with_the_largest_clip_and_keep_their_memory():
    buffers = ClipBuffers(1, torch.float32, torch.device("cpu"))
    small = buffers.take((2, 3))
    buffers.give_back(small)
    large = buffers.take((20, 30))
    assert large.shape == (20, 30)
    buffers.give_back(large)
    assert buffers.take((4, 5)).data_ptr() == large.data_ptr()


@pytest.mark.parametrize(("height", "width"), [(256, 341), (257, 340), (341, 256), (256, 256), (224, 224)])
def test_crops_are_torchvisions(height, width):
    clip = torch.rand(3, 2, height, width)
    frames = clip.transpose(0, 1)
    for crops, theirs in ((5, tv.five_crop(frames, 224)), (10, tv.ten_crop(frames, 224))):
        ours = list(crop(clip, 224, crops))
        assert len(ours) == crops
        for mine, other in zip(ours, theirs, strict=True):
            assert torch.equal(mine.transpose(0, 1), other)
    (centre,) = crop(clip, 224, 1)
    assert torch.equal(centre.transpose(0, 1), tv.center_crop(frames, 224))


def test_batches_are_shared_and_forgotten_samples_leave_no_trace():
    def clip(value: float) -> Clip:
        return Clip(int(value), torch.full((3, 2, 4, 4), value))

    def values(batch):
        return batch.samples[:, 0, 0, 0, 0].tolist()

    batcher = Batcher(3, image_size=4, crops=1)
    assert not list(batcher.add("b", clip(2)))
    assert not list(batcher.add("a", clip(1)))
    assert batcher.pending("b")
    batcher.forget("b")
    assert not batcher.pending("b") and batcher.pending("a")
    assert not list(batcher.add("c", clip(3)))
    (batch,) = batcher.add("c", clip(4))
    assert batch.keys == (("a", 1), ("c", 3), ("c", 4)) and values(batch) == [1, 3, 4]
    assert not list(batcher.rest())
    list(batcher.add("d", clip(5)))
    (last,) = batcher.rest()
    assert last.keys == (("d", 5),) and values(last) == [5]


def test_a_clip_of_many_crops_fills_several_batches():
    batcher = Batcher(4, image_size=4, crops=10)
    clip = Clip(7, torch.rand(3, 2, 6, 5))
    batches = [(batch.keys, batch.samples.clone()) for batch in batcher.add("a", clip)]
    batches += [(batch.keys, batch.samples.clone()) for batch in batcher.rest()]
    assert [len(keys) for keys, _ in batches] == [4, 4, 2]
    assert torch.equal(torch.cat([samples for _, samples in batches]), torch.stack(list(crop(clip.frames, 4, 10))))


def test_a_batch_that_does_not_fit_is_out_of_memory():
    batcher = Batcher(2**40, image_size=4, crops=1)
    with pytest.raises(MemoryError, match="a batch of 1099511627776"):
        list(batcher.add("a", Clip(0, torch.zeros(3, 2, 4, 4))))


def test_batches_have_as_many_buffers_as_are_asked_for():
    batcher = Batcher(2, image_size=4, crops=1, buffers=2)
    batches = []
    for value in range(6):
        batches += batcher.add("a", Clip(value, torch.full((3, 2, 4, 4), float(value))))
        if value == 3:
            assert [batch.samples[:, 0, 0, 0, 0].tolist() for batch in batches] == [[0, 1], [2, 3]]
    first, second, third = (batch.samples.data_ptr() for batch in batches)
    assert first == third != second


class FakeEvents:
    """Stands for CUDA's: notes who records and who waits, in order."""

    def __init__(self):
        self.log, self.count = [], 0

    def mark(self, device):
        self.count += 1
        return _FakeEvent(self, self.count)


class _FakeEvent:
    def __init__(self, events, number):
        self.events, self.number = events, number
        events.log.append(("record", number))

    def wait(self):
        self.events.log.append(("wait", self.number))

    def synchronize(self):
        self.events.log.append(("synchronize", self.number))


def test_streams_wait_for_each_other(monkeypatch):
    events = FakeEvents()
    monkeypatch.setattr(clips, "mark", events.mark)
    buffers = ClipBuffers(1, torch.float32, torch.device("cpu"))
    window = ClipWindow(Recipe(image_size=14), buffers.take)
    batcher = Batcher(1, image_size=14, crops=1)
    for chunk in numbered(32).split(16):
        (clip,) = window.push(chunk)
        list(batcher.add("a", clip))
        buffers.give_back(clip.frames)
    assert events.log == [
        ("record", 1), ("wait", 1), ("record", 2),  # cut, copied into a batch, given back
        ("wait", 2), ("record", 3), ("wait", 3), ("record", 4),
    ]  # fmt: skip
    # memory that is replaced by larger memory may be anyone's at once
    buffers.take((3, 16, 20, 20))
    assert events.log[-2:] == [("wait", 4), ("synchronize", 4)]
