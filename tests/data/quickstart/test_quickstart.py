import numpy as np
import pytest

from vlmkit.build import build, compose_config
from vlmkit.data.quickstart.emoji import ARTISTS, EmojiSet
from vlmkit.data.quickstart.questions import Count, Group, Name, lay_out
from vlmkit.data.quickstart.sources import ClipSource, EmojiSource


@pytest.fixture(scope="module")
def emoji() -> EmojiSet:
    return EmojiSet("train", artists=["noto", "openmoji"])


def test_concepts_are_held_out_as_a_whole():
    train, held_out, everything = (EmojiSet(side) for side in ("train", "held_out", "all"))
    codes = [
        {concept.hexcode for concept in side.concepts} for side in (train, held_out, everything)
    ]
    assert not codes[0] & codes[1]
    assert codes[0] | codes[1] == codes[2]
    assert 0.12 < len(codes[1]) / len(codes[2]) < 0.18
    assert len(codes[2]) > 1500
    assert len(everything.groups) == 9


@pytest.mark.parametrize("artist", ARTISTS)
def test_every_artist_has_drawn_every_concept(artist):
    everything = EmojiSet("all", artists=[artist])
    for concept in everything.concepts[::97]:
        pixels = everything.picture(concept, artist)
        assert pixels.shape == (64, 64, 3)
        assert (pixels < 200).any(), f"{artist} {concept.label_en} is blank"


def test_unknown_artist_is_named():
    with pytest.raises(ValueError, match=r"\['picasso'\] are not in the set"):
        EmojiSet(artists=["picasso"])


def test_samples_are_a_function_of_seed_and_index(emoji):
    def source(seed):
        return EmojiSource(emoji, Count(), "count", size=100, seed=seed)

    a, b, c = source(0)[17], source(0)[17], source(1)[17]
    assert a.answer == b.answer
    assert np.array_equal(a.messages[0].parts[0].image.pixels, b.messages[0].parts[0].image.pixels)
    assert not np.array_equal(
        a.messages[0].parts[0].image.pixels, c.messages[0].parts[0].image.pixels
    )


def test_counts_are_what_is_on_the_canvas(emoji):
    source = EmojiSource(emoji, Count(most=6), "count", size=60)
    for i in range(60):
        sample = source[i]
        canvas = sample.messages[0].parts[0].image.pixels
        cells = canvas.reshape(3, 32, 3, 32, 3).transpose(0, 2, 1, 3, 4).reshape(9, -1)
        assert str(int((cells.min(axis=1) < 235).sum())) == sample.answer


def test_names_and_groups_are_the_concepts_own(emoji):
    for question, field in ((Name(), "label_en"), (Name(1.0), "label_zh"), (Group(), "group")):
        sample = EmojiSource(emoji, question, "x", size=10)[3]
        named = {getattr(concept, field) for concept in emoji.concepts}
        assert sample.answer in named


def test_lay_out_fills_one_cell():
    canvas = lay_out({5: np.zeros((64, 64, 3), dtype=np.uint8)})
    assert not canvas[32:64, 64:].any()
    assert int((canvas == 0).sum()) == 32 * 32 * 3


def test_clip_questions_need_the_pixels_and_never_repeat_training_moments():
    train, held_out = (ClipSource("clip", size=80, held_out=side) for side in (False, True))
    starts = [
        {source[i].messages[0].parts[0].start_s for i in range(80)} for source in (train, held_out)
    ]
    assert not starts[0] & starts[1]
    lengths = {round(c.end_s - c.start_s, 6) for s in (train, held_out) for i in range(80)
               for c in [s[i].messages[0].parts[0]]}  # fmt: skip
    assert lengths == {1.0}, "the timestamps are the same text whatever the answer"
    assert {train[i].answer for i in range(80)} == set(ClipSource.ACTIONS.values())


def test_validation_never_shows_training_pictures():
    config = compose_config("run_dir=unused")
    data = build(config.data)
    train = config.emoji.train
    for name, source in data.validation.items():
        if name == "clip_new_moments":
            continue
        seen = EmojiSet("train", artists=list(train.artists))
        new_concept = not {c.hexcode for c in source.emoji.concepts} & {
            c.hexcode for c in seen.concepts
        }
        new_artist = not set(source.emoji.artists) & set(seen.artists)
        assert new_concept or new_artist, name


def test_training_asks_about_every_concept_before_any_returns():
    """Also as the quickstart mixes its sources."""
    data = build(compose_config("run_dir=unused").data)
    at = data.mixture.locate(np.arange(4000))
    drawings = at.position[at.part == data.mixture.names.index("drawing")]
    assert drawings.tolist() == list(range(len(drawings)))


def test_every_concept_is_asked_about_once_before_any_returns(emoji):
    source = EmojiSource(emoji, Name(), "name", size=10_000)
    answers = [source[i].answer for i in range(len(emoji.concepts))]
    assert sorted(answers) == sorted(concept.label_en for concept in emoji.concepts)
    assert answers != [concept.label_en for concept in emoji.concepts]
