"""Where dreams begin: recorded states, with the hidden state that M has after what came before them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wm_engine.checks import check_float, check_int
from wm_engine.dream.types import Starts
from wm_engine.memory.model import MDNRNN
from wm_engine.memory.sequences import burnt_in
from wm_engine.training import keyed_generator
from wm_engine.vision.latents import Latents


def recorded_starts(
    m: MDNRNN,
    latents: Latents,
    count: int,
    mid_fraction: float,
    seed: int,
    episodes: Sequence[int] | None = None,
) -> Starts:
    """``count`` states that recorded episodes went through, for dreams to begin from.

    A share ``mid_fraction`` of them (rounded) are steps drawn evenly from all steps of all episodes, with (h, c) burnt
    in over everything recorded before; the others are beginnings of episodes, with (h, c) zero. The two kinds are
    mixed, so that any number of the first starts holds both. Latents are drawn from V's posterior, as M met them in
    its training. A state after an episode's end is never a start: the step that it begins with was recorded.

    Parameters
    ----------
    count : N, how many
    mid_fraction : in [0, 1]
    seed : equal seeds, equal starts
    episodes : which recorded episodes to draw from; all where None

    Returns
    -------
    Starts with z [N, Z], h and c [N, H], float32 on the CPU

    Raises ValueError for a count under 1, a fraction outside [0, 1], no episodes, or latents of another size than M's.
    """
    check_int("count", count, least=1)
    if check_float("mid_fraction", mid_fraction, least=0.0) > 1.0:
        raise ValueError(f"mid_fraction must be in [0, 1], but was {mid_fraction}")
    if (m.latent, m.action) != (latents.latent, latents.action):
        raise ValueError(
            f"latents must have Z = {m.latent} and A = {m.action} as M has, "
            f"but had {latents.latent} and {latents.action}"
        )
    chosen = list(range(len(latents)) if episodes is None else episodes)
    if not chosen:
        raise ValueError("episodes must name at least one episode, but were none")

    generator = np.random.default_rng([seed, 0])
    lengths = np.array([latents.steps[episode] for episode in chosen])
    ends = lengths.cumsum()
    mid = generator.permutation(np.arange(count) < round(mid_fraction * count))
    places = []
    for from_middle in mid:
        if from_middle:
            flat = generator.integers(ends[-1])
            number = int(np.searchsorted(ends, flat, side="right"))
            step = int(flat - (ends[number] - lengths[number]))
        else:
            number, step = int(generator.integers(len(chosen))), 0
        places.append((chosen[number], step))
    # Ordinary tensors, not inference ones: no gradient is asked of them, but anyone may use them anywhere.
    z, h, c = (state.detach().cpu() for state in burnt_in(m, latents, places, keyed_generator(seed, 1)))
    return Starts(z, h, c)
