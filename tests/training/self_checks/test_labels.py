"""Scored tokens are the assistant's words, whatever the template; anything else is found."""

from dataclasses import dataclass, replace

import pytest

from tests.training.self_checks.contexts import FILM, TALKS, context, picture, run, say
from vlmkit.data.record import Conversation, document
from vlmkit.data.template import InstructTemplate
from vlmkit.data.turns import TextPiece
from vlmkit.sequence import TextSpan
from vlmkit.training.self_checks.base import Status, one_row
from vlmkit.training.self_checks.labels import LabelMask

OTHERS = (
    document(
        [picture(), say("user", "A caption.").parts[0], FILM, say("user", " Its end.").parts[0]]
    ),
    document([say("user", "Plain text, nothing else.").parts[0]]),
    Conversation(
        messages=(
            say("user", "Draw."),
            say(
                "assistant", "\n\n Here: ", picture(), "and ", picture(32), "done <|im_end|> really"
            ),
            say("tool", "result"),
            say("assistant", "<think>\nlong\n</think>\n\nShort é"),
        ),
    ),
    Conversation(messages=(say("user", "Teach me.", scored=True), say("assistant", ""))),
)


@pytest.mark.parametrize("template", ["instruct", "thinking"])
def test_what_the_templates_write_passes(template):
    for talks in (TALKS, OTHERS):
        result = run(LabelMask(), context(f"template={template}", talks=talks))
        assert result.status is Status.PASSED, result.detail
        assert int(result.detail.split()[0]) > 20


def test_labels_shifted_by_one_are_found():
    where = context()
    labels = where.packed.labels.roll(1, dims=1)
    shifted = replace(
        where.packed,
        labels=labels,
        scored_index=(labels != -100).flatten().nonzero().squeeze(1),
    )
    result = run(LabelMask(), where, packed=shifted)
    assert not result.passed
    assert "labels are not the next token" in result.detail


@dataclass(frozen=True)
class ScoresTheUser(InstructTemplate):
    def render(self, conversation, for_generation=False):
        pieces = super().render(conversation, for_generation)
        return [
            replace(p, scored=True) if isinstance(p, TextPiece) and p.text.endswith("?") else p
            for p in pieces
        ]


@dataclass(frozen=True)
class ForgetsTheStop(InstructTemplate):
    def render(self, conversation, for_generation=False):
        pieces = super().render(conversation, for_generation)
        return [TextPiece(p.text) if getattr(p, "text", "") == "<|im_end|>" else p for p in pieces]


@pytest.mark.parametrize(
    ("template", "words"),
    [(ScoresTheUser(), "What is this?"), (ForgetsTheStop(), "<|im_end|>")],
    ids=["user", "stop"],
)
def test_a_template_that_scores_something_else_is_found(template, words):
    processor = context(talks=TALKS[:1]).processor
    processor.template = template
    result = run(LabelMask(), context(processor=processor))
    assert not result.passed
    assert words in result.detail


@pytest.mark.parametrize("which", [0, -1])
def test_one_token_too_few_or_too_many_is_found(which):
    where = context()
    for example_number, example in enumerate(where.examples):
        spans = list(example.spans)
        at = next(i for i, s in enumerate(spans) if isinstance(s, TextSpan) and s.scored)
        ids = spans[at].token_ids
        cut = (
            [TextSpan(token_ids=ids[:1]), TextSpan(token_ids=ids[1:], scored=True)]
            if which == 0
            else [TextSpan(token_ids=ids[:-1], scored=True), TextSpan(token_ids=ids[-1:])]
        )
        spans[at : at + 1] = cut
        examples = list(where.examples)
        examples[example_number] = replace(example, spans=tuple(spans))
        packed = one_row(examples, where.processor)
        assert not run(LabelMask(), where, examples=tuple(examples), packed=packed).passed
