"""A device that is not there: it computes on the CPU, and keeps to a GPU's rules.

Tensors of two devices do not mix, numbers come back only by ``.cpu()``, ``float()`` and their like, and what is made
without naming the device is on the CPU. So code that leaves a tensor behind fails here as it would on a GPU, and the
numbers are the CPU's to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from wm_engine import checks

DEVICE = torch.device("lazy")  # a kind of device that torch knows and that needs no driver

# A GPU takes these with tensors of the CPU too: copies, and indices.
_MIXING = ("aten::copy_", "aten::index", "aten::index_put_", "aten::index_put")


class _There(Tensor):
    """A tensor on the device; ``here`` has the numbers."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> _There:
        there = torch.Tensor._make_wrapper_subclass(
            cls,
            here.shape,
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=DEVICE,
        )
        there.here = here
        return there

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _call(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """Sees the calls that make tensors on the device out of none."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _call(func, args, kwargs or {})


def _call(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = any(isinstance(tensor, _There) for tensor in tensors)
    left = [tensor for tensor in tensors if not isinstance(tensor, _There) and tensor.dim() > 0]
    if there and left and func.name().partition(".")[0] not in _MIXING:
        raise RuntimeError(
            f"{func.name()}: tensors of {DEVICE} and of {left[0].device}, shapes {[t.shape for t in tensors]}"
        )
    asked = kwargs.get("device")
    if asked is not None:
        there, kwargs = torch.device(asked).type == DEVICE.type, {**kwargs, "device": torch.device("cpu")}
    elif tensors and func.name().startswith("aten::copy_"):
        there = isinstance(tensors[0], _There)
    args, kwargs = tree_map(lambda leaf: leaf.here if isinstance(leaf, _There) else leaf, (args, kwargs))
    made = func(*args, **kwargs)
    return tree_map(lambda leaf: _There(leaf) if there and isinstance(leaf, Tensor) else leaf, made)


@contextmanager
def pretend_device() -> Iterator[torch.device]:
    """The device is here, with a generator of its own that draws what the CPU's draws."""

    class Generator(torch.Generator):
        def __new__(cls, device: Any = "cpu") -> Any:
            return super().__new__(cls, "cpu")

    with pytest.MonkeyPatch.context() as patch, _Mode():
        patch.setattr(torch, "Generator", Generator)
        patch.setattr(checks, "device_counts", lambda: {"cpu": 1, DEVICE.type: 1})
        yield DEVICE
