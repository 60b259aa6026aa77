"""English that says little, for pages that have to be read."""

from __future__ import annotations

from vlmkit.evaluation.synthetic.generated import Rng, one_of

_WHO = (
    *("The committee", "A visitor", "The archive", "The northern office", "Every engineer"),
    *("The museum", "An early report", "The harbour master", "Our neighbour", "The library"),
    *("The second survey", "A young botanist", "The orchestra", "The mountain station"),
)
_DOES = (
    *("describes", "collects", "repairs", "measures", "compares", "forgets", "admires", "records"),
    *("protects", "explains", "sorts", "photographs"),
)
_WHAT = (
    *("the old bridges", "several small lakes", "the colour of leaves", "the winter timetable"),
    *("a box of letters", "the price of bread", "the paths of ships", "the sound of rain"),
    *(
        "two wooden clocks",
        "the height of the towers",
        "the names of the streets",
        "a list of birds",
    ),
)
_WHEN = (
    *("in early spring", "before sunrise", "after the meeting", "during the long winter"),
    *("at the end of the month", "without any hurry", "for the third time", "near the station"),
    *("with great care", "as in former years", "on quiet evenings", "by the light of a lamp"),
)
_OPENINGS = (*[""] * 12, "However, ", "Later, ", "Meanwhile, ", "In general, ", "As a rule, ")
_TOPICS = (
    *("Bridges", "Gardens", "Harbours", "Letters", "Markets", "Mountains", "Railways", "Rivers"),
    *("Seasons", "Towers", "Travels", "Weather"),
)
_ADJECTIVES = ("Early", "Forgotten", "Northern", "Quiet", "Recent", "Small", "Southern", "Wooden")


def sentence(rng: Rng) -> str:
    """One, with a capital and a full stop."""
    opening = one_of(rng, _OPENINGS)
    who = one_of(rng, _WHO)
    if opening:
        who = who[0].lower() + who[1:]
    return f"{opening}{who} {one_of(rng, _DOES)} {one_of(rng, _WHAT)} {one_of(rng, _WHEN)}."


def paragraph(rng: Rng, fewest: int = 2, most: int = 4) -> str:
    """Some sentences."""
    return " ".join(sentence(rng) for _ in range(int(rng.integers(fewest, most + 1))))


def heading(rng: Rng) -> str:
    """Two words."""
    return f"{one_of(rng, _ADJECTIVES)} {one_of(rng, _TOPICS)}"
