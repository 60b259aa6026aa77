"""Videos to patches: sampling, times, agreement with transformers, unusable stretches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.data.clips import Clips, numbers
from vlmkit.data.frames.reader import FrameReader
from vlmkit.data.media import VideoFile
from vlmkit.data.video import VideoTransform, patch_times, sample_indices, smart_resize_video
from vlmkit.errors import MediaError

PUBLISHED = {
    "factor": 32,
    "temporal_factor": 2,
    "min_pixels": 4_096,
    "max_pixels": 25_165_824,
}


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
        open_reader=lambda video: ArrayReader(frames, fps),
    ).plan(VideoFile(Path("in memory")))
    assert list(video.frame_indices) == indices
    assert [list(video.grid)] == expected["video_grid_thw"].tolist()
    assert torch.equal(video.patches(), expected["pixel_values_videos"])
    times = qwen3_vl.processing_qwen3_vl.Qwen3VLProcessor._calculate_timestamps(
        None, indices, fps, 2
    )
    assert video.times_s == pytest.approx(times, abs=1e-9)


def test_a_single_frame_is_no_video(clips: Clips) -> None:
    with pytest.raises(MediaError, match=r"single\.mp4: .*single frame; use it as an image"):
        VideoTransform().plan(VideoFile(clips("single.mp4")))


def test_too_thin_frames_name_file_and_size(clips: Clips) -> None:
    with pytest.raises(MediaError, match=r"thin\.mp4: a picture of 8000x32 .* ratio of 250"):
        VideoTransform().plan(VideoFile(clips("thin.mp4")))


def test_a_whole_file(clips: Clips) -> None:
    video = VideoTransform().plan(VideoFile(clips("constant.mp4")))
    assert video.frame_indices == (0, 18, 36, 53, 71, 89)
    assert [f"{time:.1f}" for time in video.times_s] == ["0.3", "1.5", "2.7"]
    assert video.grid == (3, 4, 6)
    patches = video.patches()
    assert patches.shape == (3 * 4 * 6, 1536)
    halves = patches.view(3, 24, 3, 2, 16, 16)  # time, patch, channel, frame of the patch
    levels = (halves.mean(dim=(1, 2, 4, 5)) + 1) / 2 * 255
    assert numbers(levels.numpy().reshape(6, 1, 1, 1)) == [0, 18, 36, 53, 71, 89]


def test_a_stretch_counts_time_from_its_start(clips: Clips) -> None:
    video = VideoTransform(fps=4).plan(VideoFile(clips("constant.mp4")), start_s=1.05, end_s=2.0)
    # Frames 32 to 59 are shown in it: 28 frames, 0.93 s, so the least number of frames is kept.
    assert video.frame_indices == (32, 41, 50, 59)
    expected = [(32 + 41) / 60 - 1.05, (50 + 59) / 60 - 1.05]
    assert video.times_s == pytest.approx(expected, abs=1e-4)


def test_a_stretch_may_leave_out_either_end(clips: Clips) -> None:
    transform, video = VideoTransform(), VideoFile(clips("constant.mp4"))
    assert transform.plan(video, start_s=2.0).frame_indices == (60, 70, 79, 89)
    assert transform.plan(video, end_s=1.0).frame_indices == (0, 10, 19, 29)
    assert transform.plan(video, 0.0, 3.0).frame_indices == (0, 18, 36, 53, 71, 89)


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
def test_unusable_stretches(start_s: float, end_s: float | None, reason: str, clips: Clips) -> None:
    with pytest.raises(MediaError, match=rf"constant\.mp4: .*{reason}"):
        VideoTransform().plan(VideoFile(clips("constant.mp4")), start_s, end_s)


def test_an_odd_number_of_frames_repeats_the_last() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    video = VideoTransform(fps=10, open_reader=lambda video: ArrayReader(frames, 10)).plan(
        VideoFile(Path("five"))
    )
    assert video.frame_indices == (0, 1, 2, 3, 4)
    assert video.times_s == pytest.approx((0.05, 0.25, 0.4))
    assert video.grid == (3, 2, 2)
    last = video.patches().view(3, 4, 3, 2, 256)[-1]
    assert torch.equal(last[:, :, 0], last[:, :, 1])


def test_few_frames_are_held_at_source_resolution() -> None:
    asked: list[int] = []

    class Counting(ArrayReader):
        def get(self, indices: Sequence[int]) -> NDArray[np.uint8]:
            asked.append(len(indices))
            return super().get(indices)

    frames = np.zeros((100, 32, 32, 3), dtype=np.uint8)
    video = VideoTransform(open_reader=lambda video: Counting(frames, 2)).plan(
        VideoFile(Path("long"))
    )
    asked.clear()
    video.patches()
    assert sum(asked) == len(video.frame_indices) == 100
    assert max(asked) <= 16
