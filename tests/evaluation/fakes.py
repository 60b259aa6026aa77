"""A benchmark without files, and someone who answers without a model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from vlmkit.data.record import Conversation, Message, TextPart
from vlmkit.evaluation.benchmark import Benchmark
from vlmkit.evaluation.decoding import Budget, Decoding
from vlmkit.evaluation.metrics.exact_match import ExactMatch
from vlmkit.evaluation.question import Question
from vlmkit.evaluation.responses import Response


class Doublings:
    """What is 2 * i?"""

    settings = "What is 2 * i?"

    def __init__(self, count: int = 6, fingerprint: str = "doublings") -> None:
        self.count, self.fingerprint = count, fingerprint

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Question:
        turn = Message(role="user", parts=(TextPart(f"What is 2 * {index}?"),))
        return Question(
            key=f"q{index}",
            conversation=Conversation(messages=(turn,)),
            target=str(2 * index),
            categories={"kind": "even" if index % 2 == 0 else "odd"},
        )


class FakeAnswerer:
    """Gives answers from a list; None stands for a picture that cannot be read."""

    opens_thinking = False
    name, checkpoint = "fake", "cafe"

    def __init__(self, answers: Mapping[str, str | Sequence[str] | None], most: int = 1000) -> None:
        self.answers, self.most = answers, most
        self.asked: list[str] = []

    def prompt_settings(self) -> Mapping[str, Any]:
        return {"template": "plain"}

    def media_settings(self, budget: Budget) -> Mapping[str, Any]:
        return {"pixels": 1}

    def answer(
        self, questions: Iterable[Question], decoding: Decoding, budget: Budget
    ) -> Iterator[Response]:
        for question in questions:
            if len(self.asked) == self.most:
                raise KeyboardInterrupt
            self.asked.append(question.key)
            found = self.answers.get(question.key, "no idea")
            if found is None:
                yield Response(key=question.key, error="unreadable: a.png is damaged")
                continue
            texts = (found,) if isinstance(found, str) else tuple(found)
            yield Response(key=question.key, texts=texts, finish=("stop",) * len(texts))


def doublings(**parts: Any) -> Benchmark:
    """The benchmark."""
    return Benchmark(**{
        "name": "doublings",
        "questions": Doublings(),
        "metrics": {"exact_match": ExactMatch()},
        "primary": "exact_match",
        **parts,
    })  # fmt: skip
