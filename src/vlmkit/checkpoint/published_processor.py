"""Processor settings in the published layout, and ours: both directions.

The published files are `preprocessor_config.json` for images and `video_preprocessor_config.json`;
transformers 5 writes both into `processor_config.json`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmkit.checkpoint.files import read_json
from vlmkit.checkpoint.section import Section
from vlmkit.data.image import ImageTransform
from vlmkit.data.processor import Processor
from vlmkit.data.video import VideoTransform
from vlmkit.errors import CheckpointError
from vlmkit.temporal.base import TemporalEncoding
from vlmkit.temporal.text_timestamp import Seconds, TextTimestamp

log = logging.getLogger(__name__)

Config = dict[str, Any]

IMAGE_FILE, VIDEO_FILE = "preprocessor_config.json", "video_preprocessor_config.json"
MERGED_FILE = "processor_config.json"

# Our names and the published ones. Sizes are areas in pixels, although they are called edges.
AREAS = {"min_pixels": "shortest_edge", "max_pixels": "longest_edge"}
COLOURS = {"mean": "image_mean", "std": "image_std"}
SIDES = ("patch_size", "temporal_patch_size", "merge_size")  # called the same
SAMPLING = ("fps", "min_frames", "max_frames")  # called the same

# Settings of which vlmkit implements one value only. A key that is absent has it.
ONLY_VALUES: Mapping[str, Sequence[Any]] = {
    "do_resize": [True],
    "resample": [3],  # bicubic
    "do_rescale": [True],
    "rescale_factor": [1 / 255],
    "do_normalize": [True],
    "do_sample_frames": [True],
    "num_frames": [None],
    "cap_pixels_per_frame": [False],
}


def processor_overrides(folder: Path) -> list[str]:
    """Pixel budgets and frame sampling, where a checkpoint states them; the released ones elsewhere.

    Where several files state them, the one that transformers would read counts.

    Args:
        folder: of the checkpoint.

    Raises:
        CheckpointError: a file cannot be read, or asks for what vlmkit does not do; names the file.
    """
    return [
        *_stated(folder, "image_processor", [IMAGE_FILE], _image_overrides),
        *_stated(folder, "video_processor", [VIDEO_FILE, IMAGE_FILE], _video_overrides),
    ]


def processor_configs(processor: Processor) -> dict[str, Config]:
    """The published files for a processor, by name.

    Frame sampling is stated, too. The released files leave it to the defaults of their class.

    Raises:
        CheckpointError: the published processors cannot do what this one does; names its part.
    """
    _check_temporal(processor.temporal)
    if type(processor.image) is not ImageTransform or type(processor.video) is not VideoTransform:
        raise CheckpointError(
            "the published processors know only ImageTransform and VideoTransform, this one has "
            f"{type(processor.image).__name__} and {type(processor.video).__name__}"
        )
    sampling = {name: getattr(processor.video, name) for name in SAMPLING}
    return {
        IMAGE_FILE: image_config(processor.image),
        VIDEO_FILE: {**video_config(processor.video), **sampling},
    }


def released_configs(
    patch_size: int, temporal_patch_size: int, merge_size: int
) -> dict[str, Config]:
    """The published files by name, with the released budgets, which are our defaults."""
    sides: Config = {
        "patch_size": patch_size,
        "temporal_patch_size": temporal_patch_size,
        "merge_size": merge_size,
    }
    return {
        IMAGE_FILE: image_config(ImageTransform(**sides)),
        VIDEO_FILE: video_config(VideoTransform(**sides)),
    }


def split_configs(folder: Path) -> dict[str, Config]:
    """What a folder states in the one file of transformers 5, as the published files by name.

    Raises:
        CheckpointError: the file cannot be read.
    """
    merged = read_json(folder / MERGED_FILE) if (folder / MERGED_FILE).is_file() else {}
    parts = {IMAGE_FILE: merged.get("image_processor"), VIDEO_FILE: merged.get("video_processor")}
    return {name: settings for name, settings in parts.items() if settings is not None}


def image_config(image: ImageTransform) -> Config:
    """preprocessor_config.json."""
    return {**_pixels(image), "image_processor_type": "Qwen2VLImageProcessorFast"}


def video_config(video: VideoTransform) -> Config:
    """video_preprocessor_config.json, without frame sampling."""
    return {**_pixels(video), "video_processor_type": "Qwen3VLVideoProcessor"}


def _pixels(transform: ImageTransform | VideoTransform) -> Config:
    return {
        "size": {published: getattr(transform, ours) for ours, published in AREAS.items()},
        **{name: getattr(transform, name) for name in SIDES},
        **{published: list(getattr(transform, ours)) for ours, published in COLOURS.items()},
        "processor_class": "Qwen3VLProcessor",
    }


def _check_temporal(temporal: TemporalEncoding) -> None:
    """Published processors write seconds before every temporal patch and can do nothing else."""
    name = type(temporal).__name__
    if isinstance(temporal, TextTimestamp):
        formats = temporal.formats
        if type(temporal) is TextTimestamp and [type(write) for write in formats] == [Seconds]:
            return
        name = f"{name} of {', '.join(type(write).__name__ for write in formats)}"
    raise CheckpointError(
        f"videos are laid out by {name}, but the published processors write '<1.5 seconds>' before "
        "every temporal patch (temporal=text_seconds), so their readers would feed the model other "
        "sequences. vlmkit.save_pretrained(model, folder) writes the weights alone, if that is wanted."
    )


def _stated(
    folder: Path,
    key: str,
    files: Sequence[str],
    overrides: Callable[[Section, Path], list[str]],
) -> list[str]:
    """Overrides from the table that transformers would read: its order of files is kept."""
    values: Any = None
    path = folder / MERGED_FILE
    if path.is_file():
        values = read_json(path).get(key)
    if values is None:
        path = next((folder / file for file in files if (folder / file).is_file()), folder)
        values = read_json(path) if path.is_file() else {}
    try:
        section = Section(values, "")
        section.require(ONLY_VALUES)
        return overrides(section, path)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def _image_overrides(section: Section, path: Path) -> list[str]:
    size = Section(section.get("size", {}), "size")
    areas = {  # min_pixels and max_pixels of older files win over the size, as they do in transformers
        ours: section.count(ours, size.count(published, getattr(ImageTransform, ours)))
        for ours, published in AREAS.items()
    }
    return _assignments("image", {**areas, **_sides(section)}, _colours(section))


def _video_overrides(section: Section, path: Path) -> list[str]:
    size = Section(section.get("size", {}), "size")
    areas = {
        ours: size.count(published, getattr(VideoTransform, ours))
        for ours, published in AREAS.items()
    }
    for ours, published in AREAS.items():
        if section.get(ours, areas[ours]) != areas[ours]:
            log.warning(
                "%s: %s is ignored for videos, as transformers ignores it; size.%s counts",
                path,
                ours,
                published,
            )
    sampling = {name: section.number(name, getattr(VideoTransform, name)) for name in SAMPLING}
    return _assignments("video", {**areas, **_sides(section), **sampling}, _colours(section))


def _sides(section: Section) -> dict[str, int]:
    """Sides that are stated; the others are the model's."""
    return {name: section.count(name) for name in SIDES if section.get(name) is not None}


def _colours(section: Section) -> dict[str, list[float]]:
    colours: dict[str, list[float]] = {}
    for ours, published in COLOURS.items():
        values = section.get(published)
        if values is None:
            continue
        if not isinstance(values, list) or not all(
            isinstance(value, float | int) for value in values
        ):
            raise CheckpointError(
                f"{published} must be a list of numbers, it is {json.dumps(values)}"
            )
        colours[ours] = [float(value) for value in values]
    return colours


def _assignments(
    part: str, numbers: Mapping[str, float], colours: Mapping[str, list[float]]
) -> list[str]:
    return [
        *(f"processor.{part}.{name}={value!r}" for name, value in numbers.items()),
        *(f"++processor.{part}.{name}={values!r}" for name, values in colours.items()),
    ]
