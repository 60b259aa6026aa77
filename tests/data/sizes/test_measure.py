"""Measuring: sizes are those of loaded samples, whoever measures them, and a kill loses little."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.data.toys import Numbered
from vlmkit.build import build, compose_config
from vlmkit.data.media import ImageArray, ImageFile
from vlmkit.data.order.mixture import Weighted
from vlmkit.data.order.over_length import DropTurns, ShrinkMedia
from vlmkit.data.order.samples import plan_within
from vlmkit.data.order.work import Limits
from vlmkit.data.processor import Example, Processor
from vlmkit.data.quickstart.sources import ClipSource
from vlmkit.data.record import Conversation, ImagePart, Message, Part, TextPart, document
from vlmkit.data.sizes.measure import Job, Measuring, evenly_spaced
from vlmkit.data.sizes.measured import Measured
from vlmkit.data.sizes.summary import summarise
from vlmkit.errors import ConfigError, DataError, Reason, UserError
from vlmkit.sequence import TextSpan, VisionSpan

LIMITS = Limits(160, 400)
REMEDIES = (DropTurns(), ShrinkMedia())


@pytest.fixture(scope="module")
def processor() -> Processor:
    overrides = ["processor.image.min_pixels=1024", "processor.image.max_pixels=65536"]
    return build(compose_config("model=qwen3vl_tiny", *overrides).processor)


@dataclass(frozen=True)
class Listed:
    """Conversations in a list."""

    conversations: tuple[Conversation, ...]
    fingerprint: str | None = None

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, index: int) -> Conversation:
        return self.conversations[index]


class Known(Numbered):
    """Numbered conversations that say what they are, so that shards of them are kept."""

    fingerprint = "numbers"


words = st.text(st.characters(codec="utf-8"), max_size=60)
pictures = st.tuples(st.integers(1, 300), st.integers(1, 300)).map(
    lambda size: ImagePart(ImageArray(np.broadcast_to(np.uint8(3), (*size, 3))))
)
parts = st.lists(st.one_of(words.map(TextPart), pictures), max_size=3).map(tuple)
replies = words.map(lambda text: (TextPart(text),))
exchanges = st.tuples(parts, replies, st.sampled_from([None, True, False])).map(
    lambda turn: (
        Message(role="user", parts=turn[0]),
        Message(role="assistant", parts=turn[1], scored=turn[2]),
    )
)
dialogues = st.lists(exchanges, min_size=1, max_size=4).map(
    lambda turns: Conversation(messages=tuple(message for turn in turns for message in turn))
)
conversations = st.one_of(dialogues, parts.map(document))


@settings(max_examples=80, deadline=None)
@given(st.lists(conversations, min_size=1, max_size=6).map(tuple))
def test_measured_sizes_are_those_of_loaded_samples(sampled):
    processor = PROCESSOR[0]
    part = Weighted(source=Listed(sampled), over_length=REMEDIES)
    measured = Job(parts={"a": part}, processor=processor, limits=LIMITS).measure(
        "a", np.arange(len(sampled))
    )
    table = measured.table("")
    pictures = 0
    for i, conversation in enumerate(sampled):
        example, reason = loaded(conversation, processor)
        assert table.reason(i) == reason
        if example is None:
            assert not any(column[i] for column in vars(table.sizes).values())
            continue
        assert table.sizes.tokens[i] == example.num_tokens
        assert table.sizes.patches[i] == len(example.patches)
        assert table.sizes.scored[i] == sum(
            span.num_tokens for span in example.spans if isinstance(span, TextSpan) and span.scored
        )
        assert table.sizes.patch_pairs[i] == sum(t * (h * w) ** 2 for t, h, w in example.grids)
        visual = sum(span.num_tokens for span in example.spans if isinstance(span, VisionSpan))
        assert measured.samples.visual_tokens[i] == visual
        assert measured.samples.images[i] == len(example.grids)
        for grid in example.grids:
            media = measured.media
            assert media.position[pictures] == i
            assert media.resized_height[pictures] == 16 * grid[1]
            assert media.resized_width[pictures] == 16 * grid[2]
            pictures += 1
    assert pictures == len(measured.media)


def loaded(
    conversation: Conversation, processor: Processor
) -> tuple[Example | None, Reason | None]:
    """What training makes of a conversation, or why nothing."""
    try:
        return plan_within(conversation, processor, LIMITS, REMEDIES).load(), None
    except DataError as error:
        return None, error.code


PROCESSOR: list[Processor] = []


@pytest.fixture(scope="module", autouse=True)
def _processor_for_properties(processor):
    PROCESSOR[:] = [processor]


def test_videos_are_measured_as_they_are_loaded(processor):
    source = ClipSource("clip", 4)
    limits = Limits(8192)
    with Measuring({"clip": Weighted(source=source)}, processor, limits, workers=0) as measuring:
        measured = measuring.source("clip", np.arange(4))
    for i in range(4):
        example = plan_within(source[i], processor, limits, ()).load()
        assert measured.samples.tokens[i] == example.num_tokens
        assert measured.samples.patches[i] == len(example.patches)
    assert (measured.samples.videos == 1).all()
    assert measured.media.is_video.all()
    assert measured.media.file_fps.tolist() == pytest.approx([25] * 4)
    assert measured.media.file_seconds.tolist() == pytest.approx([5.28] * 4)
    assert (measured.media.seconds <= ClipSource.LENGTH_S).all()
    assert (measured.media.height == 180).all()


def exchange(side: int, words: int, answers: int = 1, scored: bool | None = None) -> Conversation:
    media: tuple[Part, ...] = (
        (ImagePart(ImageArray(np.broadcast_to(np.uint8(0), (side, side, 3)))),) if side else ()
    )
    messages = [Message(role="user", parts=(*media, TextPart("why? " * words)))]
    for _ in range(answers):
        messages.append(Message(role="assistant", parts=(TextPart("so"),), scored=scored))
    return Conversation(messages=tuple(messages), origin=f"{side}/{words}")


def test_reasons_and_remedies_are_told_apart(processor):
    source = Listed(
        (
            exchange(0, 5),
            exchange(250, 5),  # 61 tokens of 32 x 32 pixels
            exchange(0, 5, answers=60),
            exchange(0, 500),
            exchange(0, 5, scored=False),
            exchange(0, 5),
        )
    )
    limits = Limits(70)
    part = Weighted(source=source, over_length=REMEDIES)
    with Measuring({"a": part}, processor, limits, workers=0) as measuring:
        measured = measuring.source("a", np.arange(len(source)))
    assert measured.samples.remedy.tolist() == [0, 2, 1, 0, 0, 0]
    assert measured.reasons() == {Reason.TOO_LONG: 1, Reason.NOTHING_SCORED: 1}
    assert (measured.samples.tokens <= 70).all()
    assert (measured.samples.whole_tokens[[1, 2, 3]] > 70).all()
    numbers = summarise(measured, len(source), ["DropTurns", "ShrinkMedia"])
    assert numbers["usable"] == 4
    assert numbers["text_only_share"] == 0.75
    long = numbers["longer_than_a_row"]
    assert (long["count"], long["left_out"]) == (3, 1)
    assert {name: one["count"] for name, one in long["made_to_fit"].items()} == {
        "DropTurns": 1,
        "ShrinkMedia": 1,
    }
    assert long["longest"] == measured.samples.whole_tokens[3]


def test_nothing_measured_is_described_too():
    numbers = summarise(Measured.none(), 0)
    assert numbers["usable"] == 0
    assert numbers["tokens"] == {}


@given(st.integers(0, 10**9), st.integers(1, 50))
def test_positions_are_spread_evenly(total, limit):
    positions = evenly_spaced(total, limit)
    assert len(positions) == min(total, limit)
    steps = np.diff(np.append(positions, total))
    if len(positions):
        assert positions[0] == 0
        assert steps.max() - steps.min() <= 1
        assert steps.min() >= 1


def equal(a: Measured, b: Measured) -> bool:
    pairs = [(a.samples, b.samples), (a.media, b.media)]
    return all(
        np.array_equal(getattr(x, name), getattr(y, name)) for x, y in pairs for name in vars(x)
    )


def test_an_interrupted_measurement_goes_on_where_it_stood(processor, tmp_path):
    source = Known(600, broken=frozenset({400}), error=KeyboardInterrupt)  # Ctrl-C at 400
    parts = {"a": Weighted(source=source)}

    def measure(parts, limits=LIMITS):
        with Measuring(parts, processor, limits, workers=0, folder=tmp_path) as measuring:
            return measuring.source("a", np.arange(600))

    with pytest.raises(KeyboardInterrupt):
        measure(parts)
    healthy = Known(600)
    parts = {"a": Weighted(source=healthy)}
    measured = measure(parts)
    assert healthy.opened == list(range(384, 600))  # three shards of 128 were there
    assert measured.samples.position.tolist() == list(range(600))
    assert equal(measured, Job(parts=parts, processor=processor, limits=LIMITS).measure(
        "a", np.arange(600)
    ))  # fmt: skip

    healthy.opened.clear()
    assert equal(measure(parts), measured)
    assert not healthy.opened

    shards = sorted(tmp_path.glob("a-*/*.npz"))
    assert len(shards) == 5
    shards[1].write_bytes(shards[1].read_bytes()[:200])
    shards[4].write_bytes(b"")
    assert equal(measure(parts), measured)
    assert healthy.opened == [*range(128, 256), *range(512, 600)]

    healthy.opened.clear()
    measure(parts, Limits(100))
    assert len(healthy.opened) == 600  # another row length is another measurement


@dataclass(frozen=True)
class Filed:
    """Pictures in files, every other record without one."""

    folder: Path
    fingerprint: str = "files"

    def __len__(self) -> int:
        return 300

    def __getitem__(self, index: int) -> Conversation:
        media = (ImagePart(ImageFile(self.folder / f"{index % 4}.png")),) if index % 2 else ()
        asked = Message(role="user", parts=(*media, TextPart("what?" * (index % 7))))
        return Conversation(messages=(asked, Message(role="assistant", parts=(TextPart("it"),))))


def test_files_that_were_missing_are_looked_for_again(processor, tmp_path):
    parts = {"a": Weighted(source=Filed(tmp_path))}

    def measure():
        with Measuring(parts, processor, LIMITS, 0, tmp_path / "kept") as measuring:
            return measuring.source("a", np.arange(300))

    assert measure().reasons() == {Reason.MISSING_FILE: 150}
    Image.new("RGB", (64, 96)).save(tmp_path / "1.png")
    assert measure().reasons() == {Reason.MISSING_FILE: 75}
    Image.new("RGB", (64, 64)).save(tmp_path / "3.png")
    measured = measure()
    assert not measured.reasons()
    job = Job(parts=parts, processor=processor, limits=LIMITS)
    assert equal(measured, job.measure("a", np.arange(300)))


def test_a_source_that_does_not_say_what_it_holds_is_measured_anew(processor, tmp_path):
    source = Numbered(50)
    for _ in range(2):
        with Measuring({"a": Weighted(source=source)}, processor, LIMITS, 0, tmp_path) as measuring:
            measuring.source("a", np.arange(50))
    assert len(source.opened) == 100
    assert not list(tmp_path.iterdir())


def test_an_error_of_the_program_names_the_sample(processor):
    source = Numbered(20, broken=frozenset({7}), error=ZeroDivisionError)
    with (
        Measuring({"a": Weighted(source=source)}, processor, LIMITS, workers=0) as measuring,
        pytest.raises(ZeroDivisionError) as error,
    ):
        measuring.source("a", np.arange(20))
    assert "while measuring sample 7 of a" in error.value.__notes__


class Deadly(Known):
    """Takes its process with it."""

    def __getitem__(self, index: int) -> Conversation:
        if index in self.broken:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_processes_measure_what_one_measures(processor, tmp_path):
    """And one that dies is an error, after which what was measured is still there."""
    source = Known(700, broken=frozenset({3, 400}))
    parts = {"a": Weighted(source=source), "b": Weighted(source=ClipSource("clip", 3))}
    with Measuring(parts, processor, LIMITS, workers=2) as measuring:
        measured = measuring.source("a", np.arange(700))
        clip = measuring.source("b", np.arange(3))
    job = Job(parts=parts, processor=processor, limits=LIMITS)
    assert equal(measured, job.measure("a", np.arange(700)))
    assert equal(clip, job.measure("b", np.arange(3)))
    assert measured.reasons() == {Reason.BAD_RECORD: 2}

    deadly = {"a": Weighted(source=Deadly(1500, broken=frozenset({1400})))}
    with (
        Measuring(deadly, processor, LIMITS, workers=2, folder=tmp_path) as measuring,
        pytest.raises(UserError, match=r"a process died while it measured samples 1\d+ to 1\d+"),
    ):
        measuring.source("a", np.arange(1500))
    assert len(list(tmp_path.glob("a-*/*.npz"))) >= 4


def test_a_source_that_cannot_be_sent_is_an_error(processor):
    source = Listed(tuple(exchange(0, 1) for _ in range(5)))
    object.__setattr__(source, "function", lambda: None)
    with (
        Measuring({"a": Weighted(source=source)}, processor, LIMITS, workers=2) as measuring,
        pytest.raises(ConfigError, match=r"cannot be sent to other processes .* say workers=0"),
    ):
        measuring.source("a", np.arange(5))
