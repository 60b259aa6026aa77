"""Readers of videos against known frames and times, against each other, and on files that lack something."""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.data.clips import Clips, numbers
from vlmkit.data.frames import auto, decord_reader, pyav_reader
from vlmkit.data.frames.reader import (
    DecordReader,
    FrameReader,
    OpenReader,
    PyAVReader,
    TorchCodecReader,
    open_auto,
)
from vlmkit.data.media import InMemory, VideoBlob, VideoFile, VideoRef
from vlmkit.errors import MediaError, Reason


def torchcodec_is_missing() -> str:
    """Why TorchCodec cannot be used here; empty if it can."""
    if find_spec("torchcodec") is None:
        return "torchcodec is not installed"
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:
        return f"torchcodec finds no FFmpeg libraries: {str(error).strip().splitlines()[0]}"
    return ""


# decord has wheels for few platforms.
needs_decord = pytest.mark.skipif(find_spec("decord") is None, reason="decord is not installed")
needs_torchcodec = pytest.mark.skipif(
    bool(torchcodec_is_missing()), reason=torchcodec_is_missing() or "it is there"
)
DECORD = pytest.param(DecordReader, marks=needs_decord)
TORCHCODEC = pytest.param(TorchCodecReader, marks=needs_torchcodec)
READERS = [DECORD, PyAVReader, TORCHCODEC, open_auto]
EXACT = ("constant.mp4", "variable.mp4", "hevc.mp4", "vp9.webm")
OWN_TURN = ("turned90.mp4", "turned180.mp4", "turned270.mp4")


def in_memory(path: Path) -> VideoBlob:
    return VideoBlob(InMemory(path.read_bytes(), f"shard.tar:{path.name}"))


@pytest.mark.parametrize("open_reader", READERS)
def test_readers_give_the_frames_that_were_asked_for(open_reader: OpenReader, clips: Clips) -> None:
    reader = open_reader(VideoFile(clips("constant.mp4")))
    assert reader.num_frames == 90
    assert reader.size == (64, 96)
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
    open_reader: OpenReader, clips: Clips
) -> None:
    reader = open_reader(VideoFile(clips("variable.mp4")))
    expected = [*(np.arange(30) / 30), *(1 + np.arange(60) / 10)]
    assert reader.pts_s == pytest.approx(expected, abs=1e-4)
    assert numbers(reader.get([10, 29, 30, 70])) == [10, 29, 30, 70]


@pytest.mark.parametrize("open_reader", [DECORD, TORCHCODEC])
@pytest.mark.parametrize("name", [*EXACT, *OWN_TURN, "seven.mp4", "odd_sides.mp4"])
def test_all_readers_agree(open_reader: OpenReader, name: str, clips: Clips) -> None:
    """Measured: equal pixels; times within 5e-5 s for decord, which gives them in float32, else equal."""
    one, pyav = open_reader(VideoFile(clips(name))), PyAVReader(VideoFile(clips(name)))
    assert one.pts_s == pytest.approx(pyav.pts_s, abs=1e-4)
    assert one.duration_s == pytest.approx(pyav.duration_s, abs=1e-4)
    assert one.size == pyav.size
    everything = range(one.num_frames)
    assert np.array_equal(one.get(everything), pyav.get(everything))


@pytest.mark.parametrize("open_reader", READERS)
@pytest.mark.parametrize("name", [*EXACT, "turned90.mp4"])
def test_bytes_are_read_like_files(open_reader: OpenReader, name: str, clips: Clips) -> None:
    file, blob = open_reader(VideoFile(clips(name))), open_reader(in_memory(clips(name)))
    assert np.array_equal(file.pts_s, blob.pts_s)
    assert file.size == blob.size
    some = [0, 40, 41, 89, 3]
    assert np.array_equal(file.get(some), blob.get(some))


@pytest.mark.parametrize("open_reader", READERS)
@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("turned90.mp4", (96, 64)),
        ("turned180.mp4", (64, 96)),
        ("turned270.mp4", (96, 64)),
        ("odd_sides.mp4", (63, 97)),
        ("single.mp4", (64, 96)),
    ],
)
def test_the_size_is_that_of_the_frames_as_shown(
    open_reader: OpenReader, name: str, size: tuple[int, int], clips: Clips
) -> None:
    reader = open_reader(VideoFile(clips(name)))
    assert reader.size == size
    assert reader.get([0]).shape == (1, *size, 3)


