import pytest

from vlmkit.data.quickstart.emoji import EmojiSet
from vlmkit.data.quickstart.text_facts import FactSource


@pytest.fixture(scope="module")
def emoji() -> EmojiSet:
    return EmojiSet("train", artists=["noto"])


def test_each_concept_is_described_before_any_returns(emoji):
    source = FactSource(emoji, "facts", size=10_000, kinds=["name"])
    answers = [source[i].answer for i in range(len(emoji.concepts))]
    assert sorted(answers) == sorted(concept.label_en for concept in emoji.concepts)


def test_answers_are_the_concepts_own(emoji):
    by_name = {concept.label_en: concept for concept in emoji.concepts}
    source = FactSource(emoji, "facts", size=100)
    for i in range(30):
        messages = source[i].messages
        answers = {
            question.text.splitlines()[-1]: answer.text
            for question, answer in zip(messages[::2], messages[1::2], strict=True)
        }
        concept = by_name[answers["What is this?"]]
        assert answers["Which group does this belong to?"] == concept.group
        assert answers["Describe the picture."].startswith(f"{concept.label_en}: ")
        description = messages[0].text.splitlines()[0]
        assert description == concept.label_en or set(description.split(", ")) <= set(
            concept.tags_en
        )


def test_samples_are_a_function_of_seed_and_index(emoji):
    texts = [
        [m.text for m in FactSource(emoji, "facts", 99, seed=s)[7].messages] for s in (0, 0, 1)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_unknown_kinds_are_named(emoji):
    with pytest.raises(ValueError, match=r"\['colour'\] are unknown"):
        FactSource(emoji, "facts", 10, kinds=["name", "colour"])
