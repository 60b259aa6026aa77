"""Albums behind glass: what is asked about is there, once, where it is said to be."""

import numpy as np
import pytest

from vlmkit.data.quickstart.emoji import EmojiSet
from vlmkit.data.quickstart.glass import ColouredGlass
from vlmkit.data.record import ImagePart


@pytest.fixture(scope="module")
def emoji() -> EmojiSet:
    return EmojiSet("all", artists=["noto", "fluent"])


def tint_of(pixels) -> str | None:
    """Which glass a drawing is behind, by its white ground."""
    corner = pixels[0, 0].astype(int)
    distances = {
        name: np.abs(corner - np.array(colour)).max()
        for name, colour in ColouredGlass.GLASS.items()
    }
    nearest = min(distances, key=distances.get)
    return nearest if distances[nearest] < 25 else None


def test_the_answer_is_what_stands_behind_the_colour_asked_about(emoji):
    source = ColouredGlass(emoji, "glass", size=1000, fewest=4, most=30)
    plain = {
        word: [drawing.astype(float) for drawing in drawings]
        for word, drawings in zip(ColouredGlass.SUBJECTS.values(), source._drawings, strict=True)
    }
    for index in range(20):
        messages = source[index].messages
        pictures = [part.image.pixels for part in messages[0].parts if isinstance(part, ImagePart)]
        tints = [tint_of(picture) for picture in pictures]
        assert sorted(filter(None, tints)) == sorted(ColouredGlass.GLASS)
        for question, answer in zip(messages[::2], messages[1::2], strict=True):
            colour = question.parts[-1].text.removeprefix("Behind ").removesuffix("?")
            seen = pictures[tints.index(colour)].astype(float)
            tint = np.array(ColouredGlass.GLASS[colour]) / 255
            nearest = min(
                plain, key=lambda word: min(np.abs(p * tint - seen).mean() for p in plain[word])
            )
            assert answer.parts[0].text == nearest


@pytest.mark.parametrize("depth", [0.0, 0.5, 1.0])
def test_depth_says_where_the_drawing_stands(emoji, depth):
    source = ColouredGlass(emoji, "glass", 100, fewest=21, most=21, questions=1, depth=depth)
    for index in range(5):
        (question, _) = source[index].messages
        *pictures, asked = question.parts
        colour = asked.text.removeprefix("Behind ").removesuffix("?")
        assert tint_of(pictures[round(depth * 20)].image.pixels) == colour


def test_samples_repeat_and_differ(emoji):
    one, same = (ColouredGlass(emoji, "glass", 100, 4, 9, seed=3) for _ in range(2))
    assert [p.image.pixels.sum() for p in one[5].messages[0].parts[:-1]] == [
        p.image.pixels.sum() for p in same[5].messages[0].parts[:-1]
    ]
    assert (
        len({str(one[i].messages[1].parts) + str(len(one[i].messages[0].parts)) for i in range(30)})
        > 5
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"fewest": 3, "most": 9}, "fewest"), ({"fewest": 9, "most": 9, "questions": 5}, "questions")],
)
def test_numbers_that_make_no_sense_are_refused(emoji, arguments, words):
    with pytest.raises(ValueError, match=words):
        ColouredGlass(emoji, "glass", 10, **arguments)
    with pytest.raises(ValueError, match="does not hold"):
        ColouredGlass(EmojiSet("held_out", ["noto"]), "glass", 10, 4, 9)
