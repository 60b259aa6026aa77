"""Chat templates: equal to the jinja files that other engines read, and scored where they should be."""

from __future__ import annotations

import json
import string
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from vlmkit.assets import asset_path
from vlmkit.build import build, compose_config
from vlmkit.data.media import ImageFile, VideoFile
from vlmkit.data.record import (
    Conversation,
    GroundingPart,
    ImagePart,
    Message,
    Part,
    TextPart,
    ToolCall,
    VideoPart,
    document,
)
from vlmkit.data.template import ChatTemplate, InstructTemplate, Piece, TextPiece, ThinkingTemplate
from vlmkit.errors import RecordError

IMAGE, VIDEO = ImagePart(ImageFile(Path("owl.png"))), VideoPart(VideoFile(Path("owl.mp4")))
MARKS = {
    ImagePart: "<|vision_start|><|image_pad|><|vision_end|>",
    VideoPart: "<|vision_start|><|video_pad|><|vision_end|>",
}
TEMPLATES = (InstructTemplate(), ThinkingTemplate())
JINJA = {
    InstructTemplate: "chat_template.jinja",
    ThinkingTemplate: "chat_template_thinking.jinja",
}


def say(role: Any, *parts: Part | str, **more: Any) -> Message:
    written = tuple(TextPart(part) if isinstance(part, str) else part for part in parts)
    return Message(role=role, parts=written, **more)


def talk(*messages: Message, **more: Any) -> Conversation:
    return Conversation(messages=messages, **more)


def joined(pieces: list[Piece]) -> str:
    return "".join(p.text if isinstance(p, TextPiece) else MARKS[type(p)] for p in pieces)


def written(template: ChatTemplate, *messages: Message, for_generation: bool = False) -> str:
    return joined(template.render(talk(*messages), for_generation))


def scored(template: ChatTemplate, *messages: Message) -> list[str]:
    """The scored text; pieces that touch are one."""
    runs = [""]
    for piece in template.render(talk(*messages)):
        if isinstance(piece, TextPiece) and piece.scored:
            runs[-1] += piece.text
        elif runs[-1]:
            runs.append("")
    return [run for run in runs if run]


# Random conversations, with text that looks like markers.
MARKERS = ["<think>", "</think>", "<tool_response>", "</tool_response>", "<|im_end|>"]
OTHERS = [
    "\n",
    "\n\n",
    " ",
    "Owl",
    "鸟",
    '"',
    "\\",
    "{{ 1 }}",
    "{% if %}",
    "'",
    "&<>",
    "Picture 1: ",
]
FRAGMENTS = st.sampled_from(MARKERS) | st.sampled_from(OTHERS)
TEXT = st.lists(FRAGMENTS | st.text(max_size=4), max_size=6).map("".join)
WORDS = st.text(string.ascii_letters + " \n", max_size=6).map(TextPart)
MEDIA = st.sampled_from([IMAGE, VIDEO])
RESULT_LIKE = TEXT.map(lambda text: f"<tool_response>{text}</tool_response>")
TEXT_PARTS = (TEXT | RESULT_LIKE).map(TextPart) | st.just(GroundingPart(items=()))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
OBJECTS = st.dictionaries(TEXT, JSON, max_size=3)
CALLS = st.builds(ToolCall, name=st.sampled_from(["zoom", "a.b", "f"]), arguments=OBJECTS | TEXT)
SCORED = st.none() | st.booleans()


def tuples(parts: st.SearchStrategy[Any], at_most: int = 3) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(parts, max_size=at_most).map(tuple)


SYSTEM = st.builds(Message, role=st.just("system"), parts=tuples(TEXT_PARTS), scored=SCORED)
OTHER = st.builds(
    Message,
    role=st.sampled_from(["user", "user", "tool", "tool"]),
    parts=tuples(TEXT_PARTS | MEDIA),
    scored=SCORED,
)
ANSWER_PARTS = tuples(TEXT_PARTS) | st.builds(  # pictures never stand before `</think>`
    lambda *parts: sum(parts, ()), tuples(TEXT_PARTS), tuples(MEDIA, 2), tuples(WORDS, 2)
)
THOUGHTS = st.none() | st.just("") | TEXT
ANSWER = st.builds(
    Message, role=st.just("assistant"), parts=ANSWER_PARTS, thinking=THOUGHTS, scored=SCORED
)
CALL = st.builds(
    Message,
    role=st.just("assistant"),
    parts=tuples(TEXT_PARTS),
    thinking=THOUGHTS,
    tool_calls=st.lists(CALLS, min_size=1, max_size=3).map(tuple),
    scored=SCORED,
)
CONVERSATIONS = st.builds(
    Conversation,
    messages=st.lists(SYSTEM | OTHER | OTHER | ANSWER | CALL, min_size=1, max_size=8).map(tuple),
    tools=tuples(OBJECTS, 2),
)


