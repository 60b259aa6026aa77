"""Samples that do not fit: made shorter at boundaries, from headers, or left out; never cut inside media."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.toys import Unreadable
from vlmkit.build import build, compose_config
from vlmkit.data.media import ImageArray
from vlmkit.data.order.over_length import DropTurns, ShrinkMedia, fit
from vlmkit.data.order.samples import plan_within
from vlmkit.data.order.work import Limits, Sizes
from vlmkit.data.processor import Plan, Processor
from vlmkit.data.record import Conversation, ImagePart, Message, TextPart
from vlmkit.errors import DataError, Reason
from vlmkit.sequence import VisionSpan


@pytest.fixture(scope="module")
def processor() -> Processor:
    overrides = ["processor.image.min_pixels=1024", "processor.image.max_pixels=1000000"]
    return build(compose_config("model=qwen3vl_tiny", *overrides).processor)


def talk(exchanges: int, side: int = 0, words: int = 5) -> Conversation:
    """Questions and answers, with one square picture per question if it has a side."""
    messages = []
    for number in range(exchanges):
        pixels = np.broadcast_to(np.uint8(7), (side, side, 3))
        media = (ImagePart(ImageArray(pixels)),) if side else ()
        messages += [
            Message(role="user", parts=(*media, TextPart("why " * words))),
            Message(role="assistant", parts=(TextPart(f"answer {number}"),)),
        ]
    return Conversation(messages=tuple(messages), origin="talk:1")


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 4), st.sampled_from([0, 64, 200, 640]), st.integers(30, 600), st.integers(1, 40)
)
def test_what_is_kept_fits_and_is_whole(exchanges, side, limit, words):
    processor = PROCESSOR[0]
    conversation = talk(exchanges, side, words)
    limits = Limits(limit)
    remedies = [ShrinkMedia(), DropTurns()]
    shortest = processor.plan(talk(1, side, words), media_share=0.8**13).num_tokens
    if shortest > limit:
        with pytest.raises(DataError) as caught:
            plan_within(conversation, processor, limits, remedies)
        assert caught.value.code == Reason.TOO_LONG
        return
    plan = plan_within(conversation, processor, limits, remedies)
    assert limits.hold(plan)
    example = plan.load()
    assert example.num_tokens == plan.num_tokens <= limit
    visual = sum(s.num_tokens for s in example.spans if isinstance(s, VisionSpan))
    assert len(example.patches) == plan.num_patches == 4 * visual
    kept = plan.conversation.messages
    assert kept == conversation.messages[: len(kept)]
    assert kept[-1].role == "assistant"


PROCESSOR: list[Processor] = []


@pytest.fixture(scope="module", autouse=True)
def _processor_for_properties(processor):
    PROCESSOR[:] = [processor]


def fitted(processor, conversation, limits, remedies) -> Plan:
    again = lambda shorter, share: processor.plan(shorter, media_share=share)  # noqa: E731
    return fit(processor.plan(conversation), limits, remedies, again)[0]


def test_remedies_are_tried_in_order(processor):
    conversation = talk(3, side=640)  # 400 visual tokens each
    shrunk = fitted(processor, conversation, Limits(900), [ShrinkMedia(), DropTurns()])
    assert len(shrunk.conversation.messages) == 6
    assert max(grid[1] for grid in shrunk.grids) < 40
    dropped = fitted(processor, conversation, Limits(900), [DropTurns(), ShrinkMedia()])
    assert len(dropped.conversation.messages) == 4
    assert {grid[1] for grid in dropped.grids} == {40}
    with pytest.raises(
        DataError, match=r"talk:1: \d+ tokens and 4800 patches do not fit into a row of"
    ):
        fitted(processor, conversation, Limits(900), [])


def test_many_ordinary_pictures_shrink_as_one_large_one_does(processor):
    """The share is one of each picture's own area, not of a bound that none of them reaches."""
    conversation = talk(12, side=320)  # 100 visual tokens each
    plan = fitted(processor, conversation, Limits(800), [ShrinkMedia()])
    assert len(plan.grids) == 12
    assert {grid[1] for grid in plan.grids} == {plan.grids[0][1]}


def test_remedies_are_combined_where_neither_is_enough(processor):
    conversation = talk(11, side=640, words=30)
    for alone in ([ShrinkMedia()], [DropTurns()]):
        with pytest.raises(DataError, match="do not fit"):
            fitted(processor, conversation, Limits(300), alone)
    plan = fitted(processor, conversation, Limits(300), [ShrinkMedia(), DropTurns()])
    assert 1 < len(plan.conversation.messages) < 22


def test_the_budget_of_patches_counts_too(processor):
    plan = fitted(processor, talk(2, side=640), Limits(10_000, 2000), [ShrinkMedia()])
    assert plan.num_patches <= 2000


def test_the_last_scored_answer_stays(processor):
    first, *rest = talk(2).messages
    unscored = Message(role="assistant", parts=rest[0].parts, scored=False)
    conversation = Conversation(messages=(first, unscored, *rest[1:]))
    with pytest.raises(DataError, match="do not fit"):
        fitted(processor, conversation, Limits(25), [DropTurns()])


def test_nothing_to_learn_from_is_said(processor):
    silent = Conversation(messages=talk(1).messages[:1], origin="quiet:3")
    with pytest.raises(DataError, match="quiet:3: no turn of it is scored") as caught:
        plan_within(silent, processor, Limits(100), [])
    assert caught.value.code == Reason.NOTHING_SCORED


def test_planning_decodes_nothing(processor):
    """A picture whose pixels cannot be read is planned, and sized, from its header."""
    messages = (
        Message(role="user", parts=(ImagePart(Unreadable()),)),
        Message(role="assistant", parts=(TextPart("a"),)),
    )
    plan = processor.plan(Conversation(messages=messages))
    assert Sizes.of([plan]).patches.tolist() == [16]
    with pytest.raises(DataError, match="cannot be decoded"):
        plan.load()


@pytest.mark.parametrize(("smallest", "factor"), [(0, 0.5), (0.5, 1), (2, 0.5)])
def test_useless_settings_are_refused(smallest, factor):
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        ShrinkMedia(smallest, factor)
