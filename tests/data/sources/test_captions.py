"""Captions, documents, and the samples of tar shards."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.data.sources.writers import png, write_tar
from vlmkit.data.media import ImageFile
from vlmkit.data.record import ImagePart, Message, TextPart, document
from vlmkit.data.sources.captions import QUESTIONS, Captions
from vlmkit.data.sources.documents import Documents, MatchedDocuments
from vlmkit.data.sources.llava import Llava
from vlmkit.data.sources.media import Media
from vlmkit.data.sources.messages import Messages
from vlmkit.data.sources.records import Records
from vlmkit.data.sources.row import Row
from vlmkit.data.sources.tar import TarTable
from vlmkit.data.sources.webdataset import WebDatasetSample
from vlmkit.errors import DataError, RecordError


def image(name: str) -> ImagePart:
    return ImagePart(ImageFile(Path(name)))


def parts(layout, values: dict, key: int = 0):
    (message,) = layout(Row(values, "a.jsonl:7", key), Media()).messages
    assert message.role == "document"
    return message.parts


def test_a_caption_answers_a_question():
    row = {"image": "a.png", "caption": "A cat.", "id": 4}
    conversation = Captions(questions=["What?"])(Row(row, "x", 3), Media())
    assert conversation.messages == (
        Message(role="user", parts=(image("a.png"), TextPart("What?"))),
        Message(role="assistant", parts=(TextPart("A cat."),)),
    )
    assert (conversation.meta, conversation.key, conversation.origin) == ({"id": 4}, 3, "x")


def test_questions_and_captions_are_drawn_by_the_rows_number():
    row = {"image": "a.png", "caption": ["one", "two", "three"]}
    layout = Captions()
    drawn = [layout(Row(row, "x", key), Media()) for key in range(1000)]
    assert drawn == [Captions()(Row(row, "x", key), Media()) for key in range(1000)]
    pairs = Counter((c.question, c.answer) for c in drawn)
    assert len(pairs) == 3 * len(QUESTIONS)
    assert min(pairs.values()) > 50  # of 83 on average; measured 64


def test_a_caption_without_turns():
    layout = Captions(as_document=True, caption="text")
    assert parts(layout, {"image": "a", "text": "x"}) == (image("a"), TextPart("x"))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"image": "a"}, "caption: it is missing"),
        ({"caption": "x"}, "image: it is missing"),
        ({"image": "a", "caption": " \n"}, "caption: it is empty; write"),
        ({"image": "a", "caption": []}, "caption: it is a list; it must be text"),
        ({"image": "a", "caption": [3]}, r"caption\[0\]: it is a number"),
    ],
)
def test_mistakes_in_captions(row, words):
    with pytest.raises(RecordError, match=rf"a.jsonl:7 {words}"):
        parts(Captions(), row)


def test_documents():
    assert parts(Documents(), {"text": "x\n"}) == (TextPart("x\n"),)
    row = {"images": ["a", None, None, "b"], "texts": [None, "x", "y", None]}
    assert parts(Documents(), row) == (image("a"), TextPart("x\n\ny"), image("b"))
    assert parts(Documents(), {"texts": ["x", "y"]}) == (TextPart("x\n\ny"),)


def test_pictures_stand_in_front_of_their_sentences():
    row = {
        "text_list": ["One.", "Two.", "Three."],
        "image_info": [
            {"image_name": "b", "matched_text_index": 2, "raw_url": "x"},
            {"image_name": "a", "matched_text_index": 0},
        ],
    }
    assert parts(MatchedDocuments(), row) == (
        image("a"),
        TextPart("One. Two."),
        image("b"),
        TextPart("Three."),
    )


@pytest.mark.parametrize(
    ("layout", "row", "words"),
    [
        (Documents(), {}, "text: it is missing"),
        (Documents(), {"text": " "}, "the document is empty"),
        (Documents(), {"text": "x", "texts": ["y"]}, "it has text and texts"),
        (Documents(), {"texts": ["x"], "images": []}, None),
        (Documents(), {"texts": ["x"], "images": ["a", "b"]}, "texts has 1 places and images has 2"),
        (Documents(), {"texts": ["x"], "images": ["a"]}, r"texts\[0\]: .*both a text and a picture"),
        (Documents(), {"texts": [None], "images": [None]}, r"texts\[0\]: .*neither"),
        (Documents(), {"texts": []}, "the document is empty"),
        (MatchedDocuments(), {"text_list": ["x"], "image_info": [{}]}, "matched_text_index: it is miss"),
        (MatchedDocuments(), {"text_list": ["x"], "image_info": [{"matched_text_index": 1}]},
         "it is 1, and there are 1 sentences"),
    ],
)  # fmt: skip
def test_mistakes_in_documents(layout, row, words):
    if words is None:
        assert parts(layout, row)
        return
    with pytest.raises(RecordError, match=rf"a.jsonl:7.*{words}"):
        parts(layout, row)


def sample(tmp_path, *members, layout=None, **options):
    table = TarTable(write_tar(tmp_path / "a.tar", [(f"d/00.{name}", c) for name, c in members]))
    return Records("tar", table, WebDatasetSample(layout, **options))[0]


TALK = [{"from": "human", "value": "<image>x"}, {"from": "gpt", "value": "y"}]


def as_json(**values) -> tuple[str, bytes]:
    return "json", json.dumps(values).encode()


def test_a_picture_and_its_caption(tmp_path):
    conversation = sample(tmp_path, ("jpg", png()), ("txt", b"a cat\n"), as_json(score=3))
    picture = conversation.messages[0].parts[0]
    assert isinstance(picture, ImagePart)
    assert picture.image.size() == (3, 4)
    assert picture.image.name.endswith("a.tar:d/00.jpg")
    assert conversation.answer == "a cat"
    assert conversation.meta == {"score": 3, "key": "d/00"}
    assert conversation.origin.endswith("a.tar:d/00")


def test_files_take_the_place_of_paths_that_are_gone(tmp_path):
    said = as_json(image="coco/train/00.jpg", conversations=TALK)
    parts = sample(tmp_path, ("jpg", png()), said, layout=Llava()).messages[0].parts
    assert parts[0].image.name.endswith("a.tar:d/00.jpg")
    assert parts[1] == TextPart("x")


@pytest.mark.parametrize("names", [("1.png", "0.png"), ("00.1.png", "00.0.png")])
def test_files_are_known_by_their_names(tmp_path, names):
    content = [{"image": name} for name in names]
    said = as_json(messages=[{"role": "user", "content": content}])
    files = [("0.png", png((1, 1))), ("1.png", png((2, 2)))]
    (message,) = sample(tmp_path, *files, said, layout=Messages()).messages
    assert [part.image.size() for part in message.parts] == [(2, 2), (1, 1)]


def test_several_files_fill_a_column(tmp_path):
    said = as_json(messages=[{"role": "user", "content": "<image><image> <video>"}])
    files = [("0.png", png((1, 1))), ("1.png", png((2, 2))), ("mp4", b"video")]
    layout = Messages()
    (message,) = sample(
        tmp_path, *files, said, layout=layout, image="images", video="videos"
    ).messages
    assert [part.image.size() for part in message.parts[:2]] == [(1, 1), (2, 2)]
    assert message.parts[3].video.blob.read() == b"video"


def test_any_extension_may_be_a_column(tmp_path):
    conversation = sample(
        tmp_path, ("left.png", png()), ("alt", b"x"), layout=Captions("left.png", "caption"),
        text_extensions=["alt"],
    )  # fmt: skip
    assert conversation.answer == "x"


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("jpg", b"")], "caption: it is missing"),
        ([("txt", b"x")], "image: it is missing"),
        ([("jpg", b""), ("txt", b"x"), ("caption", b"y")], "it has txt, caption; .*keep one"),
        ([("jpg", b""), ("txt", b"\xff")], "byte 0 of .* is not UTF-8"),
        ([("jpg", b""), ("json", b"[]")], "the row is a list"),
    ],
)
def test_mistakes_in_samples(tmp_path, members, words):
    with pytest.raises(RecordError, match=rf"a.tar:d/00.*{words}"):
        sample(tmp_path, *members)


def test_an_empty_list_of_questions_is_refused():
    with pytest.raises(ValueError, match=r"questions is empty"):
        Captions(questions=[])


def test_the_pictures_of_a_sample_are_read_when_needed(tmp_path):
    conversation = sample(tmp_path, ("jpg", b"no picture"), ("txt", b"x"))
    with pytest.raises(DataError, match=r"a.tar:d/00.jpg"):
        conversation.messages[0].parts[0].image.open()
    assert document(conversation.messages[0].parts).messages
