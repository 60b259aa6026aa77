"""What every page is made of that needs no network, no other file, and trusts nothing that it shows."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup


def rendered(folder: Path, name: str, *, style: str, data: Any = None, **values: Any) -> str:
    """A page from `<name>.html.jinja`, with its style and its script in it.

    Values are escaped, and the page forbids itself any script but its own and any address.

    Args:
        folder: with the files.
        name: of the template, and of its script.
        style: name of the style sheet.
        data: what the script reads from the element `#data`; None: the page has no script.
        values: of the template, which also gets `style`, and `data`, `script` and `script_hash` if it has
            a script.
    """
    if data is not None:
        script = (folder / f"{name}.js").read_text(encoding="utf-8")
        digest = hashlib.sha256(script.encode()).digest()
        values |= {
            "data": Markup(safe_json(data)),
            "script": Markup(script),
            "script_hash": base64.b64encode(digest).decode(),
        }
    template = environment(folder).get_template(f"{name}.html.jinja")
    sheet = (folder / style).read_text(encoding="utf-8")
    return template.render(**values, style=Markup(sheet))


def safe_json(value: Any) -> str:
    """JSON that can stand in a script element whatever it holds."""
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def strict(value: Any) -> Any:
    """Without NaN and infinity, which JSON does not have: None in their place."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    return value


@lru_cache(maxsize=4)
def environment(folder: Path) -> Environment:
    """Templates of a folder; what they show is escaped."""
    made = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    made.filters["thousands"] = lambda value: f"{value:,}"
    return made
