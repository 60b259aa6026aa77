"""What a model answered, on disk as it comes, so that an evaluation goes on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vlmkit.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Response:
    """The answers to one question.

    Attributes:
        key: of the question.
        texts: one for each sample; as the model wrote them.
        finish: why each ended: `stop`, `length`, ...
        prompt_tokens: of the question, media included.
        new_tokens: of all answers.
        error: why there is no answer, such as the code of a picture that cannot be read.
    """

    key: str
    texts: tuple[str, ...] = ()
    finish: tuple[str, ...] = ()
    prompt_tokens: int = 0
    new_tokens: int = 0
    error: str | None = None


class ResponseLog:
    """Files with one line for each answered question, after a line that says what was asked.

    Each of several processes writes a file of its own, and reads all. A line that was cut off when a
    process died is dropped.

    Args:
        folder: made where it is not there.
        header: must be that of the files.
        rank: of this process.

    Raises:
        ConfigError: a file holds answers to something else; says what differs.
    """

    def __init__(self, folder: Path, header: Mapping[str, Any], rank: int = 0) -> None:
        self.path = folder / (f"responses.{rank}.jsonl" if rank else "responses.jsonl")
        self._header = dict(header)
        self._done: dict[str, Response] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob("responses*.jsonl")):
            self._read(path)
        if not self.path.is_file() or not self.path.stat().st_size:
            self.path.write_text(_line(self._header))

    def _read(self, path: Path) -> None:
        whole = path.read_bytes()
        end = whole.rfind(b"\n") + 1
        if end < len(whole) and path == self.path:
            os.truncate(path, end)
        lines = whole[:end].decode().split("\n")[:-1]
        if not lines:
            return
        if (found := json.loads(lines[0])) != self._header:
            raise ConfigError(
                f"{path} holds answers to another evaluation ({found}, not {self._header}): "
                "give another out=, or say fresh=true to answer everything again"
            )
        for line in lines[1:]:
            response = _response(json.loads(line))
            self._done[response.key] = response

    def __contains__(self, key: str) -> bool:
        return key in self._done

    def __getitem__(self, key: str) -> Response:
        return self._done[key]

    def __len__(self) -> int:
        return len(self._done)

    def __iter__(self) -> Iterator[Response]:
        return iter(self._done.values())

    def add(self, response: Response) -> None:
        """Write a response; it is on disk when this returns."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(asdict(response)))
        self._done[response.key] = response


def _response(values: Mapping[str, Any]) -> Response:
    return Response(
        **{**values, "texts": tuple(values["texts"]), "finish": tuple(values["finish"])}
    )


def _line(values: Mapping[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=True) + "\n"
