"""Files whose SHA-256 is known when they have been written, and safetensors written that way."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from vlmkit.checkpoint.later_tensor import AnyTensor, LaterTensor, order_in_file
from vlmkit.checkpoint.manifest import FileEntry
from vlmkit.errors import CheckpointError

DTYPES: Mapping[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""As safetensors spells them."""

HASHED_BESIDE = 1 << 20  # bytes; less is hashed sooner than a thread is woken


class HashedFile:
    """A new file; large pieces are hashed in a thread while the system writes them."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb")
        self._hash = hashlib.sha256()
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._size = 0

    def write(self, content: bytes | memoryview) -> None:
        """Append bytes."""
        size = len(content)
        if size < HASHED_BESIDE:
            self._hash.update(content)
            self._file.write(content)
        else:
            hashed = self._thread.submit(self._hash.update, content)
            try:
                self._file.write(content)
            finally:
                hashed.result()
        self._size += size

    @property
    def entry(self) -> FileEntry:
        """What the manifest says about the file."""
        return FileEntry(size=self._size, sha256=self._hash.hexdigest())

    def __enter__(self) -> HashedFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._thread.shutdown()
        self._file.close()


def write_safetensors(path: Path, tensors: Mapping[str, AnyTensor]) -> FileEntry:
    """Write tensors of any device, one at a time; those that are divided are put together meanwhile.

    The library's own writer wants all of them on the host, and a second read for the hash.

    Raises:
        CheckpointError: a tensor has no values, or a dtype that safetensors does not know.
    """
    order = order_in_file(tensors)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        tensor = tensors[name]
        if isinstance(tensor, Tensor) and tensor.is_meta:
            raise CheckpointError(f"{name} is on meta, it has no values to save")
        if tensor.dtype not in DTYPES:
            raise CheckpointError(f"{name} is {tensor.dtype}, which safetensors cannot hold")
        start, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that every tensor is aligned to its elements
    with HashedFile(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            values = tensors[name]
            whole = values.whole() if isinstance(values, LaterTensor) else values
            assert whole is not None, f"{name} is put together on another rank"
            if whole.nbytes:
                file.write(_bytes_of(whole))
            del whole  # before the next one is put together
    return file.entry


def write_bytes(path: Path, content: bytes) -> FileEntry:
    """Write a small file."""
    with HashedFile(path) as file:
        file.write(content)
    return file.entry


def _bytes_of(tensor: Tensor) -> memoryview:
    values = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    return values.reshape(-1).view(torch.uint8).numpy().data
