"""How much two turned boxes in space have in common, exactly."""

from __future__ import annotations

import math

import numpy as np

from vlmkit.data.geometry.shapes import Box3D
from vlmkit.evaluation.extras import eval_package


def rotation(box: Box3D, angle_unit_rad: float = 1.0) -> np.ndarray:
    """(3, 3) from the box's axes to the camera's: about x, then y, then z, by its three angles in order.

    Both readings of the cookbook turn in this order; they differ in the names of the angles and in
    the unit. Its drawing code takes them as multiples of pi: `angle_unit_rad=math.pi`.
    """
    about = [angle * angle_unit_rad for angle in (box.roll_rad, box.pitch_rad, box.yaw_rad)]
    (cx, cy, cz), (sx, sy, sz) = np.cos(about), np.sin(about)
    x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return z @ y @ x


def iou_3d(a: Box3D, b: Box3D, angle_unit_rad: float = 1.0) -> float:
    """Common volume over the volume of both; 0 where one has no volume.

    The common part is convex: corners of the twelve half-spaces, and the volume of their hull.
    """
    volumes = math.prod(a.size_m), math.prod(b.size_m)
    if min(volumes) <= 0 or not all(map(math.isfinite, volumes)):
        return 0.0
    common = min(_common_volume(a, b, angle_unit_rad), *volumes)
    return common / (sum(volumes) - common)


def _common_volume(a: Box3D, b: Box3D, angle_unit_rad: float) -> float:
    apart = math.dist(a.center_m, b.center_m)
    if 2 * apart >= math.hypot(*a.size_m) + math.hypot(*b.size_m):
        return 0.0
    scale = max(a.size_m)
    spaces = np.concatenate(
        [_half_spaces(box, a.center_m, scale, angle_unit_rad) for box in (a, b)]
    )
    optimize = eval_package("scipy.optimize", "overlap of 3-D boxes")
    # The middle of the largest ball inside both: a point from which all twelve planes are seen.
    found = optimize.linprog(
        [0, 0, 0, -1],
        A_ub=np.column_stack([spaces[:, :3], np.ones(len(spaces))]),
        b_ub=-spaces[:, 3],
        bounds=[(None, None)] * 3 + [(0, None)],
    )
    if not found.success or found.x[3] <= 1e-9:
        return 0.0
    spatial = eval_package("scipy.spatial", "overlap of 3-D boxes")
    corners = spatial.HalfspaceIntersection(spaces, found.x[:3]).intersections
    return float(spatial.ConvexHull(corners).volume) * scale**3


def _half_spaces(
    box: Box3D, origin: tuple[float, float, float], scale: float, angle_unit_rad: float
) -> np.ndarray:
    """(6, 4) rows (normal, offset): inside is where `normal @ x + offset <= 0`."""
    axes = rotation(box, angle_unit_rad).T
    center = (np.array(box.center_m) - origin) / scale
    half = np.array(box.size_m) / 2 / scale
    along = axes @ center
    return np.concatenate(
        [np.column_stack([axes, -along - half]), np.column_stack([-axes, along - half])]
    )