def test_a_turned_video_stands_upright(clips: Clips) -> None:
    bright_left = "nullsrc=size=96x64:rate=10:duration=1,geq=lum='235-2*X':cb=128:cr=128"
    lying = clips.make("lying.mp4", "-f", "lavfi", "-i", bright_left, "-c:v", "libx264")
    for degrees, bright in ((90, "bottom"), (180, "right"), (270, "top")):
        path = clips.make(
            f"{bright}.mp4", "-display_rotation", str(degrees), "-i", str(lying), "-c", "copy"
        )
        frame = PyAVReader(VideoFile(path)).get([3])[0].astype(int)
        if bright == "right":
            assert frame[:, -1].mean() - frame[:, 0].mean() > 100
        else:
            fall = frame[0].mean() - frame[-1].mean()
            assert (fall if bright == "top" else -fall) > 100


@needs_decord
@pytest.mark.parametrize(
    ("name", "reason", "shown"),
    [
        ("cut.mp4", "edit list", range(45, 90)),
        ("stream.ts", "seeks inexactly in MPEG transport streams", range(90)),
        ("turned90.mkv", "does not turn Matroska", range(90)),
        ("av1.mp4", "none it can decode", None),
    ],
)
def test_what_decord_gets_wrong_is_read_by_pyav_and_logged(
    name: str,
    reason: str,
    shown: range | None,
    clips: Clips,
    caplog: pytest.LogCaptureFixture,
) -> None:
    video = VideoFile(clips(name))
    with pytest.raises(MediaError, match=rf"{name}.*{reason}"):
        DecordReader(video)
    with caplog.at_level(logging.WARNING):
        reader = open_auto(video)
        open_auto(video)
    (message,) = caplog.messages  # once per file
    assert name in message
    assert message.endswith("reading with PyAV instead")
    assert reader.size == ((96, 64) if "turned" in name else (64, 96))
    if shown is None:  # AV1 loses too much to count
        assert reader.num_frames == 90
        assert np.diff(reader.get(range(90)).mean(axis=(1, 2, 3))).min() > 0
    else:
        assert numbers(reader.get(range(len(shown)))) == list(shown)
    assert reader.pts_s[:2] == pytest.approx([0, 1 / 30], abs=5e-4)  # Matroska rounds to 1 ms


@needs_decord
def test_a_wrong_extension_does_not_mislead(clips: Clips, tmp_path: Path) -> None:
    stream = tmp_path / "stream.mp4"
    stream.write_bytes(clips("stream.ts").read_bytes())
    with pytest.raises(MediaError, match="seeks inexactly"):
        DecordReader(VideoFile(stream))
    named = tmp_path / "constant.ts"
    named.write_bytes(clips("constant.mp4").read_bytes())
    assert numbers(DecordReader(VideoFile(named)).get([7])) == [7]


@needs_decord
def test_of_a_truncated_file_pyav_reads_what_is_there(clips: Clips) -> None:
    video = VideoFile(clips("truncated.mp4"))
    with pytest.raises(MediaError, match=r"truncated\.mp4: decord cannot read it"):
        DecordReader(video)
    reader = open_auto(video)
    assert 10 < reader.num_frames < 80
    present = numbers(reader.get(range(reader.num_frames)))
    assert present == (reader.pts_s * 30).round().astype(int).tolist()


@needs_torchcodec
def test_torchcodec_refuses_what_it_counts_otherwise(clips: Clips) -> None:
    with pytest.raises(MediaError, match="TorchCodec cannot read it"):
        TorchCodecReader(VideoFile(clips("truncated.mp4"))).get([0])


def test_frames_before_the_first_keyframe_are_not_counted(clips: Clips) -> None:
    """A recording of a broadcast starts anywhere."""
    packets = clips("stream.ts").read_bytes()
    late = clips.folder / "late.ts"
    pieces = [packets[at : at + 188] for at in range(0, len(packets), 188)]
    tables, pictures = pieces[:3], pieces[3:]
    late.write_bytes(b"".join([*tables, *pictures[20:]]))
    reader = PyAVReader(VideoFile(late))
    assert 50 < reader.num_frames < 90
    assert reader.pts_s[0] == 0
    shown = numbers(reader.get(range(reader.num_frames)))
    assert shown[0] in (30, 60)
    assert shown == list(range(shown[0], 90))


