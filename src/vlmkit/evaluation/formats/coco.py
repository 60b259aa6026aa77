"""Detection sets in COCO's JSON: boxes in pictures, one row each; boxes in space, one row per category."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from vlmkit.data.sources.files import Paths, fingerprint_of, matched_files, short_hash
from vlmkit.errors import ConfigError

_KEPT = ("file_name", "file_path", "width", "height", "K")


class _Annotations:
    """A JSON file with `images`, `annotations` and `categories`, read when it is first needed."""

    def __init__(self, paths: Paths, kind: str) -> None:
        files = matched_files(paths)
        if len(files) != 1:
            raise ConfigError(f"{paths} names {len(files)} files: name one file of annotations")
        (self.file,) = files
        with self.file.path.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        self.fingerprint = fingerprint_of(kind, files, [digest])

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "content"}

    @cached_property
    def content(self) -> Mapping[str, list[dict[str, Any]]]:
        """Parsed.

        Raises:
            ConfigError: it is not of this form.
        """
        try:
            found = json.loads(self.file.path.read_text(encoding="utf-8"))
            return {key: list(found[key]) for key in ("images", "annotations", "categories")}
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{self.file.name} holds no images, annotations and categories as COCO has them ({error!r})"
            ) from error

    @property
    def names(self) -> dict[Any, str]:
        """Of categories, by id."""
        return {c["id"]: str(c["name"]) for c in self.content["categories"]}

    def by_image(self) -> dict[Any, list[dict[str, Any]]]:
        """Annotations by the id of their picture."""
        found = defaultdict(list)
        for annotation in self.content["annotations"]:
            found[annotation["image_id"]].append(annotation)
        return found


def category_names(paths: Paths) -> list[str]:
    """Names of all categories that have annotations, sorted."""
    read = _Annotations(paths, "coco-1")
    names = read.names
    return sorted({names[a["category_id"]] for a in read.content["annotations"]})


class CocoTable:
    """One row per picture.

    Columns: `file_name`, `width`, `height`, `boxes` (left, top, width, height in pixels), `labels` of the
    boxes, `categories`, the names of all, and `path` of the picture, beside the JSON file. Boxes of
    crowds are left out.

    Args:
        paths: one JSON file.

    Raises:
        ConfigError: it is not there, or not of COCO's form.
    """

    def __init__(self, paths: Paths) -> None:
        read = _Annotations(paths, "coco-1")
        self._name, self.fingerprint = read.file.name, read.fingerprint
        names, by_image = read.names, read.by_image()
        used = sorted({names[a["category_id"]] for a in read.content["annotations"]})
        self._rows = []
        for image in sorted(read.content["images"], key=lambda image: str(image["id"])):
            found = [a for a in by_image.get(image["id"], []) if not a.get("iscrowd")]
            self._rows.append({
                **_of_image(image),
                "path": str(read.file.path.parent / str(image.get("file_name", ""))),
                "boxes": [list(a["bbox"]) for a in found],
                "labels": [names[a["category_id"]] for a in found],
                "categories": used,
            })  # fmt: skip

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """See `Table.__getitem__`."""
        return self._rows[index]

    def origin(self, index: int) -> str:
        """See `Table.origin`."""
        return f"{self._name} image {self._rows[index]['image_id']}"


class Omni3DTable:
    """One row per picture and category in it of an Omni3D file (Brazil et al. 2023).

    Columns: `file_path`, `width`, `height`, `K`, `category`, and `boxes`: nine numbers each, centre, sizes
    along the box's own axes and angles in radians, in the coordinates of the camera. Boxes that Omni3D's
    evaluation ignores, because they are cut off, hidden or uncertain, are left out; it would also forgive
    answers about them, which is not done here.

    Args:
        paths: one JSON file.
        truncation: boxes of which this share or more lies outside the picture are left out.
        visibility: boxes of which this share or less can be seen are left out.
    """

    def __init__(self, paths: Paths, truncation: float = 0.33, visibility: float = 0.66) -> None:
        read = _Annotations(paths, "omni3d-1")
        self._name = read.file.name
        self.fingerprint = short_hash(read.fingerprint, truncation, visibility)
        names, by_image = read.names, read.by_image()
        self._rows = []
        for image in sorted(read.content["images"], key=lambda image: str(image["id"])):
            of_category = defaultdict(list)
            for annotation in by_image.get(image["id"], []):
                if _counts(annotation, truncation, visibility):
                    of_category[names[annotation["category_id"]]].append(_nine_numbers(annotation))
            for category, boxes in sorted(of_category.items()):
                self._rows.append({**_of_image(image), "category": category, "boxes": boxes})

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """See `Table.__getitem__`."""
        return self._rows[index]

    def origin(self, index: int) -> str:
        """See `Table.origin`."""
        row = self._rows[index]
        return f"{self._name} image {row['image_id']} {row['category']}"


def _of_image(image: Mapping[str, Any]) -> dict[str, Any]:
    name = image.get("file_path", image.get("file_name", ""))
    kept = {key: image[key] for key in _KEPT if key in image}
    return {"image_id": image["id"], "file_name": Path(str(name)).name, **kept}


def _counts(annotation: Mapping[str, Any], truncation: float, visibility: float) -> bool:
    """Whether Omni3D's evaluation asks for a box."""
    cut, seen = annotation.get("truncation", -1), annotation.get("visibility", -1)
    return not (
        not annotation.get("valid3D", True)
        or annotation.get("behind_camera", False)
        or annotation.get("lidar_pts", -1) == 0
        or annotation.get("segmentation_pts", -1) == 0
        or annotation.get("depth_error", -1) > 0.5
        or min(annotation["dimensions"]) <= 0
        or cut >= truncation
        or 0 <= seen <= visibility
    )


def _nine_numbers(annotation: Mapping[str, Any]) -> list[float]:
    """Centre, sizes along x, y and z of the box, and the angles about x, y and z that turn it."""
    width, height, length = annotation["dimensions"]  # along z, y and x of the box
    turned = np.asarray(annotation["R_cam"], float)
    across = np.hypot(turned[0, 0], turned[1, 0])
    roll = np.arctan2(turned[2, 1], turned[2, 2])
    pitch = np.arctan2(-turned[2, 0], across)
    yaw = np.arctan2(turned[1, 0], turned[0, 0])
    if across < 1e-9:  # turned by a right angle about y: only roll minus or plus yaw is known
        roll, yaw = np.arctan2(-turned[1, 2], turned[1, 1]), 0.0
    numbers = (*annotation["center_cam"], length, height, width, roll, pitch, yaw)
    return [float(number) for number in numbers]
