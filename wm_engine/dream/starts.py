"""Where dreams begin: recorded states, with the hidden state that M has after what came before them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from wm_engine.checks import check_float, check_int
from wm_engine.data.sequences import EncodedEpisode, stack_windows
from wm_engine.dream.types import Starts
from wm_engine.models.base import WorldModel
from wm_engine.rng import keyed_generator

_MOST_LANES = 64


def recorded_starts(
    world: WorldModel, episodes: Sequence[EncodedEpisode], count: int, mid_fraction: float, seed: int
) -> Starts:
    """Choose ``count`` states that recorded episodes went through, for dreams to begin from.

    A share ``mid_fraction`` of them (rounded) are steps drawn evenly from all steps of all episodes, with (h, c) burnt
    in over everything recorded before; the others are beginnings of episodes. The two kinds are mixed, so that any
    number of the first starts holds both. Latents are drawn from V's posterior, as M met them in its training. A state
    after an episode's end is never a start: the step that it begins with was recorded.

    Parameters
    ----------
    count : N, how many
    mid_fraction : in [0, 1]
    seed : equal seeds, equal starts

    Returns
    -------
    Starts with z [N, Z], h and c [N, S], float32 on the CPU; h and c are None where the world model has none, and all
    members' side by side in an ensemble

    Raises ValueError for a count under 1, a fraction outside [0, 1], or no episodes.
    """
    check_int("count", count, least=1)
    if check_float("mid_fraction", mid_fraction, least=0.0) > 1.0:
        raise ValueError(f"mid_fraction must be in [0, 1], but was {mid_fraction}")
    if not episodes:
        raise ValueError("episodes must name at least one episode, but were none")
    generator = np.random.default_rng([seed, 0])
    lengths = np.array([episode.steps for episode in episodes])
    ends = lengths.cumsum()
    flat = generator.integers(ends[-1], size=count)
    owners = np.searchsorted(ends, flat, side="right")
    steps = flat - (ends[owners] - lengths[owners])
    from_beginning = generator.permutation(np.arange(count) >= round(mid_fraction * count))
    owners = np.where(from_beginning, generator.integers(len(episodes), size=count), owners)
    steps = np.where(from_beginning, 0, steps)
    return states_at(world, episodes, owners, steps, seed)


@torch.inference_mode()
def states_at(
    world: WorldModel, episodes: Sequence[EncodedEpisode], owners: np.ndarray, steps: np.ndarray, seed: int
) -> Starts:
    """Return the states before step ``steps[i]`` of ``episodes[owners[i]]``, N of them; see :func:`recorded_starts`.

    M reads every episode once from its beginning, those of similar lengths side by side, which is how an agent's (h, c)
    comes about.
    """
    device = world.device
    count, place_of, step_of = len(owners), torch.from_numpy(owners), torch.from_numpy(steps)
    z = torch.empty(count, world.latent)
    h, c = (torch.zeros(count, world.state_size) for _ in range(2))
    order = sorted(set(owners.tolist()), key=lambda index: -episodes[index].steps)
    for number, first in enumerate(range(0, len(order), _MOST_LANES)):
        group = order[first : first + _MOST_LANES]
        batch = stack_windows([episodes[index] for index in group])
        drawn = batch.sample(keyed_generator(seed, 1, number)).to(device)
        state = world.initial(len(group))
        lane_of = {index: lane for lane, index in enumerate(group)}
        members = torch.isin(place_of, torch.tensor(group))
        last = int(step_of[members].max())
        for step in range(last + 1):
            wanted = torch.nonzero(members & (step_of == step)).squeeze(1)
            if len(wanted):
                lanes = torch.tensor([lane_of[int(index)] for index in place_of[wanted]])
                z[wanted] = drawn[step, lanes].cpu()
                if world.hidden:
                    h[wanted], c[wanted] = state[0][lanes].cpu(), state[1][lanes].cpu()
            if world.hidden and step < last:
                state = world.observe(drawn[step], batch.actions[step].to(device), state)
    # Clones outside inference mode: ordinary tensors, which anyone may use anywhere.
    with torch.inference_mode(False):
        return Starts(z.clone(), h.clone() if world.hidden else None, c.clone() if world.hidden else None)
