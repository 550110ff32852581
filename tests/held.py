"""Counts the memory that torch holds, on any device."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Held(TorchDispatchMode):
    """While it is entered: the most bytes held at a time by all tensors that torch's operations gave back."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._held: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **kwargs or {})
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.device != torch.device("meta"):
                storage = tensor.untyped_storage()
                self._held[StorageWeakRef(storage)] = storage.nbytes()
        self._held = {storage: size for storage, size in self._held.items() if not storage.expired()}
        self.most = max(self.most, sum(self._held.values()))
        return made
