"""Video files to patches: readers against known frames and times, sampling, transformers, bad input."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vlmkit.data import frame_reader as module
from vlmkit.data.frame_reader import DecordReader, FrameReader, PyAVReader, open_auto
from vlmkit.data.video import VideoTransform, patch_times, sample_indices, smart_resize_video
from vlmkit.errors import MediaError

PUBLISHED = {
    "factor": 32,
    "temporal_factor": 2,
    "min_pixels": 4_096,
    "max_pixels": 25_165_824,
}

# decord has wheels for few platforms.
needs_decord = pytest.mark.skipif(find_spec("decord") is None, reason="decord is not installed")
READERS = [pytest.param(DecordReader, marks=needs_decord), PyAVReader, open_auto]

# 90 grey frames, each two luma steps brighter than the one before: pixels tell the frame number.
COUNTER = "nullsrc=size=96x64:rate=30:duration=3,geq=lum=16+2*N:cb=128:cr=128"
# The first second at 30 frames per second, the rest at 10.
SLOWED = COUNTER + ",setpts='if(lt(N,30),N,3*N-60)'"
X264 = ["-c:v", "libx264", "-pix_fmt", "yuv420p", "-g", "30", "-bf", "2", "-qp", "0"]


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Files made with ffmpeg; each holds the counting frames unless its name says otherwise."""
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    folder = tmp_path_factory.mktemp("clips")

    def ffmpeg(name: str, *arguments: str) -> Path:
        program = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-y", "-threads", "1"]
        subprocess.run([*program, *arguments, str(folder / name)], check=True)
        return folder / name

    constant = ffmpeg("constant.mp4", "-f", "lavfi", "-i", COUNTER, *X264, "-movflags", "faststart")
    variable = ffmpeg("variable.mp4", "-f", "lavfi", "-i", SLOWED, *X264, "-fps_mode", "vfr")
    stream = ffmpeg("stream.ts", "-i", str(constant), "-c", "copy")
    # Cut without re-encoding: an edit list hides the frames between the keyframe and the cut.
    cut = ffmpeg("cut.mp4", "-ss", "1.5", "-i", str(constant), "-c", "copy")
    turned = ffmpeg("turned.mp4", "-display_rotation", "90", "-i", str(constant), "-c", "copy")
    sound = ffmpeg("sound.mp4", "-f", "lavfi", "-i", "sine=duration=1")
    single = ffmpeg("single.mp4", "-f", "lavfi", "-i", COUNTER, *X264, "-frames:v", "1")
    thin = ffmpeg("thin.mp4", "-f", "lavfi", "-i", "testsrc2=size=2x500:rate=10:duration=1", *X264)
    truncated = folder / "truncated.mp4"
    truncated.write_bytes(constant.read_bytes()[: constant.stat().st_size * 6 // 10])
    return SimpleNamespace(
        constant=constant,
        variable=variable,
        stream=stream,
        cut=cut,
        turned=turned,
        sound=sound,
        single=single,
        thin=thin,
        truncated=truncated,
    )


def numbers(frames: NDArray[Any]) -> list[int]:
    """The frame numbers that counting frames show."""
    levels = frames.mean(axis=(1, 2, 3)) + 0.5  # the conversion to RGB rounds down
    luma_steps = levels * 219 / 255 / 2
    assert abs(luma_steps - luma_steps.round()).max() < 0.3
    return luma_steps.round().astype(int).tolist()


class ArrayReader(FrameReader):
    """Frames in memory, at a constant rate."""

    def __init__(self, frames: NDArray[np.uint8], fps: float) -> None:
        self.frames = frames
        self.pts_s = np.arange(len(frames)) / fps

    def get(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        return self.frames[list(indices)]


@pytest.mark.parametrize(
    ("size", "resized", "num_tokens"),
    [
        ((16, 480, 640), (480, 640), 2400),
        ((120, 720, 1280), (320, 608), 11400),
        ((768, 720, 1280), (128, 224), 10752),
        ((4, 20, 20), (32, 32), 2),
    ],
)
def test_published_sizes(
    size: tuple[int, int, int], resized: tuple[int, int], num_tokens: int
) -> None:
    height, width = smart_resize_video(*size, **PUBLISHED)
    assert (height, width) == resized
    assert size[0] // 2 * (height // 32) * (width // 32) == num_tokens


def transformers_video() -> Any:
    return pytest.importorskip("transformers.models.qwen3_vl.video_processing_qwen3_vl")


@settings(deadline=None)  # the first example imports transformers
@given(num_frames=st.integers(1, 800), height=st.integers(1, 4000), width=st.integers(1, 4000))
def test_smart_resize_agrees_with_transformers(num_frames: int, height: int, width: int) -> None:
    try:
        expected = transformers_video().smart_resize(num_frames, height, width, **PUBLISHED)
    except ValueError:
        expected = None
    try:
        resized = smart_resize_video(num_frames, height, width, **PUBLISHED)
    except MediaError:
        resized = None
    assert resized == expected
    if resized is not None:
        assert resized[0] % 32 == resized[1] % 32 == 0


def test_published_sampling() -> None:
    indices = sample_indices(90, 90 / 30, fps=2, min_frames=4, max_frames=768)
    assert indices == [0, 18, 36, 53, 71, 89]
    times = patch_times([index / 30 for index in indices], 2)
    assert [f"{time:.1f}" for time in times] == ["0.3", "1.5", "2.7"]


def test_the_last_frame_counts_again_where_frames_are_odd() -> None:
    assert patch_times([0.0, 0.5, 2.0], 2) == (0.25, 2.0)
    assert patch_times([0.0, 1.0, 2.0, 4.0], 3) == (1.0, 4.0)


@settings(deadline=None)
@given(
    num_frames=st.integers(1, 5000),
    source_fps=st.sampled_from([10.0, 24.0, 25.0, 30000 / 1001, 30.0, 60.0]),
    fps=st.sampled_from([0.5, 1.0, 2.0, 4.0]),
)
def test_sampling_agrees_with_transformers(num_frames: int, source_fps: float, fps: float) -> None:
    metadata = pytest.importorskip("transformers.video_utils").VideoMetadata(
        total_num_frames=num_frames, fps=source_fps
    )
    processor = transformers_video().Qwen3VLVideoProcessor()
    expected = processor.sample_frames(metadata, fps=fps)
    duration_s = num_frames / source_fps
    kept = sample_indices(num_frames, duration_s, fps=fps, min_frames=4, max_frames=768)
    assert kept == expected.tolist()


@pytest.mark.parametrize(("fps", "min_frames", "max_frames"), [(0, 4, 8), (2, 0, 8), (2, 9, 8)])
def test_unusable_sampling(fps: float, min_frames: int, max_frames: int) -> None:
    message = f"fps is {fps}, min_frames is {min_frames} and max_frames is {max_frames}"
    with pytest.raises(ValueError, match=message):
        sample_indices(90, 3.0, fps=fps, min_frames=min_frames, max_frames=max_frames)


@pytest.mark.parametrize(
    ("num_frames", "height", "width", "fps"),
    [(90, 48, 64, 30), (45, 120, 90, 24), (11, 33, 200, 2), (3, 400, 300, 1), (100, 30, 20, 25)],
)
def test_agrees_with_transformers(num_frames: int, height: int, width: int, fps: float) -> None:
    """Measured difference of pixels to transformers 5.23: none, bit for bit."""
    qwen3_vl = pytest.importorskip("transformers.models.qwen3_vl")
    metadata = pytest.importorskip("transformers.video_utils").VideoMetadata
    frames = np.random.default_rng(0).integers(
        0, 256, (num_frames, height, width, 3), dtype=np.uint8
    )
    processor = transformers_video().Qwen3VLVideoProcessor(
        size={"shortest_edge": 4_096, "longest_edge": 300_000},
        image_mean=[0.4, 0.5, 0.6],
        image_std=[0.3, 0.2, 0.1],
        cap_pixels_per_frame=False,
    )
    expected = processor(
        videos=[frames],
        video_metadata=[metadata(total_num_frames=num_frames, fps=fps)],
        return_metadata=True,
        return_tensors="pt",
    )
    indices = [int(index) for index in expected["video_metadata"][0].frames_indices]

    video = VideoTransform(
        max_pixels=300_000,
        mean=(0.4, 0.5, 0.6),
        std=(0.3, 0.2, 0.1),
        open_reader=lambda path: ArrayReader(frames, fps),
    )(Path("in memory"))
    assert list(video.frame_indices) == indices
    assert [list(video.grid)] == expected["video_grid_thw"].tolist()
    assert torch.equal(video.patches, expected["pixel_values_videos"])
    times = qwen3_vl.processing_qwen3_vl.Qwen3VLProcessor._calculate_timestamps(
        None, indices, fps, 2
    )
    assert video.times_s == pytest.approx(times, abs=1e-9)


@pytest.mark.parametrize("open_reader", READERS)
def test_readers_give_the_frames_that_were_asked_for(
    open_reader: Callable[[Path], FrameReader], clips: SimpleNamespace
) -> None:
    reader = open_reader(clips.constant)
    assert reader.num_frames == 90
    assert reader.duration_s == pytest.approx(3.0, abs=1e-4)
    assert reader.pts_s == pytest.approx(np.arange(90) / 30, abs=1e-4)
    frames = reader.get([5, 89, 0, 31, 30, 29, 31])
    assert frames.shape == (7, 64, 96, 3)
    assert frames.dtype == np.uint8
    assert numbers(frames) == [5, 89, 0, 31, 30, 29, 31]
    assert numbers(reader.get([30, 45, 60, 75])) == [30, 45, 60, 75]
    assert numbers(reader.get(range(90))) == list(range(90))


@pytest.mark.parametrize("open_reader", READERS)
def test_times_of_a_variable_rate_are_those_of_the_frames(
    open_reader: Callable[[Path], FrameReader], clips: SimpleNamespace
) -> None:
    reader = open_reader(clips.variable)
    expected = [*(np.arange(30) / 30), *(1 + np.arange(60) / 10)]
    assert reader.pts_s == pytest.approx(expected, abs=1e-4)
    assert numbers(reader.get([10, 29, 30, 70])) == [10, 29, 30, 70]

    video = VideoTransform(open_reader=open_reader)(clips.variable)
    assert video.frame_indices[:3] == (0, 7, 15)
    assert video.times_s[0] == pytest.approx((0 + 7 / 30) / 2, abs=1e-4)
    assert len(video.frame_indices) == 13
    assert video.times_s[-1] == pytest.approx(6.9, abs=1e-4)  # the last frame and its repetition


@needs_decord
@pytest.mark.parametrize("name", ["constant", "variable", "turned"])
def test_decord_and_pyav_agree(name: str, clips: SimpleNamespace) -> None:
    """Measured: equal pixels, times within 5e-5 s (decord gives them in float32)."""
    decord, pyav = DecordReader(getattr(clips, name)), PyAVReader(getattr(clips, name))
    assert decord.pts_s == pytest.approx(pyav.pts_s, abs=1e-4)
    assert decord.duration_s == pytest.approx(pyav.duration_s, abs=1e-4)
    everything = range(decord.num_frames)
    assert np.array_equal(decord.get(everything), pyav.get(everything))


@pytest.mark.parametrize("open_reader", READERS)
def test_frames_stand_upright(
    open_reader: Callable[[Path], FrameReader], clips: SimpleNamespace
) -> None:
    assert open_reader(clips.turned).get([3, 4]).shape == (2, 96, 64, 3)


@needs_decord
@pytest.mark.parametrize(
    ("name", "reason", "shown"),
    [
        ("cut", "edit list", range(45, 90)),
        ("stream", r"seeks inexactly in \.ts files", range(90)),
    ],
)
def test_what_decord_gets_wrong_is_read_by_pyav_and_logged(
    name: str,
    reason: str,
    shown: range,
    clips: SimpleNamespace,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = getattr(clips, name)
    with pytest.raises(MediaError, match=rf"{path.name}.*{reason}"):
        DecordReader(path)
    with caplog.at_level(logging.WARNING):
        reader = open_auto(path)
        open_auto(path)
    (message,) = caplog.messages  # once per file
    assert path.name in message
    assert message.endswith("reading with PyAV instead")
    assert numbers(reader.get(range(len(shown)))) == list(shown)
    assert reader.pts_s[:2] == pytest.approx([0, 1 / 30], abs=1e-4)


@needs_decord
def test_of_a_truncated_file_pyav_reads_what_is_there(clips: SimpleNamespace) -> None:
    with pytest.raises(MediaError, match=r"truncated\.mp4: decord cannot read it"):
        DecordReader(clips.truncated)
    reader = open_auto(clips.truncated)
    assert 10 < reader.num_frames < 80
    present = numbers(reader.get(range(reader.num_frames)))
    assert present == (reader.pts_s * 30).round().astype(int).tolist()


@needs_decord
def test_pyav_takes_over_when_decoding_fails(
    clips: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = open_auto(clips.constant)

    def fail(self: DecordReader, indices: Sequence[int]) -> NDArray[np.uint8]:
        raise MediaError("a damaged frame")

    monkeypatch.setattr(DecordReader, "get", fail)
    assert numbers(reader.get([7, 40])) == [7, 40]
    assert numbers(reader.get([41])) == [41]


@needs_decord
@pytest.mark.parametrize(("absent", "reader"), [("decord", DecordReader), ("av", PyAVReader)])
def test_one_decoder_is_enough(
    absent: str,
    reader: type[DecordReader | PyAVReader],
    clips: SimpleNamespace,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real_import = module._import

    def import_others(name: str) -> Any:
        return real_import("no_such_module" if name == absent else name)

    monkeypatch.setattr(module, "_import", import_others)
    assert numbers(open_auto(clips.constant).get([3])) == [3]
    with pytest.raises(ImportError, match="pip install"):
        reader(clips.constant)


@needs_decord
def test_without_pyav_the_complaint_of_decord_stands(
    clips: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PyAVReader", lambda *_: module._import("no_such_module"))
    with pytest.raises(MediaError, match=r"cut\.mp4: decord cannot read it"):
        open_auto(clips.cut)


@pytest.mark.parametrize("open_reader", READERS)
@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("absent.mp4", None, "file not found"),
        ("empty.mp4", b"", "file is empty"),
        ("text.mp4", b"no video at all\n" * 100, "cannot read it"),
    ],
)
def test_unreadable_files_name_file_and_reason(
    open_reader: Callable[[Path], FrameReader],
    name: str,
    content: bytes | None,
    reason: str,
    tmp_path: Path,
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(MediaError, match=rf"{name}: .*{reason}"):
        VideoTransform(open_reader=open_reader)(path)


@pytest.mark.parametrize("open_reader", READERS)
def test_sound_without_pictures(
    open_reader: Callable[[Path], FrameReader], clips: SimpleNamespace
) -> None:
    with pytest.raises(MediaError, match=r"sound\.mp4: .*video stream"):
        open_reader(clips.sound)


def test_a_folder_is_no_video(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="not a file"):
        open_auto(tmp_path)


def test_a_single_frame_is_no_video(clips: SimpleNamespace) -> None:
    with pytest.raises(MediaError, match=r"single\.mp4: .*single frame; use it as an image"):
        VideoTransform()(clips.single)


def test_too_thin_frames_name_file_and_size(clips: SimpleNamespace) -> None:
    with pytest.raises(MediaError, match=r"thin\.mp4: a picture of 8000x32 .* ratio of 250"):
        VideoTransform()(clips.thin)


def test_a_whole_file(clips: SimpleNamespace) -> None:
    video = VideoTransform()(clips.constant)
    assert video.frame_indices == (0, 18, 36, 53, 71, 89)
    assert [f"{time:.1f}" for time in video.times_s] == ["0.3", "1.5", "2.7"]
    assert video.grid == (3, 4, 6)
    assert video.patches.shape == (3 * 4 * 6, 1536)
    halves = video.patches.view(3, 24, 3, 2, 16, 16)  # time, patch, channel, frame of the patch
    levels = (halves.mean(dim=(1, 2, 4, 5)) + 1) / 2 * 255
    assert numbers(levels.numpy().reshape(6, 1, 1, 1)) == [0, 18, 36, 53, 71, 89]


def test_a_stretch_counts_time_from_its_start(clips: SimpleNamespace) -> None:
    video = VideoTransform(fps=4)(clips.constant, start_s=1.05, end_s=2.0)
    # Frames 32 to 59 are shown in it: 28 frames, 0.93 s, so the least number of frames is kept.
    assert video.frame_indices == (32, 41, 50, 59)
    expected = [(32 + 41) / 60 - 1.05, (50 + 59) / 60 - 1.05]
    assert video.times_s == pytest.approx(expected, abs=1e-4)


def test_a_stretch_may_leave_out_either_end(clips: SimpleNamespace) -> None:
    transform = VideoTransform()
    assert transform(clips.constant, start_s=2.0).frame_indices == (60, 70, 79, 89)
    assert transform(clips.constant, end_s=1.0).frame_indices == (0, 10, 19, 29)
    assert transform(clips.constant, 0.0, 3.0).frame_indices == (0, 18, 36, 53, 71, 89)


@pytest.mark.parametrize(
    ("start_s", "end_s", "reason"),
    [
        (0.0, 3.1, "not within the file, which lasts 3.000 s"),
        (5.0, None, "not within the file"),
        (-1.0, 2.0, "not within the file"),
        (2.0, 2.0, "is empty"),
        (2.5, 2.0, "is empty"),
        (1.01, 1.02, "holds no frame"),
        (1.0, 1.03, "1 frame.* do not fill a temporal patch of 2"),
    ],
)
def test_unusable_stretches(
    start_s: float, end_s: float | None, reason: str, clips: SimpleNamespace
) -> None:
    with pytest.raises(MediaError, match=rf"constant\.mp4: .*{reason}"):
        VideoTransform()(clips.constant, start_s, end_s)


def test_an_odd_number_of_frames_repeats_the_last() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    video = VideoTransform(fps=10, open_reader=lambda path: ArrayReader(frames, 10))(Path("five"))
    assert video.frame_indices == (0, 1, 2, 3, 4)
    assert video.times_s == pytest.approx((0.05, 0.25, 0.4))
    assert video.grid == (3, 2, 2)
    last = video.patches.view(3, 4, 3, 2, 256)[-1]
    assert torch.equal(last[:, :, 0], last[:, :, 1])


def test_few_frames_are_held_at_source_resolution() -> None:
    asked: list[int] = []

    class Counting(ArrayReader):
        def get(self, indices: Sequence[int]) -> NDArray[np.uint8]:
            asked.append(len(indices))
            return super().get(indices)

    frames = np.zeros((100, 32, 32, 3), dtype=np.uint8)
    video = VideoTransform(open_reader=lambda path: Counting(frames, 2))(Path("long"))
    assert sum(asked) == len(video.frame_indices) == 100
    assert max(asked) <= 16