def test_a_stream_that_begins_late_costs_no_frame(clips: Clips) -> None:
    """At the end of such a file, PyAV trips over the stream that it did not know of."""
    reader = PyAVReader(VideoFile(clips("stream.ts")))
    container = reader._container

    class Tripping:
        def demux(self, stream: Any) -> Any:
            yield from (packet for packet in container.demux(stream) if packet.size)
            raise IndexError("list index out of range")

        def seek(self, *arguments: Any, **named: Any) -> None:
            container.seek(*arguments, **named)

    reader._container = Tripping()
    assert numbers(reader.get([89, 3])) == [89, 3]


def test_a_codec_that_nobody_knows(clips: Clips, tmp_path: Path) -> None:
    path = tmp_path / "unknown.mp4"
    path.write_bytes(clips("constant.mp4").read_bytes().replace(b"avc1", b"zzzz"))
    with pytest.raises(MediaError, match=r"unknown\.mp4.*no decoder") as raised:
        PyAVReader(VideoFile(path))
    assert raised.value.code == Reason.UNREADABLE


def test_a_size_that_changes_midway_is_scaled_to_the_first(clips: Clips) -> None:
    small = "smptebars=size=64x48:rate=10:duration=1"
    large = "smptebars=size=128x96:rate=10:duration=1"
    for name, source in (("small.ts", small), ("large.ts", large)):
        clips.make(name, "-f", "lavfi", "-i", source, "-c:v", "libx264", "-pix_fmt", "yuv420p")
    both = clips.make(
        *("both.ts", "-i", f"concat:{clips.folder}/small.ts|{clips.folder}/large.ts"),
        *("-c", "copy"),
    )
    reader = PyAVReader(VideoFile(both))
    assert reader.num_frames == 20
    assert reader.size == (48, 64)
    first, second = reader.get([2, 12])
    assert np.abs(first.astype(int) - second).mean() < 15  # measured 8.3


