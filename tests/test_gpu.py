"""What only a GPU can show: these are skipped without one. NVDEC's need it too."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend

import streamfeat
from streamfeat.decode import dali
from streamfeat.frames import dump_frames
from streamfeat.model import cuda, fp8, load_encoder
from streamfeat.model.cuda import ENGINES
from streamfeat.recipe import Recipe
from streamfeat.videos import list_frames

from .media import break_packet, write_video

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")

SMALL = {"size": "vit_s", "clip_frames": 4, "image_size": 64}
RECIPE = Recipe(clip_frames=4, clip_stride=4, image_size=64, upscale_below=None)


@pytest.fixture(scope="module")
def gpu():
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(scope="module")
def has_nvdec(gpu):
    if reason := dali.unavailable(gpu):
        pytest.skip(reason)


def clips_of(count):
    return torch.randn(count, 3, 4, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def exact():
    return load_encoder("random", precision="fp32", device="cpu", **SMALL).encode(clips_of(7))


def least_cosine(a, b):
    return F.cosine_similarity(torch.as_tensor(a).double(), torch.as_tensor(b).double(), dim=-1).min().item()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_features_are_those_of_the_cpu(exact, engine, precision):
    made = load_encoder("random", precision=precision, device="cuda", batch_size=4, engine=engine, **SMALL)
    assert ("CUDA graph" in made.how) == (engine != "eager")
    assert least_cosine(made.encode(clips_of(7)), exact) > {"fp32": 0.999999, "fp16": 0.9999, "bf16": 0.9995}[precision]


def test_clips_are_the_same_to_the_last_bit_in_any_company():
    made = load_encoder("random", device="cuda", batch_size=4, **SMALL)
    together = made.encode(clips_of(7))
    apart = np.concatenate([made.encode(clip[None]) for clip in clips_of(7)])
    np.testing.assert_array_equal(together, apart)


def test_many_batches_in_flight(exact):
    made = load_encoder("random", device="cuda", batch_size=2, **SMALL)
    with made.own_stream():
        clips = clips_of(7).cuda().half()
        pending = [made.submit(clips[start : start + 2]) for start in range(0, 7, 2)]
        found = np.concatenate([part.result() for part in pending])
    assert least_cosine(found, exact) > 0.9999


@pytest.mark.parametrize("head_size", [64, 88])
def test_attention_is_fused(gpu, head_size):
    backend = cuda.attention_backend(gpu, torch.float16, 16, head_size)
    assert backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)


def test_too_large_a_batch_is_halved(gpu, exact):
    torch.cuda.empty_cache()
    allowed = torch.cuda.memory_reserved(gpu) + 512 * 2**20
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.get_device_properties(gpu).total_memory, gpu)
    try:
        made = load_encoder("random", precision="fp32", device="cuda", batch_size=4096, **SMALL)
        found = made.encode(clips_of(7))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, gpu)
    assert made.batch_size < 4096 and made.why["batch_size"] == "halved until it fitted the memory"
    assert least_cosine(found, exact) > 0.999999


def test_fp8(gpu, exact, monkeypatch):
    if reason := fp8.unavailable(gpu):
        pytest.skip(reason)
    monkeypatch.setattr("streamfeat.model.encoder.LOWEST_COSINE", 0.99)
    made = load_encoder("random", precision="fp8", device="cuda", batch_size=4, **SMALL)
    assert 0.99 < least_cosine(made.encode(clips_of(7)), exact) < 0.999999


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for number in range(10):
        write_video(folder / f"{number}.mp4", 30 + 17 * number, size=(320, 240))
    return folder


def extract(videos, output, **options):
    summary = streamfeat.extract(videos, output, recipe=RECIPE, model="vit_tiny", weights="random", **options)
    assert not summary.failures
    with streamfeat.open(output) as store:
        return {name: (video.features[:], video.attrs["decoder"]) for name, video in store.items()}


def test_frames_from_the_cpu_arrive_whole_however_many_lanes(videos, tmp_path):
    wanted = extract(videos, tmp_path / "cpu.h5", device="cpu", precision="fp32")
    first = None
    for turn in range(3):
        found = extract(
            videos, tmp_path / f"{turn}.h5", device="cuda", decoder="pyav", precision="fp32", lanes=8, batch_size=8
        )
        first = first or found
        for name, (features, _) in found.items():
            assert least_cosine(features, wanted[name][0]) > 0.99999
            np.testing.assert_array_equal(features, first[name][0])


@pytest.mark.usefixtures("has_nvdec")
def test_nvdec_gives_every_frame_and_the_same_each_time(videos, tmp_path):
    wanted = extract(videos, tmp_path / "cpu.h5", device="cpu", precision="fp32")
    first = None
    for turn in range(3):
        found = extract(videos, tmp_path / f"{turn}.h5", device="cuda", precision="fp32", batch_size=8)
        first = first or found
        for name, (features, decoder) in found.items():
            assert decoder == "dali-gpu" and features.shape == wanted[name][0].shape
            assert least_cosine(features, wanted[name][0]) > 0.99
            np.testing.assert_array_equal(features, first[name][0])


@pytest.mark.usefixtures("has_nvdec")
def test_exactly_what_nvdec_cannot_falls_back(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    write_video(folder / "good.mp4", 40, size=(320, 240))
    break_packet(write_video(folder / "broken.mp4", 40, size=(320, 240)), 20)
    write_video(folder / "deep.mp4", 40, pix_fmt="yuv420p10le", size=(320, 240))
    write_video(folder / "chroma.mp4", 40, pix_fmt="yuv444p", size=(320, 240))
    write_video(folder / "packed.avi", 40, codec="mpeg4", b_frames=1, size=(320, 240))
    gpu = extract(folder, tmp_path / "gpu.h5", device="cuda")
    cpu = extract(folder, tmp_path / "cpu.h5", device="cpu")
    assert {name: len(features) for name, (features, _) in gpu.items()} == {
        name: len(features) for name, (features, _) in cpu.items()
    }
    made_by = {name: decoder for name, (_, decoder) in gpu.items()}
    assert made_by["good"] == "dali-gpu" and made_by["deep"] == made_by["chroma"] == made_by["broken"] == "pyav"


@pytest.mark.usefixtures("has_nvdec")
def test_frames_are_dumped_on_the_gpu(gpu, videos, tmp_path):
    ours = dump_frames([videos], tmp_path / "gpu", device=gpu)
    plain = dump_frames([videos], tmp_path / "cpu")
    assert ours.frames == plain.frames and not ours.failures
    assert len(list_frames(tmp_path / "gpu" / "0")) == 30
    # the same call goes on: its folders are taken for what they are
    assert sorted(dump_frames([videos], tmp_path / "gpu", device=gpu).kept) == sorted(ours.frames)
