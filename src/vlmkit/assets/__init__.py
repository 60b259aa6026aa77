"""Data files shipped with vlmkit: tokenizer ranks, emoji pictures and a short video clip."""

from __future__ import annotations

from pathlib import Path

_ROOT = Path(__file__).resolve().parent


def asset_path(*parts: str) -> Path:
    """Locate a data file shipped with vlmkit.

    Args:
        *parts: Path components below the asset directory, e.g. ``"emoji", "noto.parquet"``.

    Returns:
        The absolute path of the file or directory.

    Raises:
        FileNotFoundError: If the asset is not there.
    """
    path = _ROOT.joinpath(*parts)
    if not path.exists():
        raise FileNotFoundError(
            f"vlmkit asset {'/'.join(parts)!r} is missing (looked for {path}); rebuild it with "
            "`python -m vlmkit.assets.build` (see the top of vlmkit/assets/build.py)"
        )
    return path
