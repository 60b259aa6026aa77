"""Small video files, made with ffmpeg. Each holds counting frames unless its name says otherwise."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

# 90 grey frames, each two luma steps brighter than the one before: pixels tell the frame number.
COUNTER = "nullsrc=size=96x64:rate=30:duration=3,geq=lum=16+2*N:cb=128:cr=128"
# The first second at 30 frames per second, the rest at 10.
SLOWED = COUNTER + ",setpts='if(lt(N,30),N,3*N-60)'"
X264 = ("-c:v", "libx264", "-pix_fmt", "yuv420p", "-g", "30", "-bf", "2", "-qp", "0")
X265 = (
    "-c:v",
    "libx265",
    "-pix_fmt",
    "yuv420p",
    "-x265-params",
    "log-level=none:lossless=1:keyint=30",
)

MADE_OF_NOTHING: dict[str, tuple[str, ...]] = {
    "constant.mp4": ("-f", "lavfi", "-i", COUNTER, *X264, "-movflags", "faststart"),
    "variable.mp4": ("-f", "lavfi", "-i", SLOWED, *X264, "-fps_mode", "vfr"),
    "hevc.mp4": ("-f", "lavfi", "-i", COUNTER, *X265),
    "vp9.webm": ("-f", "lavfi", "-i", COUNTER, "-c:v", "libvpx-vp9", "-lossless", "1", "-g", "30"),
    "av1.mp4": ("-f", "lavfi", "-i", COUNTER, "-c:v", "libaom-av1", "-crf", "5", "-cpu-used", "8"),
    "sound.mp4": ("-f", "lavfi", "-i", "sine=duration=1"),
    "no_frames.mp4": ("-f", "lavfi", "-i", COUNTER, *X264, "-frames:v", "0"),
    "single.mp4": ("-f", "lavfi", "-i", COUNTER, *X264, "-frames:v", "1"),
    "seven.mp4": ("-f", "lavfi", "-i", COUNTER, *X264, "-frames:v", "7"),
    "thin.mp4": ("-f", "lavfi", "-i", "testsrc2=size=2x500:rate=10:duration=1", *X264),
    "odd_sides.mp4": (
        *("-f", "lavfi", "-i", "testsrc2=size=200x100:rate=10:duration=1,format=yuv444p"),
        *("-vf", "crop=97:63:0:0:exact=1", "-c:v", "libx264", "-pix_fmt", "yuv444p"),
    ),
}
MADE_OF_CONSTANT: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # before and after -i
    "stream.ts": ((), ("-c", "copy")),
    # Cut without re-encoding: an edit list hides the frames between the keyframe and the cut.
    "cut.mp4": (("-ss", "1.5"), ("-c", "copy")),
    "turned90.mp4": (("-display_rotation", "90"), ("-c", "copy")),
    "turned180.mp4": (("-display_rotation", "180"), ("-c", "copy")),
    "turned270.mp4": (("-display_rotation", "270"), ("-c", "copy")),
    "turned90.mkv": (("-display_rotation", "90"), ("-c", "copy")),
}


class Clips:
    """Makes files when they are first asked for: `clips("constant.mp4")`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.program = pytest.importorskip("imageio_ffmpeg").get_ffmpeg_exe()

    def __call__(self, name: str) -> Path:
        path = self.folder / name
        if path.exists():
            return path
        if name in MADE_OF_NOTHING:
            return self.make(name, *MADE_OF_NOTHING[name])
        constant = self("constant.mp4")
        if name in MADE_OF_CONSTANT:
            before, after = MADE_OF_CONSTANT[name]
            return self.make(name, *before, "-i", str(constant), *after)
        assert name == "truncated.mp4", name
        path.write_bytes(constant.read_bytes()[: constant.stat().st_size * 6 // 10])
        return path

    def make(self, name: str, *arguments: str) -> Path:
        """Run ffmpeg with `arguments`, to write a file of this name."""
        path = self.folder / name
        program = [self.program, "-loglevel", "error", "-y", "-threads", "1"]
        subprocess.run([*program, *arguments, str(path)], check=True)
        return path


MakeClip = Callable[[str], Path]


def numbers(frames: NDArray[Any]) -> list[int]:
    """The frame numbers that counting frames show."""
    levels = frames.mean(axis=(1, 2, 3)) + 0.5  # the conversion to RGB rounds down
    luma_steps = levels * 219 / 255 / 2
    assert abs(luma_steps - luma_steps.round()).max() < 0.3
    return [int(number) for number in np.round(luma_steps)]
