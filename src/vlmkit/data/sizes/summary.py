"""Numbers that describe measured samples, ready for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from vlmkit.data.sizes.measured import Measured, MediaColumns
from vlmkit.errors import Reason

Numbers = dict[str, Any]


def spread(values: ArrayLike) -> Numbers:
    """Mean, smallest, largest and percentiles; empty if there are no values."""
    numbers = np.asarray(values, dtype=float)
    if not numbers.size:
        return {}
    p1, p50, p90, p99 = np.percentile(numbers, [1, 50, 90, 99]).tolist()
    return {
        "mean": float(numbers.mean()),
        "min": float(numbers.min()),
        "p1": p1,
        "p50": p50,
        "p90": p90,
        "p99": p99,
        "max": float(numbers.max()),
    }


def summarise(measured: Measured, num_samples: int, remedies: Sequence[str] = ()) -> Numbers:
    """Describe a source.

    Args:
        measured: all of its samples, or some that stand for them.
        num_samples: of the source.
        remedies: names of what may be done to samples that do not fit, in order.
    """
    usable = measured.samples[measured.usable]
    without_media = (usable.images == 0) & (usable.videos == 0)
    images = measured.media[~measured.media.is_video]
    videos = measured.media[measured.media.is_video]
    return {
        "samples": num_samples,
        "measured": len(measured),
        "usable": len(usable),
        "unusable": {str(reason): count for reason, count in measured.reasons().items()},
        "text_only_share": float(without_media.mean()) if len(usable) else 0.0,
        "tokens": spread(usable.tokens),
        "supervised_tokens": spread(usable.scored),
        "visual_tokens": spread(usable.visual_tokens),
        "patches": spread(usable.patches),
        "images_per_sample": spread(usable.images),
        "videos_per_sample": spread(usable.videos),
        "images": _of_images(images),
        "videos": _of_videos(videos),
        "longer_than_a_row": _of_long(measured, remedies),
    }


def _of_images(images: MediaColumns) -> Numbers:
    if not len(images):
        return {"count": 0}
    resized = images.resized_height * images.resized_width / (images.height * images.width)
    return {
        "count": len(images),
        "height": spread(images.height),
        "width": spread(images.width),
        "megapixels": spread(images.height * images.width / 1e6),
        "aspect_ratio": spread(images.width / images.height),
        "visual_megapixels": spread(images.resized_height * images.resized_width / 1e6),
        "enlarged_share": float((resized > 1.1).mean()),
        "reduced_share": float((resized < 0.9).mean()),
    }


def _of_videos(videos: MediaColumns) -> Numbers:
    if not len(videos):
        return {"count": 0}
    lasting = videos.seconds > 0
    return {
        "count": len(videos),
        "height": spread(videos.height),
        "width": spread(videos.width),
        "aspect_ratio": spread(videos.width / videos.height),
        "seconds": spread(videos.seconds),
        "file_seconds": spread(videos.file_seconds),
        "file_fps": spread(videos.file_fps),
        "kept_frames": spread(videos.frames),
        "kept_fps": spread((videos.frames[lasting] - 1) / videos.seconds[lasting]),
        "frame_height": spread(videos.resized_height),
        "frame_width": spread(videos.resized_width),
    }


def _of_long(measured: Measured, remedies: Sequence[str]) -> Numbers:
    """What became of samples that are longer than a row."""
    samples = measured.samples
    done = {
        name: samples[measured.usable & (samples.remedy == i)]
        for i, name in enumerate(remedies, start=1)
    }
    left_out = measured.reasons().get(Reason.TOO_LONG, 0)
    return {
        "count": left_out + sum(len(part) for part in done.values()),
        "left_out": left_out,
        "made_to_fit": {
            name: {"count": len(part), "tokens_kept": spread(part.tokens / part.whole_tokens)}
            for name, part in done.items()
            if len(part)
        },
        "longest": spread(samples.whole_tokens).get("max", 0),
    }
