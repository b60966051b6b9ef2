"""``extract``: wires videos, decoders, clips, the model and the store into one stream, and only that."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from streamfeat.clips import Batch, Batcher
from streamfeat.decode.base import DecodeError, StreamInfo
from streamfeat.decode.choose import Decoders
from streamfeat.decode.lanes import Decoded, Ended, Failed, Lanes, Started
from streamfeat.model import Encoder, ModelError, load_encoder
from streamfeat.progress import Counters, Quiet, Reporter
from streamfeat.recipe import Recipe, RecipeError
from streamfeat.store import FeatureStore, Header, StoredVideo, StoreError, StoreWriter, WriterThread, check_names
from streamfeat.text import first_line
from streamfeat.videos import InputError, Video, find_videos

if TYPE_CHECKING:
    from streamfeat.model.encoder import Pending


class ExtractError(Exception):
    """Wrong usage or configuration: nothing was decoded and nothing written."""


class RunError(Exception):
    """The run broke off (disk full, out of memory, ...); what was reported as done is in the store."""


@dataclasses.dataclass
class Summary:
    """What a call of :func:`extract` did."""

    output: str
    recipe: str
    model: dict[str, Any]
    device: str
    precision: str
    videos: int
    #: already in the store, unchanged
    skipped: int = 0
    done: int = 0
    clips: int = 0
    frames: int = 0
    #: wall clock from the first video opened to the store closed
    seconds: float = 0.0
    #: video -> reason
    failures: dict[str, str] = dataclasses.field(default_factory=dict)
    #: video -> packets that could not be decoded
    damaged: dict[str, int] = dataclasses.field(default_factory=dict)
    #: videos with fewer frames than a clip: stored, without a feature
    too_short: list[str] = dataclasses.field(default_factory=list)
    #: videos extracted anew, whose labels were made for the features before
    labels_gone: list[str] = dataclasses.field(default_factory=list)
    #: video -> why its first decoder gave up
    fallbacks: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Every video was done, skipped, or failed; False after an interruption."""
        return self.skipped + self.done + len(self.failures) == self.videos

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the fields, ``complete``, and the rates."""
        rate = {"frames_per_second": 0.0, "clips_per_second": 0.0}
        if self.seconds > 0:
            rate = {"frames_per_second": self.frames / self.seconds, "clips_per_second": self.clips / self.seconds}
        return {**dataclasses.asdict(self), "complete": self.complete, **rate}

    def __str__(self) -> str:
        lines = [
            f"{self.output}: {self.done} video{'s' * (self.done != 1)} done"
            + (f", {self.skipped} were there already" if self.skipped else "")
            + (f", {len(self.failures)} failed" if self.failures else "")
        ]
        if self.clips:
            lines.append(
                f"  {self.clips} clips of {self.frames} frames in {self.seconds:.1f} s: "
                f"{self.frames / self.seconds:.0f} frames/s, {self.clips / self.seconds:.2f} clips/s"
            )
        lines += [f"  damaged: {name}: {count} bad packets" for name, count in self.damaged.items()]
        lines += [f"  too short for a clip: {name}" for name in self.too_short]
        lines += [f"  labels gone: {name}: run streamfeat align again" for name in self.labels_gone]
        lines += [f"  failed: {name}: {reason}" for name, reason in self.failures.items()]
        return "\n".join(lines)


def extract(
    inputs: Sequence[str | os.PathLike[str]] | str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    recipe: Recipe | str = "wsvad",
    model: str | None = None,
    weights: str | None = None,
    device: str = "auto",
    decoder: str = "auto",
    precision: str = "auto",
    batch_size: int | None = None,
    dtype: str = "float32",
    root: str | os.PathLike[str] | None = None,
    lanes: int | None = None,
    overwrite: bool = False,
    strict: bool = False,
    dump_frames: str | os.PathLike[str] | None = None,
    reporter: Reporter | None = None,
    stop: threading.Event | None = None,
) -> Summary:
    """Extract the features of all videos in ``inputs`` into the HDF5 store ``output``.

    Videos already in the store whose source has not changed (bytes and modification time) are skipped; what
    failed before is tried again. A video is in the store whole or not at all, whatever happens to the process.

    Args:
        inputs: video files, folders, folders of numbered frames, ``@list.txt``.
        output: the store; created, or continued if it was made with the same recipe, model and dtype.
        recipe: a :class:`Recipe` or the name of a preset.
        model: ``vit_s`` ... ``vit_g`` or ``vit_tiny``; None: the size that the weights have.
        weights: checkpoint file, Hugging Face id, or ``random``; None: OpenGVLab's for the size.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        decoder: ``auto``, ``dali`` or ``pyav``.
        precision: ``auto``, ``fp32``, ``fp16``, ``bf16``, ``fp8`` or ``int8``.
        batch_size: samples (clips times crops) per step of the model; None: what suits the device.
        dtype: of the stored features, ``float32`` or ``float16``.
        root: where names in lists are looked up.
        lanes: videos decoded side by side; None: what suits the machine.
        overwrite: start anew where ``output`` exists.
        strict: a damaged video is a failure.
        dump_frames: folder for the frames as JPEG files, written first, as :func:`streamfeat.frames.dump_frames`; on
            a GPU by the GPU.
        reporter: is told how the run goes.
        stop: set it from another thread to end the run early, with all complete videos stored.

    Returns:
        A summary. Videos that failed are in ``failures``; they do not raise.

    Raises:
        ExtractError: wrong usage or configuration; nothing was written.
        RunError: the run broke off; what is complete is in the store, and the same call goes on.
    """
    reporter, stop = reporter or Quiet(), stop or threading.Event()
    inputs = [inputs] if isinstance(inputs, (str, os.PathLike)) else list(inputs)
    try:
        recipe = Recipe.named(recipe) if isinstance(recipe, str) else recipe
        videos = find_videos([os.fspath(path) for path in inputs], root)
        problems = check_names([video.name for video in videos])
        if problems:
            raise StoreError("; ".join(problems))
        encoder = load_encoder(
            weights, size=model, device=device, precision=precision, stats=recipe.stats,
            image_size=recipe.image_size, clip_frames=recipe.clip_frames, batch_size=batch_size or "auto",
        )
        decoders = Decoders(decoder, encoder.device, len(videos), lanes)
        store = StoreWriter.open(output, _header(recipe, encoder, dtype), overwrite=overwrite)
    except (RecipeError, InputError, ModelError, DecodeError, StoreError) as error:
        raise ExtractError(str(error)) from error

    summary = Summary(
        output=os.fspath(output), recipe=recipe.name, model=encoder.identity, device=str(encoder.device),
        precision=encoder.precision, videos=len(videos),
    )
    try:
        with store:
            if dump_frames is not None:
                _dump_frames(inputs, dump_frames, root, encoder.device, reporter, stop)
            todo, sizes = _to_do(videos, store, strict)
            summary.skipped = len(videos) - len(todo)
            _announce(reporter, encoder, decoders, summary)
            if todo:
                labelled = _labelled(todo, store)
                _Run(store, encoder, decoders, recipe, todo, sizes, labelled, strict, reporter, stop, summary).run()
    except StoreError as error:
        raise RunError(f"{error}; the same command goes on where this one ended") from error
    except MemoryError as error:
        raise RunError("out of memory: a smaller --batch-size or fewer --lanes may help") from error
    finally:
        encoder.close()
        reporter.close()
    return summary


def _dump_frames(
    inputs: list[str | os.PathLike[str]], folder: str | os.PathLike[str], root: str | os.PathLike[str] | None,
    device: Any, reporter: Reporter, stop: threading.Event,
) -> None:
    """Write the frames as JPEG files. Videos that fail at it will fail again below, and are reported there."""
    from streamfeat.files import UnsafeName
    from streamfeat.frames import FramesError, dump_frames

    try:
        dump_frames(
            inputs, folder, root=root, stop=stop, device=device if device.type == "cuda" else None,
            on_estimate=lambda estimate: reporter.note(str(estimate)),
        )
    except (FramesError, UnsafeName) as error:
        raise ExtractError(str(error)) from error
    except OSError as error:
        raise RunError(f"{folder}: {error.strerror or error}; the same command goes on where this one ended") from error


def _header(recipe: Recipe, encoder: Encoder, dtype: str) -> Header:
    dims = ("statistic", "channel") if len(encoder.row_shape) == 2 else ("channel",)
    if recipe.crops > 1:
        return Header(
            recipe=dataclasses.asdict(recipe), model=encoder.identity, dtype=dtype,
            row_shape=(recipe.crops, *encoder.row_shape), dims=("crop", *dims),
        )
    return Header(
        recipe=dataclasses.asdict(recipe), model=encoder.identity, dtype=dtype, row_shape=encoder.row_shape, dims=dims
    )


def _to_do(videos: list[Video], store: StoreWriter, strict: bool) -> tuple[list[Video], dict[str, int]]:
    """Videos that are missing, failed, or changed, and the bytes of each."""
    todo, sizes = [], {}
    for video in videos:
        record = store.videos.get(video.name)
        try:
            source = video.stat()
        except OSError:
            source = (0, 0)  # fails, with its reason, when its turn comes
        unchanged = record is not None and source == (record.source_bytes, record.source_mtime_ns)
        if not unchanged or video.name in store.failures or (strict and record.damaged_packets):
            todo.append(video)
            sizes[video.name] = source[0]
    return todo, sizes


def _labelled(todo: list[Video], store: StoreWriter) -> set[str]:
    """Of the videos to extract anew, those that have labels, which new features will not have."""
    anew = [video.name for video in todo if video.name in store.videos]
    if not anew:
        return set()
    with FeatureStore(store.path) as before:
        return {name for name in anew if _has_labels(before[name])}


def _has_labels(video: StoredVideo) -> bool:
    try:
        return video.labels is not None
    except StoreError:  # damaged ones go too
        return True


def _announce(reporter: Reporter, encoder: Encoder, decoders: Decoders, summary: Summary) -> None:
    if encoder.identity["source"] == "random":
        reporter.note("WARNING: the weights are random: these features mean nothing")
    todo = summary.videos - summary.skipped
    reporter.note(
        f"{todo} video{'s' * (todo != 1)} to do"
        + (f" ({summary.skipped} are in {summary.output} already)" if summary.skipped else "")
        + f": {encoder.identity['size']} on {encoder.device} ({encoder.why['device']}) in {encoder.precision} "
        f"({encoder.why['precision']}), batches of {encoder.batch_size} ({encoder.why['batch_size']})"
        + (f" by {encoder.how}" if encoder.how else "")
        + f", recipe {summary.recipe}, decoded by {decoders.label}"
    )


@dataclasses.dataclass
class _Job:
    """A video on its way, as decoded by one decoder."""

    video: Video
    attempt: int
    source: tuple[int, int]
    info: StreamInfo
    fallback: str | None
    #: that have their features, and of these how many went to the writer
    clips: int = 0
    written: int = 0
    ended: bool = False
    #: of the source's bytes, how many count as done
    bytes_done: float = 0.0
    #: features of crops that do not make a whole clip yet
    crops: list[np.ndarray] = dataclasses.field(default_factory=list)
    #: by first frame, the features of clips that came before earlier ones did: several lanes may share a video
    early: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)

    def frames(self, recipe: Recipe) -> int:
        """Frames that as many clips take as have their features."""
        return (self.clips - 1) * recipe.clip_stride + recipe.clip_span if self.clips else 0


@contextlib.contextmanager
def _model_errors() -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ModelError) as error:
        raise RunError(
            f"the model broke off: {first_line(error)}; what was done is kept, "
            "and the same command goes on where this one ended"
        ) from error


class _Run:
    """One pass over the videos that are to do."""

    def __init__(
        self, store: StoreWriter, encoder: Encoder, decoders: Decoders, recipe: Recipe, todo: list[Video],
        sizes: dict[str, int], labelled: set[str], strict: bool, reporter: Reporter, stop: threading.Event,
        summary: Summary,
    ) -> None:
        self._store, self._encoder, self._recipe, self._strict = store, encoder, recipe, strict
        self._labelled = labelled
        self._reporter, self._stop, self._summary, self._sizes = reporter, stop, summary, sizes
        self._counters = Counters(videos_total=len(todo), bytes_total=sum(sizes.values()))
        self._jobs: dict[str, _Job] = {}
        self._batcher = Batcher(encoder.batch_size, recipe.image_size, recipe.crops, buffers=1 + encoder.ahead)
        #: batches whose features are being computed, with their keys
        self._in_flight: deque[tuple[tuple[tuple[Hashable, int], ...], Pending]] = deque()
        self._writer = WriterThread(store, on_committed=self._on_committed)
        lanes = decoders.lanes + decoders.device_lanes
        if lanes > 1:
            # the longest first: begun last, it would have all other lanes wait for one
            todo = sorted(todo, key=lambda video: -sizes[video.name])
        self._lanes = Lanes(
            todo, decoders, recipe, encoder.device, dtype=encoder.input_dtype, lanes=decoders.lanes,
            device_lanes=decoders.device_lanes, sizes=sizes,
            depth=2 * max(1, encoder.batch_size // recipe.crops) + lanes,
        )

    def run(self) -> None:
        started = time.monotonic()
        try:
            with self._encoder.own_stream():
                for event in self._lanes.events(self._stop):
                    self._handle(event)
                    self._reporter.update(self._counters)
                if not self._stop.is_set():
                    for batch in self._batcher.rest():
                        self._encode(batch)
                while self._in_flight and not (self._stop.is_set() and self._is_futile()):
                    self._collect()
        finally:
            self._lanes.close()
            self._writer.close()
            self._summary.seconds = time.monotonic() - started
            self._reporter.update(self._counters)

    def _handle(self, event: Started | Decoded | Ended | Failed) -> None:
        name = event.video.name
        match event:
            case Started(video, attempt, source, info, fallback):
                if name not in self._summary.failures:  # as for features that are not finite
                    self._drop(name)
                    self._jobs[name] = _Job(video, attempt, source, info, fallback)
            case Decoded(attempt=attempt, clip=clip):
                if name in self._jobs and self._jobs[name].attempt == attempt:
                    for batch in self._batcher.add((name, attempt), clip):
                        self._encode(batch)
                self._lanes.give_back(clip)
            case Ended(attempt=attempt, info=info):
                if name in self._jobs and self._jobs[name].attempt == attempt:
                    self._jobs[name].info, self._jobs[name].ended = info, True
                    self._finish_if_complete(name)
            case Failed(video, reason):
                self._fail(video, "decode", reason)

    def _encode(self, batch: Batch) -> None:
        with _model_errors():
            self._in_flight.append((batch.keys, self._encoder.submit(batch.samples)))
        while len(self._in_flight) > self._encoder.ahead:
            self._collect()

    def _collect(self) -> None:
        """Wait for the oldest batch and hand its features on."""
        keys, pending = self._in_flight.popleft()
        with _model_errors():
            features = pending.result()
        finite = np.isfinite(features.reshape(len(features), -1)).all(axis=1)
        owners = [key for key, _ in keys]
        for (name, attempt), run in itertools.groupby(range(len(owners)), key=owners.__getitem__):
            indices = list(run)
            job = self._jobs.get(name)
            if job is None or job.attempt != attempt:
                continue
            bad = [index for index in indices if not finite[index]]
            if bad:
                self._lanes.skip(job.video)
                reason = f"features of the clip at frame {keys[bad[0]][1]} are not finite, in fp32 either"
                self._fail(job.video, "model", reason)
            else:
                span = slice(indices[0], indices[-1] + 1)
                self._write(job, features[span], [start_frame for _, start_frame in keys[span]])
        for name in {name for name, _ in owners}:
            self._finish_if_complete(name)

    def _write(self, job: _Job, rows: np.ndarray, start_frames: list[int]) -> None:
        """Hand features on, ``(n, *row)``, one for each sample; ``start_frames`` are those of their clips."""
        crops = self._recipe.crops
        if crops > 1:
            # those of a clip come one after the other
            start_frames = start_frames[crops - 1 - len(job.crops) :: crops]
            job.crops.extend(rows)
            whole = len(start_frames) * crops
            if not whole:
                return
            rows = np.stack(job.crops[:whole]).reshape(-1, crops, *rows.shape[1:])
            del job.crops[:whole]
        self._counters.frames -= job.frames(self._recipe)
        for start_frame, row in zip(start_frames, rows, strict=True):
            job.early[start_frame] = row.copy()
        self._counters.clips += len(rows)
        job.clips += len(rows)
        self._counters.frames += job.frames(self._recipe)
        self._write_in_order(job)
        if job.info.frames_hint:
            share = min(1.0, job.frames(self._recipe) / job.info.frames_hint)
            self._count_bytes(job, share * self._sizes[job.video.name])

    def _write_in_order(self, job: _Job) -> None:
        stride = self._recipe.clip_stride
        ready = []
        while (row := job.early.pop(stride * (job.written + len(ready)), None)) is not None:
            ready.append(row)
        if ready:
            start_frames = stride * np.arange(job.written, job.written + len(ready), dtype=np.int64)
            self._writer.rows(job.video.name, job.attempt, np.stack(ready), start_frames)
            job.written += len(ready)

    def _count_bytes(self, job: _Job, done: float) -> None:
        self._counters.bytes_done += done - job.bytes_done
        job.bytes_done = done

    def _finish_if_complete(self, name: str) -> None:
        job = self._jobs.get(name)
        if job is None or not job.ended or self._is_pending((name, job.attempt)):
            return
        info, video = job.info, job.video
        if self._strict and info.damaged_packets:
            self._fail(video, "decode", f"damaged: {info.damaged_packets} bad packets (--strict)")
            return
        if job.written != (clips := self._recipe.count_clips(info.frames)):
            self._fail(video, "decode", f"{job.written} of its {clips} clips came")
            return
        del self._jobs[name]
        self._count_bytes(job, self._sizes[name])
        attrs = {
            "source": os.path.abspath(video.path), "source_bytes": job.source[0], "source_mtime_ns": job.source[1],
            "frames": info.frames, "fps": info.fps, "width": info.width, "height": info.height,
            "codec": info.codec, "decoder": info.decoder, "damaged_packets": info.damaged_packets,
            "precision": self._encoder.precision,
        }
        if job.fallback:
            attrs["fallback"] = self._summary.fallbacks[name] = job.fallback
        self._writer.finish(name, job.attempt, attrs)
        self._summary.clips += job.clips
        self._summary.frames += info.frames
        if info.damaged_packets:
            self._summary.damaged[name] = info.damaged_packets
            self._reporter.note(
                f"{video.path}: damaged: {info.damaged_packets} bad packets, {info.frames} frames kept"
            )
        if name in self._labelled:
            self._summary.labels_gone.append(name)
            self._reporter.note(f"{video.path}: extracted anew: its labels are gone; run streamfeat align again")
        if not job.clips:
            self._summary.too_short.append(name)
            self._reporter.note(
                f"{video.path}: {info.frames} frames are fewer than the {self._recipe.clip_span} of a clip: "
                "no feature (--tail pad would give one)"
            )

    def _is_pending(self, key: Hashable) -> bool:
        return self._batcher.pending(key) or any(owner == key for keys, _ in self._in_flight for owner, _ in keys)

    def _is_futile(self) -> bool:
        """Whether what is in flight completes no video."""
        return not any(job.ended and not self._batcher.pending((name, job.attempt)) for name, job in self._jobs.items())

    def _fail(self, video: Video, stage: str, reason: str) -> None:
        self._drop(video.name)
        self._counters.bytes_done += self._sizes[video.name]
        self._writer.fail(video.name, stage, reason)
        self._summary.failures[video.name] = reason
        self._reporter.note(f"{video.path}: {reason}")

    def _drop(self, name: str) -> None:
        """Forget what an attempt at this video has given so far."""
        job = self._jobs.pop(name, None)
        if job is not None:
            self._batcher.forget((name, job.attempt))
            self._writer.discard(name, job.attempt)
            self._count_bytes(job, 0.0)
            self._counters.clips -= job.clips
            self._counters.frames -= job.frames(self._recipe)

    def _on_committed(self, done: list[str], failed: list[str]) -> None:
        # runs in the writer thread; the main thread only reads these
        self._counters.done += len(done)
        self._counters.failed += len(failed)
        self._summary.done += len(done)
        for name in failed:  # also those that the store refused, as float16 overflows
            self._summary.failures.setdefault(name, self._store.failures[name].error)