@needs_decord
def test_pyav_takes_over_when_decoding_fails(clips: Clips, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = open_auto(VideoFile(clips("constant.mp4")))

    def fail(self: DecordReader, indices: Sequence[int]) -> NDArray[np.uint8]:
        raise MediaError("a damaged frame")

    monkeypatch.setattr(DecordReader, "get", fail)
    assert numbers(reader.get([7, 40])) == [7, 40]
    assert numbers(reader.get([41])) == [41]
    assert open_auto(VideoFile(clips("constant.mp4"))).size == (64, 96)


@needs_decord
@pytest.mark.parametrize(("absent", "reader"), [("decord", DecordReader), ("av", PyAVReader)])
def test_one_decoder_is_enough(
    absent: str,
    reader: type[DecordReader | PyAVReader],
    clips: Clips,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real_import = pyav_reader.import_decoder

    def import_others(name: str) -> Any:
        return real_import("no_such_module" if name == absent else name)

    for module in (decord_reader, pyav_reader):
        monkeypatch.setattr(module, "import_decoder", import_others)
    video = VideoFile(clips("constant.mp4"))
    assert numbers(open_auto(video).get([3])) == [3]
    with pytest.raises(ImportError, match="pip install"):
        reader(video)


@needs_decord
def test_without_pyav_the_complaint_of_decord_stands(
    clips: Clips, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auto, "PyAVReader", lambda *_: pyav_reader.import_decoder("no_such_module"))
    with pytest.raises(MediaError, match=r"cut\.mp4: decord cannot read it"):
        open_auto(VideoFile(clips("cut.mp4")))


def test_a_missing_torchcodec_is_named(clips: Clips) -> None:
    if not torchcodec_is_missing():
        pytest.skip("TorchCodec is installed")
    with pytest.raises(ImportError, match="pip install torchcodec"):
        TorchCodecReader(VideoFile(clips("constant.mp4")))


@pytest.mark.parametrize("open_reader", READERS)
@pytest.mark.parametrize(
    ("name", "content", "reason", "code"),
    [
        ("absent.mp4", None, "file not found", Reason.MISSING_FILE),
        ("empty.mp4", b"", "empty", Reason.NO_FRAMES),
        ("text.mp4", b"no video at all\n" * 100, "it is text", Reason.UNREADABLE),
        ("noise.mp4", bytes(range(256)) * 9, "cannot read it", Reason.UNREADABLE),
        ("list.mp4", b"#EXTM3U\n#EXTINF:9,\nx.ts\n", "playlist", Reason.NETWORK_REFUSED),
        ("call.mp4", b"v=0\nc=IN IP4 127.0.0.1\n", "playlist", Reason.NETWORK_REFUSED),
    ],
)
def test_unreadable_files_name_file_and_reason(
    open_reader: OpenReader,
    name: str,
    content: bytes | None,
    reason: str,
    code: Reason,
    tmp_path: Path,
) -> None:
    videos: list[VideoRef] = [VideoFile(tmp_path / name)]
    if content is not None:
        (tmp_path / name).write_bytes(content)
        videos.append(in_memory(tmp_path / name))
    for video in videos:
        with pytest.raises(MediaError, match=rf"{name}: .*{reason}") as raised:
            open_reader(video)
        assert raised.value.code == code


@pytest.mark.parametrize("open_reader", READERS)
def test_nothing_that_a_file_names_is_fetched(open_reader: OpenReader, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        address = f"http://127.0.0.1:{server.getsockname()[1]}/x.ts"
        playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{address}\n#EXT-X-ENDLIST\n"
        (tmp_path / "x.m3u8").write_text(playlist)
        for video in (VideoFile(tmp_path / "x.m3u8"), in_memory(tmp_path / "x.m3u8")):
            with pytest.raises(MediaError):
                open_reader(video)
        with pytest.raises(TimeoutError):
            server.accept()


def test_pyav_opens_no_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if a description of a stream to listen to came past the check of the text."""
    monkeypatch.setattr(PyAVReader, "_refuse_text", lambda self: None)
    text = b"v=0\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
    with pytest.raises(MediaError, match="PyAV cannot read it"):
        PyAVReader(VideoBlob(InMemory(text, "x")))


@pytest.mark.parametrize("open_reader", READERS)
@pytest.mark.parametrize("name", ["sound.mp4", "no_frames.mp4"])
def test_files_without_pictures(open_reader: OpenReader, name: str, clips: Clips) -> None:
    with pytest.raises(MediaError, match=rf"{name}: .*video stream") as raised:
        open_reader(VideoFile(clips(name)))
    assert raised.value.code == Reason.NO_FRAMES


@pytest.mark.parametrize("open_reader", READERS)
def test_a_single_frame_lasts_no_time(open_reader: OpenReader, clips: Clips) -> None:
    reader = open_reader(VideoFile(clips("single.mp4")))
    assert reader.pts_s.tolist() == [0.0]
    assert reader.duration_s == 0.0
    assert numbers(reader.get([0, 0])) == [0, 0]


@pytest.mark.parametrize(
    "path", ["folder", "file/inside", "x" * 300, "nul\0byte"], ids=["folder", "file", "long", "nul"]
)
def test_paths_that_cannot_be_videos(path: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(MediaError, match=r"not a file|not found|cannot be opened"):
        open_auto(VideoFile(tmp_path / path))


def test_huge_frames_are_refused(clips: Clips, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyav_reader, "MAX_SOURCE_PIXELS", 64 * 96 - 1)
    with pytest.raises(MediaError, match="64x96") as raised:
        PyAVReader(VideoFile(clips("constant.mp4")))
    assert raised.value.code == Reason.TOO_LARGE


def test_a_reader_needs_only_times_and_frames() -> None:
    class Grey(FrameReader):
        pts_s = np.arange(5) / 2

        def get(self, indices: Sequence[int]) -> NDArray[np.uint8]:
            return np.zeros((len(indices), 8, 12, 3), dtype=np.uint8)

    reader = Grey()
    assert (reader.num_frames, reader.duration_s, reader.size) == (5, 2.5, (8, 12))
