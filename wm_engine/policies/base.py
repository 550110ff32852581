"""What acts on a world model's features, in dreams and in the real environment alike."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Policy(Protocol):
    """Acts for n lanes.

    features : which parts of a world model's state it sees, by letters ("zh"), in this order
    """

    @property
    def features(self) -> str: ...

    def act(self, features: Tensor, lanes: Tensor) -> Tensor:
        """Return actions float32 [m, A] on features [m, F] of the given lanes int64 [m], on the features' device.

        A row may be non-finite: its lane has then failed, and no other is touched.
        """
        ...
