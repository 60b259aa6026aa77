"""Processor settings of a published checkpoint -> overrides of our processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmkit.checkpoint.files import read_json
from vlmkit.checkpoint.section import Section
from vlmkit.checkpoint.side_files import IMAGE_AREA, VIDEO_AREA
from vlmkit.errors import CheckpointError

ONLY_VALUES = {"image_mean": [[0.5] * 3], "image_std": [[0.5] * 3]}

# Our name of an area, its published name, its released value.
AREAS = {
    part: (
        ("min_pixels", "shortest_edge", released["shortest_edge"]),
        ("max_pixels", "longest_edge", released["longest_edge"]),
    )
    for part, released in (("image", IMAGE_AREA), ("video", VIDEO_AREA))
}
SAMPLING: dict[str, dict[str, float]] = {
    "image": {},
    "video": {"fps": 2.0, "min_frames": 4, "max_frames": 768},
}


def processor_overrides(folder: Path) -> list[str]:
    """Pixel budgets and frame sampling, where a checkpoint states them; the released ones elsewhere.

    Args:
        folder: with `preprocessor_config.json` and `video_preprocessor_config.json`, or with both in
            `processor_config.json`, as transformers 5 writes them.

    Raises:
        CheckpointError: a file cannot be read, or normalises pixels in another way; names the file.
    """
    return [
        *_overrides("image", *_settings(folder, "preprocessor_config.json", "image_processor")),
        *_overrides(
            "video", *_settings(folder, "video_preprocessor_config.json", "video_processor")
        ),
    ]


def _overrides(part: str, path: Path, values: dict[str, Any]) -> list[str]:
    try:
        section = Section(values, "")
        section.require(ONLY_VALUES)
        size = Section(section.get("size", {}), "size")
        numbers = {ours: size.count(key, released) for ours, key, released in AREAS[part]}
        sampling = {key: section.number(key, released) for key, released in SAMPLING[part].items()}
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    return [f"processor.{part}.{name}={value!r}" for name, value in {**numbers, **sampling}.items()]


def _settings(folder: Path, file: str, key: str) -> tuple[Path, dict[str, Any]]:
    """The settings of one processor and where they stand; none where the checkpoint has none."""
    if (folder / file).is_file():
        return folder / file, read_json(folder / file)
    merged = folder / "processor_config.json"
    return merged, read_json(merged).get(key) or {} if merged.is_file() else {}
