"""A prompt about what is shown, with one right answer or several: most benchmarks are this."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from vlmkit.data.record import Conversation, ImagePart, Message, Part, TextPart
from vlmkit.data.sources.row import Row
from vlmkit.evaluation.asks.shown import Naming, Pictures, Shown
from vlmkit.evaluation.asks.values import at, fill, text_of
from vlmkit.evaluation.question import Question

_MARKER = re.compile(r"<image ?(\d*)>")


class ReadTarget(Protocol):
    """Finds what is right."""

    def __call__(self, row: Row, parts: Sequence[Part]) -> Any:
        """What the metric of the benchmark compares with.

        Args:
            row: of the table.
            parts: what the question shows, for the sizes of its pictures.

        Raises:
            DataError: the row does not have it.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Prompted:
    r"""What is shown, then a prompt made of columns.

    Attributes:
        prompt: `"{question}\nAnswer the question using a single word or phrase."`
        target: finds what is right.
        shown: finds pictures or a video.
        naming: of the question.
        interleaved: pictures stand where the prompt says `<image 1>`, or `<image>` for the next one;
            those that it does not name come first.
        system: turn of the system; empty: none.
        tools: signatures of functions that may be called, as JSON objects.
        cut: pattern of what is taken out of the prompt, such as another format that a column asks for.
    """

    prompt: str
    target: ReadTarget
    shown: Shown = field(default_factory=Pictures)
    naming: Naming = field(default_factory=Naming)
    interleaved: bool = False
    system: str = ""
    tools: Sequence[Mapping[str, Any]] = ()
    cut: str = ""

    def __call__(self, row: Mapping[str, Any], index: int, origin: str) -> Question:
        """See `Ask`."""
        looked_at = Row(row, origin, index)
        parts = self.shown(looked_at)
        prompt = fill(self.prompt, looked_at)
        return asked(
            looked_at,
            parts,
            re.sub(self.cut, "", prompt, flags=re.DOTALL) if self.cut else prompt,
            self.target(looked_at, parts),
            self.naming,
            interleaved=self.interleaved,
            system=self.system,
            tools=self.tools,
        )


def asked(
    row: Row,
    parts: Sequence[Part],
    text: str,
    target: Any,
    naming: Naming,
    *,
    interleaved: bool = False,
    system: str = "",
    tools: Sequence[Mapping[str, Any]] = (),
    suffix: str = "",
) -> Question:
    """A question with one turn of the user.

    Args:
        row: of the table.
        parts: what is shown.
        text: of the turn.
        target: what is right.
        naming: of the question.
        interleaved: see `Prompted`.
        system: see `Prompted`.
        tools: see `Prompted`.
        suffix: of the key, where a row gives several questions.
    """
    turn = _interleaved(row, parts, text) if interleaved else (*parts, TextPart(text))
    messages = [Message(role="system", parts=(TextPart(system),))] if system else []
    messages.append(Message(role="user", parts=tuple(turn)))
    key = naming.key_of(row)
    return Question(
        key=key + suffix,
        conversation=Conversation(
            messages=tuple(messages),
            tools=tuple(dict(tool) for tool in tools),
            key=row.key,
            origin=row.origin,
        ),
        target=target,
        group=naming.group_of(row) or (key if suffix else None),
        categories=naming.categories_of(row),
    )


def _interleaved(row: Row, parts: Sequence[Part], text: str) -> tuple[Part, ...]:
    """Pictures at their markers; videos, and pictures without a marker, first."""
    pictures = [part for part in parts if isinstance(part, ImagePart)]
    turn: list[Part] = []
    at_once, used, end = 0, set(), 0
    for match in _MARKER.finditer(text):
        number = int(match[1]) if match[1] else at_once + 1
        at_once += not match[1]
        if not 1 <= number <= len(pictures):
            raise row.error(
                f"the prompt says {match[0]}, and there are {len(pictures)} pictures",
                "mend the row",
            )
        turn += [TextPart(text[end : match.start()]), pictures[number - 1]]
        used.add(number - 1)
        end = match.end()
    turn.append(TextPart(text[end:]))
    first = [picture for i, picture in enumerate(pictures) if i not in used]
    others = [part for part in parts if not isinstance(part, ImagePart)]
    return (
        *others,
        *first,
        *(part for part in turn if not isinstance(part, TextPart) or part.text),
    )


def optional(template: str, row: Row, column: str) -> str:
    """A template with a column, or nothing where the column is empty."""
    return fill(template, row) if text_of(at(row, column)) is not None else ""
