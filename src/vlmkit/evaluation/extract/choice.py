"""The option that an answer to a multiple-choice question names. Two options named are none."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Protocol

from vlmkit.evaluation.extract.short_answer import boxed, stated


class ChoiceExtractor(Protocol):
    """Reads which option was chosen."""

    def __call__(self, text: str, options: Mapping[str, str]) -> str | None:
        """The letter of the chosen option, or None.

        Args:
            text: of the answer.
            options: text by letter. The text may be empty, where options stand in the picture.
        """
        ...


_LETTER = r"[\(\[（【]?\s*([A-Z])(?![^\W\d_])\s*[\)\]）】]?"
_LEADING = re.compile(
    rf"(?:option\s+|choice\s+|选项?\s*)?{_LETTER}\s*(?P<after>[.:)、．：,]|$|\n|\s-)"
)
_IN_STATEMENT = re.compile(rf"(?:option\s+|choice\s+|选项?\s*)?{_LETTER}", re.IGNORECASE)
_BRACKETED = re.compile(r"[\(（]\s*([A-Z])\s*[\)）]|\*\*\s*([A-Z])\s*\*\*")
_CHOSEN = re.compile(
    r"(?:(?:option|choice)\s+[\(（]?([A-Z])[\)）]?\s+is\s+(?:the\s+)?(?:correct|right|best))"
    r"|(?:应?选择?\s*[\(（]?([A-Z])(?![^\W\d_]))"
)
_SECOND = re.compile(
    r"\s*(?:,|/|&|\+|、|and\b|or\b|和|或)\s*(?:option\s+)?[\(（\[]?([A-Z])(?![^\W\d_]|['’])",
    re.IGNORECASE,
)
_NEGATED = re.compile(
    r"\b(?:not|never|neither|nor|wrong|incorrect|false|except|rules?\s+out|ruled\s+out|eliminat\w+"
    r"|exclud\w+)\b|n['’]t\b|不|错",
    re.IGNORECASE,
)
_VERB = re.compile(r"(?:is|was|isn|wasn|can|cannot|could|would|seems|may|might)\b")
_DECORATION = re.compile(r"[*_`\"“”‘’$]|\\text(?:bf|rm)?|[{}]")


def stated_letter(text: str, options: Mapping[str, str]) -> str | None:
    r"""The letter that the answer names as its choice.

    Read in this order, and the first that is there decides: the last `\boxed{}` or "the answer is";
    a letter at the very beginning, followed by punctuation or nothing; "option B is correct"; the
    only letter in brackets or bold; a last line that is only a letter. A letter that the question has
    no option for, two letters side by side ("A or B"), or a letter in a sentence with "not" or
    "wrong" is None. "A dog" and "I think" name none.
    """
    text = unicodedata.normalize("NFKC", text)
    statement = stated(text)
    if statement is not None:
        plain = _plain(statement)
        match = _IN_STATEMENT.match(plain)
        if match and (match[1].isupper() or boxed(text) or len(plain) == 1):
            rest = plain[match.end(1) :]
            article = match[1] in "AI" and re.match(r"\s+(?!and\b|or\b)[a-z]", rest)
            if not article:
                return _single(match[1], rest.lstrip(")]）】 "), options)
    plain = _plain(text)
    if match := _LEADING.match(plain):
        return _single(match[1], plain[match.end(1) :].lstrip(")]）】 "), options)
    if re.fullmatch(r"[\(\[]?[a-z][\)\]]?\.?", plain):
        return _known(re.sub(r"\W", "", plain).upper(), options)
    for pattern in (_CHOSEN, _BRACKETED):
        found = list(pattern.finditer(text))
        if found:
            letters = {m[1] or m[2] for m in found}
            if len(letters) > 1 or any(_NEGATED.search(_sentence(text, m)) for m in found[:20]):
                return None
            return _known(letters.pop(), options)
    last_line = _plain(text.rstrip().rpartition("\n")[2])
    alone = re.fullmatch(rf"{_LETTER}\s*\.?", last_line)
    return _known(alone[1], options) if alone else None


def option_text(text: str, options: Mapping[str, str]) -> str | None:
    """The letter of the only option whose words are the whole answer, or the whole stated answer.

    Case, punctuation at the ends and white space do not matter.
    """
    for part in (stated(text), text):
        if part is None:
            continue
        said = _bare(part)
        letters = [letter for letter, words in options.items() if words and _bare(words) == said]
        if said and len(letters) == 1:
            return letters[0]
    return None


def letter_or_text(text: str, options: Mapping[str, str]) -> str | None:
    """`option_text` where the answer is an option's text, else `stated_letter`."""
    return option_text(text, options) or stated_letter(text, options)


def _sentence(text: str, match: re.Match[str]) -> str:
    """What stands around a match, up to the ends of its sentence; 300 characters at most each way."""
    before = re.split(r"[.!?;\n。]", text[max(0, match.start() - 300) : match.start()])[-1]
    return before + match[0] + re.split(r"[.!?;\n。]", text[match.end() : match.end() + 300])[0]


def _single(letter: str, rest: str, options: Mapping[str, str]) -> str | None:
    """The letter, unless another one stands beside it, or the words after it say that it is wrong."""
    letter = letter.upper()
    words = rest.lstrip(".:)]）】 ")[:300]
    if _VERB.match(words) and _NEGATED.search(re.split(r"[.!?;\n。]", words)[0]):
        return None
    other = _SECOND.match(rest.lstrip(".)"))
    if other and other[1].upper() != letter and other[1].upper() in options:
        return None
    return _known(letter, options)


def _known(letter: str, options: Mapping[str, str]) -> str | None:
    return letter if letter in options else None


def _plain(text: str) -> str:
    return _DECORATION.sub("", text).strip()


def _bare(text: str) -> str:
    words = " ".join(_plain(unicodedata.normalize("NFKC", text)).casefold().split())
    return words.strip(" .,:;!?()[]'")
