"""The one checker of numerics: an error is judged against that of plain torch at the same precision.

``err(x, ref64) <= 2 * err(torch at the same precision, ref64) + floor``, where ``err`` is the largest absolute
difference over the scale ``1 + |ref64|``. The floor is four units in the last place of the precision, for results that
torch happens to get exactly right. A float64 result has no peer: its floor leaves room for sums taken in another order,
and is still six decimal places below float32's.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

FLOORS = {"fp64": 2.0**-41, "fp32": 2.0**-21, "bf16": 2.0**-6, "fp16": 2.0**-9, "int8": 2.0**-5}
_SHOWN = 5


def as_float64(value: Tensor | np.ndarray) -> np.ndarray:
    """Any float tensor or array as float64 NumPy."""
    if isinstance(value, Tensor):
        return value.detach().cpu().to(torch.float64).numpy()
    return np.asarray(value, dtype=np.float64)


def errors(value: Tensor | np.ndarray, reference: Tensor | np.ndarray) -> np.ndarray:
    """Scaled absolute errors; infinite where exactly one of the two is NaN or where infinities differ."""
    x, ref = as_float64(value), as_float64(reference)
    if x.shape != ref.shape:
        raise AssertionError(f"shape {x.shape} differs from the reference's {ref.shape}")
    with np.errstate(invalid="ignore"):
        error = np.abs(x - ref) / (1.0 + np.abs(ref))
    same = (x == ref) | (np.isnan(x) & np.isnan(ref))
    return np.where(same, 0.0, np.where(np.isnan(error), np.inf, error))


def check(
    name: str,
    value: Tensor | np.ndarray,
    reference: Tensor | np.ndarray,
    peer: Tensor | np.ndarray | None = None,
    precision: str = "fp32",
) -> None:
    """Fail unless ``value`` is as near to the float64 ``reference`` as the rule asks.

    ``peer``: the same computed by plain torch at the same precision; None stands for an exact one.
    """
    error = errors(value, reference)
    allowed = FLOORS[precision]
    if peer is not None:
        peer_error = float(errors(peer, reference).max(initial=0.0))
        if not np.isfinite(peer_error):
            raise AssertionError(f"{name}: torch's own result is no yardstick, its error is {peer_error}")
        allowed += 2.0 * peer_error
    bad = np.argwhere(error > allowed)
    if len(bad):
        x, ref = as_float64(value), as_float64(reference)
        shown = "\n".join(f"  {tuple(map(int, i))}: {x[tuple(i)]!r}, should be {ref[tuple(i)]!r}" for i in bad[:_SHOWN])
        raise AssertionError(
            f"{name}: {len(bad)} of {error.size} entries off, "
            f"worst error {error.max():.3g}, allowed {allowed:.3g}\n{shown}"
        )
