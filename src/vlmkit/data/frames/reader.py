"""The readers of videos, under one roof; each has its own file in `frames/`.

| reader | H.264, HEVC, VP9, variable rate | AV1 | truncated file | turned by its header | needs |
|---|---|---|---|---|---|
| `DecordReader` | yes | refused | refused | MP4 and MOV; Matroska refused | decord |
| `PyAVReader` | yes | yes | the frames that are there | yes | PyAV |
| `TorchCodecReader` | yes | yes | refused | yes | TorchCodec, FFmpeg libraries, PyAV |
| `open_auto` | the first of decord and PyAV that can | | | | one of the two |
| `FrameSequenceReader` | a list of pictures; given one, every other reader is one of these | | | | |

Whichever it is: text and playlists are refused, so that nothing is fetched (`network_refused`); a file
with sound only, or with no frame at all, is an error (`no_frames`), and so is one whose frames have no
times (`no_clock`); a single frame is a video of 0 s; sizes may be odd; of damage inside, decoders mend
what they can.
`vlmkit.data.frames.decode_process.Guarded` runs any of them in a process that can be killed.
"""

from vlmkit.data.frames.auto import open_auto
from vlmkit.data.frames.base import TICK_S, FrameReader, OpenReader
from vlmkit.data.frames.decord_reader import DecordReader
from vlmkit.data.frames.pyav_reader import PyAVReader
from vlmkit.data.frames.sequence_reader import FrameSequenceReader
from vlmkit.data.frames.torchcodec_reader import TorchCodecReader

__all__ = [
    "TICK_S",
    "DecordReader",
    "FrameReader",
    "FrameSequenceReader",
    "OpenReader",
    "PyAVReader",
    "TorchCodecReader",
    "open_auto",
]