def for_jinja(message: Message, as_string: bool) -> dict[str, Any]:
    """The same message as transformers takes it."""
    content: Any = [
        {"type": "image"}
        if isinstance(part, ImagePart)
        else {"type": "video"}
        if isinstance(part, VideoPart)
        else {"type": "text", "text": part.text}
        for part in message.parts
    ]
    if as_string and all(part["type"] == "text" for part in content):
        content = message.text
    made: dict[str, Any] = {"role": message.role, "content": content}
    if message.thinking is not None:
        made["reasoning_content"] = message.thinking
    if message.tool_calls:
        made["tool_calls"] = [
            {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    return made


@pytest.mark.parametrize("kind", JINJA, ids=lambda kind: kind.__name__)
@settings(deadline=None)  # the first example imports transformers
@given(
    conversation=CONVERSATIONS,
    for_generation=st.booleans(),
    add_vision_id=st.booleans(),
    as_string=st.booleans(),
)
def test_python_and_jinja_write_the_same(
    kind: Any,
    conversation: Conversation,
    for_generation: bool,
    add_vision_id: bool,
    as_string: bool,
) -> None:
    processing = pytest.importorskip("transformers.utils.chat_template_utils")
    rendered, _ = processing.render_jinja_template(
        [[for_jinja(message, as_string) for message in conversation.messages]],
        tools=list(conversation.tools) or None,
        chat_template=asset_path(JINJA[kind]).read_text(encoding="utf-8"),
        add_generation_prompt=for_generation,
        add_vision_id=add_vision_id,
    )
    pieces = kind(add_vision_id=add_vision_id).render(conversation, for_generation)
    assert joined(pieces) == rendered[0]
    media = [part for part in conversation.parts if isinstance(part, ImagePart | VideoPart)]
    assert [piece for piece in pieces if not isinstance(piece, TextPiece)] == media


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: type(template).__name__)
@given(before=CONVERSATIONS, question=TEXT, last=ANSWER | CALL)
def test_what_is_scored_is_what_follows_the_prompt_for_generation(
    template: ChatTemplate, before: Conversation, question: str, last: Message
) -> None:
    """To the letter: nothing of the prompt, all of the answer with its end mark, not the newline."""
    assume(not any(isinstance(part, ImagePart | VideoPart) for part in last.parts))
    assume(not question.startswith("<tool_response>"))
    silent = [
        Message(role=m.role, parts=m.parts, tool_calls=m.tool_calls, scored=False)
        for m in before.messages
    ]
    prompt = [*silent, say("user", question)]
    last = Message(
        role="assistant", parts=last.parts, tool_calls=last.tool_calls, thinking=last.thinking
    )
    (answer,) = scored(template, *prompt, last)
    opened = written(template, *prompt, for_generation=True)
    assert opened + answer + "\n" == written(template, *prompt, last)


@given(conversation=CONVERSATIONS)
def test_the_scored_text_of_each_turn_is_what_the_assistant_wrote(
    conversation: Conversation,
) -> None:
    silenced = [
        m if m.role == "assistant" else Message(role=m.role, parts=m.parts, scored=False)
        for m in conversation.messages
    ]
    expected = ""
    for message in silenced:
        if message.is_scored:
            calls = [
                f'<tool_call>\n{{"name": "{call.name}", "arguments": '
                f"{call.arguments if isinstance(call.arguments, str) else dumps(call.arguments)}"
                "}\n</tool_call>"
                for call in message.tool_calls
            ]
            expected += "\n".join([message.text] * bool(message.text) + calls) + "<|im_end|>"
    pieces = InstructTemplate().render(talk(*silenced))
    assert "".join(p.text for p in pieces if isinstance(p, TextPiece) and p.scored) == expected


def dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


QUESTION = say("user", IMAGE, "What?")
CALL_ZOOM = say(
    "assistant",
    "Closer.",
    thinking="Too small.\n",
    tool_calls=(ToolCall("zoom", {"é": [1, 2.5], "s": 'a"b'}), ToolCall("zoom", '{"raw":1}')),
)
RESULTS = (say("tool", IMAGE, "sharp"), say("tool", "found"))
ZOOMED = (
    "Closer."
    '\n<tool_call>\n{"name": "zoom", "arguments": {"é": [1, 2.5], "s": "a\\"b"}}\n</tool_call>'
    '\n<tool_call>\n{"name": "zoom", "arguments": {"raw":1}}\n</tool_call><|im_end|>'
)
ASKED = f"<|im_start|>user\n{MARKS[ImagePart]}What?<|im_end|>\n<|im_start|>assistant\n"
ANSWERED = (
    f"\n<|im_start|>user\n<tool_response>\n{MARKS[ImagePart]}sharp\n</tool_response>"
    "\n<tool_response>\nfound\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
)


def test_golden_turns_of_instruct() -> None:
    messages = (QUESTION, CALL_ZOOM, *RESULTS, say("assistant", "<think>\na\n</think>\n\nAn owl."))
    template = InstructTemplate()
    final = "<think>\na\n</think>\n\nAn owl.<|im_end|>"
    assert written(template, *messages) == ASKED + ZOOMED + ANSWERED + final + "\n"
    assert scored(template, *messages) == [ZOOMED, final]
    assert written(template, QUESTION, for_generation=True) == ASKED


def test_golden_turns_of_thinking() -> None:
    template = ThinkingTemplate()
    loop = (QUESTION, CALL_ZOOM, *RESULTS, say("assistant", "<think>\na\n</think>\n\nAn owl."))
    zoomed = f"Too small.\n</think>\n\n{ZOOMED}"
    final = "a\n</think>\n\nAn owl.<|im_end|>"
    assert written(template, *loop) == (f"{ASKED}<think>\n{zoomed}{ANSWERED}<think>\n{final}\n")
    assert scored(template, *loop) == [zoomed, final]

    again = (*loop, say("user", "Sure?"), say("assistant", "\nYes."))
    past, sure = "An owl.<|im_end|>", "\n</think>\n\nYes.<|im_end|>"
    assert written(template, *again) == (
        f"{ASKED}{ZOOMED}{ANSWERED}{past}\n"
        f"<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n<think>\n{sure}\n"
    )
    assert scored(template, *again) == [ZOOMED, past, sure]
    assert written(template, *again[:-1], for_generation=True).endswith(
        "Sure?<|im_end|>\n<|im_start|>assistant\n<think>\n"
    )


def test_golden_tools() -> None:
    tools = ({"name": "zoom", "unit": "°"}, {"name": "<b> & 'c'", "nested": {"a": [None, True]}})
    block = (
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
        '{"name": "zoom", "unit": "°"}\n'
        '{"name": "<b> & \'c\'", "nested": {"a": [null, true]}}\n</tools>\n\n'
        "For each function call, return a json object with function name and arguments within "
        "<tool_call></tool_call> XML tags:\n<tool_call>\n"
        '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\nHi<|im_end|>\n"
    )
    for template in TEMPLATES:
        plain = joined(template.render(talk(say("user", "Hi"), tools=tools)))
        assert plain == "<|im_start|>system\n" + block
        messages = (say("system", "Be", " brief."), say("user", "Hi"))
        told = joined(template.render(talk(*messages, tools=tools)))
        assert told == "<|im_start|>system\nBe brief.\n\n" + block


def test_a_later_system_message_is_kept_by_thinking_only() -> None:
    messages = (say("user", "Hi"), say("system", "Be brief."))
    hi, system = "<|im_start|>user\nHi<|im_end|>\n", "<|im_start|>system\nBe brief.<|im_end|>\n"
    assert written(InstructTemplate(), *messages) == hi
    assert written(ThinkingTemplate(), *messages) == hi + system


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: type(template).__name__)
def test_turns_are_scored_as_they_say(template: ChatTemplate) -> None:
    messages = (
        say("system", "a", scored=True),
        say("user", "b", IMAGE, "c", scored=True),
        say("assistant", "d", scored=False, tool_calls=(ToolCall("f", "{}"),)),
        say("tool", "e", scored=True),
        say("user", "f"),
        say("assistant", "g"),
    )
    end = "<|im_end|>"
    last = f"g{end}" if isinstance(template, InstructTemplate) else f"\n</think>\n\ng{end}"
    assert scored(template, *messages) == [f"a{end}", "b", f"c{end}", "e", end, last]


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: type(template).__name__)
def test_labels_are_never_scored(template: ChatTemplate) -> None:
    labelled = type(template)(add_vision_id=True)  # type: ignore[call-arg]
    messages = (say("user", IMAGE, VIDEO, "x", IMAGE), say("assistant", "y", VIDEO, IMAGE, "z"))
    labels = [
        piece
        for piece in labelled.render(talk(*messages))
        if isinstance(piece, TextPiece) and piece.text.endswith(": ")
    ]
    names = ["Picture 1: ", "Video 1: ", "Picture 2: ", "Video 2: ", "Picture 3: "]
    assert labels == [TextPiece(name) for name in names]


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: type(template).__name__)
def test_documents_have_no_turns(template: ChatTemplate) -> None:
    parts = (TextPart("An owl:\n"), IMAGE, GroundingPart(items=()), TextPart("</think>"))
    page = document(parts)
    text, grounding, rest = (TextPiece(p.text, True) for p in parts if not isinstance(p, ImagePart))
    expected = [text, IMAGE, grounding, rest]
    assert template.render(page) == [*expected, TextPiece("<|endoftext|>", True)]
    assert template.render(page, for_generation=True) == expected
    silent = template.render(talk(say("document", "a", scored=False)))
    assert silent == [TextPiece("a"), TextPiece("<|endoftext|>")]


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda template: type(template).__name__)
@pytest.mark.parametrize(
    ("conversation", "reason"),
    [
        (talk(), "a.jsonl:3: it has no messages"),
        (talk(say("user", "a"), say("document", "b")), r"message 1 \(document\): .* without other"),
        (talk(say("document", "b"), tools=({},)), r"message 0 \(document\): .* without tools"),
        (talk(say("user", tool_calls=(ToolCall("f", {}),))), r"\(user\): only the assistant calls"),
        (talk(say("document", thinking="x")), r"\(document\): only the assistant thinks"),
        (talk(say("tool", thinking="")), r"message 0 \(tool\): only the assistant thinks"),
        (
            talk(say("user"), say("assistant", IMAGE, tool_calls=(ToolCall("f", {}),))),
            r"message 1 \(assistant\): a turn that calls tools cannot hold pictures",
        ),
        (talk(say("user"), say("system", VIDEO)), r"message 1 \(system\): system messages cannot"),
    ],
)
def test_conversations_that_cannot_be_written_are_named(
    template: ChatTemplate, conversation: Conversation, reason: str
) -> None:
    named = Conversation(
        messages=conversation.messages, tools=conversation.tools, origin="a.jsonl:3"
    )
    with pytest.raises(RecordError, match=f"a.jsonl:3: .*{reason}|{reason}"):
        template.render(named)


def test_a_picture_does_not_vanish_with_the_reasoning_around_it() -> None:
    messages = (say("user", "?"), say("assistant", "<think>", IMAGE, "</think>An owl."))
    with pytest.raises(RecordError, match=r"message 1 \(assistant\): pictures or videos stand bef"):
        ThinkingTemplate().render(talk(*messages))
    assert MARKS[ImagePart] in written(InstructTemplate(), *messages)


def test_a_processor_scores_the_tokens_after_the_prompt_for_thinking() -> None:
    processor = build(compose_config("model=qwen3vl_tiny", "template=thinking").processor)
    example = processor(talk(say("user", "1+1?"), say("assistant", "Two.", thinking="One more.")))
    decode = partial(processor.tokenizer.decode, skip_special_tokens=False)
    texts = [(decode(list(span.token_ids)), span.scored) for span in example.spans]
    assert texts == [
        ("<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n<think>\n", False),
        ("One more.\n</think>\n\nTwo.<|im_end|>", True),
        ("\n", False),
    ]
