"""Bytes of tensors that are alive, real or fake, as operations make them and drop them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts storages while it is active: `with LiveBytes() as live: ...; live.peak`.

    A storage counts from the operation that returned it until nothing refers to it. What kernels allocate
    for themselves is not seen.

    Attributes:
        current: bytes alive.
        peak: most bytes alive at a time, since `reset_peak`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.current = self.peak = 0
        self._known: dict[int, int] = {}  # id of a storage -> its bytes

    def count(self, tensor: Tensor) -> None:
        """Count a tensor that was there before."""
        storage = tensor.untyped_storage()
        key, size = id(storage), storage.nbytes()
        if key in self._known:
            return
        self._known[key] = size
        weakref.finalize(storage, self._forget, key)
        self.current += size
        self.peak = max(self.peak, self.current)

    def leave_out(self, tensors: Iterable[Tensor]) -> None:
        """Tensors that were there before do not count; views of them would otherwise."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            self._known[id(storage)] = 0
            weakref.finalize(storage, self._forget, id(storage))

    def reset_peak(self) -> None:
        """The peak is what is alive now."""
        self.peak = self.current

    def _forget(self, key: int) -> None:
        self.current -= self._known.pop(key, 0)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run the operation, and count what it returns."""
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.count(leaf)
        return out
