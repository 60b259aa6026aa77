"""Hashes of weights: the same for the same numbers in the same layout, wherever they lie."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vlmkit.checkpoint.folder import CheckpointFolder
from vlmkit.checkpoint.manifest import HASHING_THREADS, FileEntry
from vlmkit.checkpoint.run_folder import RunFolder
from vlmkit.data.sizes.settings_key import short_hash
from vlmkit.errors import CheckpointError


def hash_of_run(files: RunFolder) -> str:
    """Of the weights that `load_run` reads; they have been verified against their manifest there.

    Raises:
        CheckpointError: there are none.
    """
    entries = CheckpointFolder(files.newest_weights()).manifest.files
    return _combined({name: e.sha256 for name, e in entries.items() if name.startswith("model")})


def hash_of_published(folder: Path) -> str:
    """Of all weights and the config of a published checkpoint; reads every byte.

    Raises:
        CheckpointError: there are no weights.
    """
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise CheckpointError(f"{folder} holds no *.safetensors")
    with ThreadPoolExecutor(HASHING_THREADS) as threads:
        digests = threads.map(
            lambda path: FileEntry.of(path).sha256, [*paths, folder / "config.json"]
        )
        return _combined(dict(zip([*(p.name for p in paths), "config.json"], digests, strict=True)))


def _combined(digests: dict[str, str]) -> str:
    return short_hash(repr(sorted(digests.items())))
