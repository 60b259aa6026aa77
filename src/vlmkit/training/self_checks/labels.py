"""What is scored is what the assistant says in the record."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from tokenizers import Tokenizer

from vlmkit.batch import IGNORED_LABEL
from vlmkit.data.record import Conversation, ImagePart, Message, VideoPart
from vlmkit.data.turns import tool_calls
from vlmkit.training.self_checks.base import CheckContext, CheckResult, Status

END_OF_THINKING = "</think>"


class LabelMask:
    """Decodes the scored tokens of the packed row and compares them with the records' own words.

    Expected are, to the letter, the texts of the scored turns with their stop token, cut where a picture
    stands; reasoning as a think block or left out. A label must be the next token of the same sample. A
    template is not asked, so that one which scores a turn of the user is found out.
    """

    meaning = (
        "the loss counts other tokens than the assistant's: the template, the tokenizer or the shift of "
        "labels does not fit the data"
    )

    def run(self, context: CheckContext) -> CheckResult:
        """See `SelfCheck.run`."""
        batch = context.packed
        assert batch.labels is not None
        assert batch.sample_ids is not None
        labels, ids = batch.labels.flatten().tolist(), batch.input_ids.flatten().tolist()
        owner = batch.sample_ids.flatten().tolist()
        counted = (batch.labels != IGNORED_LABEL).flatten().nonzero().squeeze(1)
        problems: list[str] = []
        if batch.scored_index is None or counted.tolist() != batch.scored_index.tolist():
            problems.append("scored_index is not where the labels are")
        compared = 0
        for number, example in enumerate(context.examples):
            places = [at for at, who in enumerate(owner) if who == number]
            scored = [at for at in places if labels[at] != IGNORED_LABEL]
            wrong = [
                at
                for at in scored
                if at + 1 >= len(ids) or owner[at + 1] != number or labels[at] != ids[at + 1]
            ]
            if wrong:
                problems.append(
                    f"sample {number}: {len(wrong)} of {len(scored)} labels are not the next token"
                )
            if example.plan is None:
                continue
            conversation = example.plan.conversation
            runs = [[labels[at] for at in run] for run in _consecutive(scored)]
            if _begins_with_scored_text(conversation) and runs:
                runs[0].insert(0, ids[places[0]])  # nothing comes before it, so it has no label
            found = [
                context.processor.tokenizer.decode(run, skip_special_tokens=False) for run in runs
            ]
            compared += len(scored)
            if problem := _difference(found, conversation, context.processor.tokenizer):
                problems.append(
                    f"sample {number} ({conversation.origin or example.source}): {problem}"
                )
        return CheckResult(
            status=Status.FAILED if problems else Status.PASSED,
            measured=float(len(problems)),
            tolerance=0.0,
            detail="; ".join(problems[:3])
            or f"{compared} scored tokens of {len(context.examples)} samples",
        )


def expected_runs(message: Message, stop: str) -> Iterator[list[str]]:
    """The ways in which a scored turn may stand in a sequence, each as runs of text between media."""
    calls = "".join(piece.text for piece in tool_calls(message, []) if hasattr(piece, "text"))
    runs = [""]
    for part in message.parts:
        if isinstance(part, ImagePart | VideoPart):
            runs.append("")
        else:
            runs[-1] += part.text
    has_content = bool(runs[0]) or len(runs) > 1
    ending = ("\n" + calls if has_content and calls else calls) + stop
    plain = [*runs[:-1], runs[-1] + ending]
    yield plain
    thinking, answer = message.thinking, runs
    if thinking is None and END_OF_THINKING in runs[0]:
        thinking = runs[0].partition(END_OF_THINKING)[0].rpartition("<think>")[2]
        answer = [runs[0].rpartition(END_OF_THINKING)[2], *runs[1:]]
    for stripped in ([answer[0].lstrip("\n"), *answer[1:]], answer):
        has_content = bool(stripped[0]) or len(stripped) > 1
        ending = ("\n" + calls if has_content and calls else calls) + stop
        without = [*stripped[:-1], stripped[-1] + ending]
        yield without
        thought = (thinking or "").strip("\n") + f"\n{END_OF_THINKING}\n\n"
        yield [thought + without[0], *without[1:]]


def _difference(found: list[str], conversation: Conversation, tokenizer: Tokenizer) -> str | None:
    """Where the scored runs depart from the record, or None."""
    at = 0
    for message in conversation.messages:
        if not message.is_scored:
            continue
        stop = "<|endoftext|>" if message.role == "document" else "<|im_end|>"
        ways = [[_normal(run, tokenizer) for run in way] for way in expected_runs(message, stop)]
        ways = [[run for run in way if run] for way in ways]
        for way in ways:
            if [run.lstrip() for run in found[at : at + len(way)]] == way:
                at += len(way)
                break
        else:
            got = found[at] if at < len(found) else "nothing"
            return f"the {message.role} says {_short(ways[0][0])}, scored is {_short(got)}"
    if at < len(found):
        return f"{_short(found[at])} is scored, and no turn that is to be scored says it"
    return None


def _normal(text: str, tokenizer: Tokenizer) -> str:
    """As it comes back from ids. White space before it may be one token with the header's newline."""
    normalizer = tokenizer.normalizer
    return (normalizer.normalize_str(text) if normalizer is not None else text).lstrip()


def _consecutive(places: list[int]) -> Iterator[list[int]]:
    for _, run in groupby(enumerate(places), key=lambda pair: pair[1] - pair[0]):
        yield [place for _, place in run]


def _begins_with_scored_text(conversation: Conversation) -> bool:
    first = conversation.messages[0]
    if first.role != "document" or not first.is_scored or not first.parts:
        return False
    return not isinstance(first.parts[0], ImagePart | VideoPart)


def _short(text: str, most: int = 60) -> str:
    return repr(text if len(text) <= most else text[:most] + "...")
