"""Videos read with TorchCodec."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vlmkit.data.frames.base import TICK_S
from vlmkit.data.frames.container_reader import ContainerReader, import_decoder
from vlmkit.data.frames.pyav_reader import PyAVReader
from vlmkit.data.media import InMemory, VideoBlob, VideoRef


class TorchCodecReader(ContainerReader):
    """Reads with TorchCodec, which uses the FFmpeg libraries of the system (versions 4 and up).

    It tells when a frame is shown only by decoding it. So the clock is PyAV's, which reads it from the
    packets, and the time of every decoded frame is compared with it: a video that the two count
    differently is refused. A truncated file is refused, too.
    """

    decoder = "TorchCodec"

    def __init__(self, video: VideoRef, num_threads: int = 1) -> None:
        """Open `video`.

        Args:
            video: a file, or its bytes.
            num_threads: decoding threads; 0 lets FFmpeg choose. Loader workers are parallel already.

        Raises:
            MediaError: TorchCodec cannot read the video, or not correctly; names video and reason.
            ImportError: TorchCodec, the FFmpeg libraries or PyAV are not installed.
        """
        super().__init__(video)
        decoders = import_decoder("torchcodec.decoders")
        if isinstance(self._source, bytes):
            video = VideoBlob(InMemory(self._source, video.name))  # fetched once for both
        self.pts_s = PyAVReader(video, num_threads).pts_s
        try:
            self._decoder = decoders.VideoDecoder(
                self._source,
                dimension_order="NHWC",
                num_ffmpeg_threads=num_threads,
                seek_mode="exact",
            )
        except (RuntimeError, ValueError) as error:
            raise self._error(error) from error
        if len(self._decoder) != self.num_frames:
            raise self._error(f"it counts {len(self._decoder)} frames, PyAV {self.num_frames}")
        self._start_s = self._decoder.metadata.begin_stream_seconds

    def get(self, indices: Sequence[int]) -> NDArray[np.uint8]:
        """See `FrameReader.get`."""
        wanted = list(indices)
        try:
            batch = self._decoder.get_frames_at(wanted)
        except RuntimeError as error:
            raise self._error(error) from error
        times_s = batch.pts_seconds.numpy() - self._start_s
        late_s = np.abs(times_s - self.pts_s[wanted])
        if (late_s > TICK_S).any():
            index = wanted[int(late_s.argmax())]
            raise self._error(
                f"it takes another frame for frame {index}, {late_s.max():.3f} s away"
            )
        frames: NDArray[np.uint8] = batch.data.numpy()
        return frames
