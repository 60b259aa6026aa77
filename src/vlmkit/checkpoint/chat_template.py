"""The chat template of a published checkpoint, compared with the turns that vlmkit writes."""

from __future__ import annotations

import logging
from itertools import zip_longest
from pathlib import Path

from vlmkit.checkpoint.files import read_json
from vlmkit.data.record import Conversation, ImageFile, ImagePart, Message, TextPart
from vlmkit.data.template import InstructTemplate, TextPiece

log = logging.getLogger(__name__)

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"

# The same short conversation, for our template and for that of a checkpoint.
OURS = Conversation(
    messages=(
        Message(role="user", parts=(ImagePart(ImageFile(Path("owl.png"))), TextPart("What?"))),
        Message(role="assistant", parts=(TextPart("An owl."),)),
        Message(role="user", parts=(TextPart("Sure?"),)),
    )
)
THEIRS = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
    {"role": "assistant", "content": "An owl."},
    {"role": "user", "content": [{"type": "text", "text": "Sure?"}]},
]


def warn_unless_instruct(folder: Path) -> None:
    """Log a warning if a checkpoint's chat template writes turns in another way than vlmkit does.

    Templates of Thinking checkpoints do, and those with a default system prompt.
    """
    template = chat_template_of(folder)
    if template is None:
        return
    expected = _rendered_by_vlmkit()
    try:
        found = _rendered(template)
    except Exception as error:  # a template can fail in any way
        log.warning(
            "%s: its chat template cannot be rendered (%s: %s); turns are written as for the Instruct "
            "models, which may not be how this model was trained",
            folder,
            type(error).__name__,
            error,
        )
        return
    if found != expected:
        pairs = enumerate(zip_longest(found, expected))
        shared = next(i for i, (theirs, ours) in pairs if theirs != ours)
        kind = " and looks like that of a Thinking checkpoint" if "<think>" in template else ""
        log.warning(
            "%s: its chat template is not that of the Instruct models%s: it writes %r where vlmkit "
            "writes %r. Turns are written as for Instruct, so this model sees other prompts than in "
            "its training",
            folder,
            kind,
            found[shared : shared + 40],
            expected[shared : shared + 40],
        )


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


def _rendered(template: str) -> str:
    """As transformers renders it. The sandbox keeps a template from files and code."""
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    return environment.from_string(template).render(messages=THEIRS, add_generation_prompt=True)


def _rendered_by_vlmkit() -> str:
    pieces = InstructTemplate().render(OURS, for_generation=True)
    return "".join(piece.text if isinstance(piece, TextPiece) else IMAGE for piece in pieces)
