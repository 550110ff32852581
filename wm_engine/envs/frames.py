"""From an environment's picture to what V sees: the one way, for every backend and every purpose."""

from __future__ import annotations

import numpy as np
import torch

FRAME_SIZE = 64
FRAME_SHAPE = (FRAME_SIZE, FRAME_SIZE, 3)


def preprocess(
    frames: np.ndarray, rows: int | tuple[int, int] | None = None, size: tuple[int, ...] = (FRAME_SIZE, FRAME_SIZE)
) -> np.ndarray:
    """Crop uint8 [N, height, width, 3] to some of its rows, resized to uint8 [N, *size, 3].

    ``rows``: so many from the top, or from the first to the second (not included); None: all.

    The resizing is bilinear with antialiasing (a triangle filter as wide as the reduction), so no road marking falls
    between two samples. Raises TypeError for another dtype and ValueError for another shape.
    """
    if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8:
        raise TypeError(
            f"frames must be a uint8 numpy array, but was {getattr(frames, 'dtype', type(frames).__name__)}"
        )
    if frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise ValueError(f"frames must have shape [N, height, width, 3], but had {list(frames.shape)}")
    kept = slice(*rows) if isinstance(rows, tuple) else slice(rows)
    cropped = frames[:, kept].copy()  # contiguous, and writable as torch wants it
    # The permuted view is channels_last, for which torch has a direct uint8 path.
    images = torch.from_numpy(cropped).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(images, size=list(size), mode="bilinear", antialias=True)
    return resized.permute(0, 2, 3, 1).contiguous().numpy()
