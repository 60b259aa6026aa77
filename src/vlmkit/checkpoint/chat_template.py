"""The chat template of a published checkpoint: which of ours writes the same turns, and back to jinja."""

from __future__ import annotations

import logging
from itertools import zip_longest
from pathlib import Path

from vlmkit.assets import asset_path
from vlmkit.checkpoint.files import read_json
from vlmkit.data.media import ImageFile
from vlmkit.data.record import Conversation, ImagePart, Message, TextPart
from vlmkit.data.template import ChatTemplate, InstructTemplate, TextPiece, ThinkingTemplate

log = logging.getLogger(__name__)

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"
JINJA: dict[type[ChatTemplate], str] = {
    InstructTemplate: "chat_template.jinja",
    ThinkingTemplate: "chat_template_thinking.jinja",
}
# Before a jinja file: labels of media, unless the reader says otherwise.
WITH_LABELS = "{%- set add_vision_id = add_vision_id is not defined or add_vision_id %}\n"

# Templates of vlmkit, and the overrides that choose them.
CANDIDATES: tuple[tuple[ChatTemplate, list[str]], ...] = (
    (InstructTemplate(), ["template=instruct"]),
    (ThinkingTemplate(), ["template=thinking"]),
    (InstructTemplate(add_vision_id=True), ["template=instruct", "template.add_vision_id=true"]),
    (ThinkingTemplate(add_vision_id=True), ["template=thinking", "template.add_vision_id=true"]),
)

# The same short conversation, for our template and for that of a checkpoint.
ANSWER = "<think>\nFeathers.\n</think>\n\nAn owl."
OURS = Conversation(
    messages=(
        Message(role="user", parts=(ImagePart(ImageFile(Path("owl.png"))), TextPart("What?"))),
        Message(role="assistant", parts=(TextPart(ANSWER),)),
        Message(role="user", parts=(TextPart("Sure?"),)),
    )
)
THEIRS = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
    {"role": "assistant", "content": ANSWER},
    {"role": "user", "content": [{"type": "text", "text": "Sure?"}]},
]


def template_overrides(folder: Path) -> list[str]:
    """The overrides that choose the template which writes turns as a checkpoint's own does.

    Where none does, as with a default system prompt, there are no overrides, and a warning says what
    differs from Instruct, which is then the one to be used.

    Raises:
        CheckpointError: the file that holds the template cannot be read.
    """
    jinja = chat_template_of(folder)
    if jinja is None:
        return []
    try:
        found = _rendered(jinja)
    except Exception as error:  # a template can fail in any way
        log.warning(
            "%s: its chat template cannot be rendered (%s: %s); turns are written as for the Instruct "
            "models, which may not be how this model was trained",
            folder,
            type(error).__name__,
            error,
        )
        return []
    for template, overrides in CANDIDATES:
        if _rendered_by(template) == found:
            return overrides
    expected = _rendered_by(InstructTemplate())
    pairs = enumerate(zip_longest(found, expected))
    shared = next(i for i, (theirs, ours) in pairs if theirs != ours)
    thinks = found.endswith("<think>\n")
    log.warning(
        "%s: its chat template is neither that of the Instruct nor that of the Thinking models%s: it "
        "writes %r where Instruct writes %r. Turns are written as for Instruct, so this model sees "
        "other prompts than in its training",
        folder,
        ", but its prompts end with <think> (template=thinking may be nearer)" if thinks else "",
        found[shared : shared + 40],
        expected[shared : shared + 40],
    )
    return []


def published_template(template: ChatTemplate) -> str:
    """The jinja file that writes turns as a template does; that of Instruct for one of your own."""
    kind: type = type(template)
    if kind not in JINJA:
        log.warning(
            "readers write turns by the chat template of the Instruct models, this processor by its "
            "own %s",
            kind.__name__,
        )
        kind = InstructTemplate
    jinja = asset_path(JINJA[kind]).read_text(encoding="utf-8")
    return WITH_LABELS + jinja if getattr(template, "add_vision_id", False) else jinja


def chat_template_of(folder: Path) -> str | None:
    """The template that transformers would take, or None where the folder has none.

    Raises:
        CheckpointError: the file that holds it cannot be read.
    """
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    for file in ("chat_template.json", "tokenizer_config.json"):
        if (folder / file).is_file():
            template = read_json(folder / file).get("chat_template")
            if isinstance(template, list):  # several, by name
                named = {entry.get("name"): entry.get("template") for entry in template}
                template = named.get("default")
            if isinstance(template, str):
                return template
    return None


def _rendered(jinja: str) -> str:
    """As transformers renders it. The sandbox keeps a template from files and code."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    return environment.from_string(jinja).render(messages=THEIRS, add_generation_prompt=True)


def _rendered_by(template: ChatTemplate) -> str:
    pieces = template.render(OURS, for_generation=True)
    return "".join(piece.text if isinstance(piece, TextPiece) else IMAGE for piece in pieces)
