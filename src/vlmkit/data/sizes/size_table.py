"""Sizes of all samples of a source, measured once from headers and kept in a file."""

from __future__ import annotations

import json
import os
from collections.abc import Sized
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vlmkit.data.order.work import Ints, Sizes
from vlmkit.errors import ConfigError, Reason

REASONS: tuple[Reason, ...] = tuple(Reason)
"""Code 0 of a table means that the sample can be used, code i + 1 names the reason why not."""

MOST_SAMPLES = 100_000_000
"""Samples of a source beyond which it is one that makes its samples up, and is not measured one by one."""

_VERSION = 1


def is_measurable(source: Sized) -> bool:
    """Whether a table of all samples of a source makes sense."""
    return len(source) <= MOST_SAMPLES


@dataclass(frozen=True, kw_only=True)
class SizeTable:
    """One row per sample of a source, in its order."""

    sizes: Sizes
    codes: NDArray[np.uint8]
    key: str = ""  # of data, processor and limits; see `vlmkit.data.order.samples.table_key`

    @classmethod
    def load(cls, path: str | Path) -> SizeTable:
        """Read a table.

        Raises:
            ConfigError: there is none, or it is not one.
        """
        try:
            table = pq.read_table(Path(path))
        except (OSError, pa.ArrowException) as error:
            raise ConfigError(
                f"sizes {path}: cannot be read ({error}); python -m vlmkit.stats writes such a file"
            ) from error
        about: dict[str, Any] = json.loads((table.schema.metadata or {}).get(b"vlmkit", b"{}"))
        if about.get("version") != _VERSION:
            raise ConfigError(f"sizes {path}: not a table that this version of vlmkit wrote")
        columns = {f.name: table[f.name].to_numpy() for f in fields(Sizes)}
        now = np.array([0, *(_code_of(reason) for reason in about["reasons"])], dtype=np.uint8)
        return cls(
            sizes=Sizes(**columns), codes=now[table["code"].to_numpy()], key=str(about["key"])
        )

    def save(self, path: str | Path) -> None:
        """Write the table in one step, so that a kill leaves the old file or none."""
        columns = {field.name: getattr(self.sizes, field.name) for field in fields(Sizes)}
        table = pa.table({**columns, "code": self.codes})
        about = json.dumps({"version": _VERSION, "key": self.key, "reasons": REASONS}).encode()
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{os.getpid()}")
        pq.write_table(table.replace_schema_metadata({b"vlmkit": about}), part)
        os.replace(part, target)

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Which samples can be used."""
        return self.codes == 0

    @property
    def mean_tokens(self) -> float:
        """Tokens that a sample brings on average; one that cannot be used brings none."""
        return float(self.sizes.tokens[self.usable].sum()) / max(len(self), 1)

    def reason(self, position: int) -> Reason | None:
        """Why a sample cannot be used, or None."""
        code = int(self.codes[position])
        return REASONS[code - 1] if code else None

    def at(self, positions: Ints) -> Sizes:
        """Sizes of some samples."""
        return self.sizes[positions]


def _code_of(reason: str) -> int:
    return REASONS.index(Reason(reason)) + 1
