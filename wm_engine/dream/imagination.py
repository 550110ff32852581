"""Dreams of any policy in any kind of world model, in torch: what gauges, learners and pictures look at.

The engine dreams populations of controllers, and faster; here every lane has a start of its own, and whatever acts on
the world model's features may act.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from wm_engine.dream.types import Starts
from wm_engine.models.base import WorldModel, WorldState
from wm_engine.policies.base import Policy, begin_episodes
from wm_engine.rng import StepWords


@dataclass(frozen=True)
class Dreams:
    """B dreams of at most T steps.

    z : float32 [T+1, B, Z], the first is the start; seen : the same as V decodes it (``WorldModel.decode``)
    actions : float32 [T, B, A]; rewards : float32 [T, B]
    live : bool [T, B], the step was dreamt: no end came before it
    """

    z: Tensor
    seen: Tensor
    actions: Tensor
    rewards: Tensor
    live: Tensor

    def returns(self, horizon: int | None = None) -> Tensor:
        """Sum the rewards of the first ``horizon`` steps (None: all): float64 [B]."""
        return self.rewards.where(self.live, 0.0)[:horizon].double().sum(0)


def world_state(world: WorldModel, starts: Starts) -> WorldState:
    """Return starts as states of a world model, on its device; missing (h, c) are those of a beginning.

    The dream that begins from ``starts[i]`` is episode i.
    """
    device = world.device
    h, c = world.initial(len(starts))
    return WorldState(
        starts.z.to(device).float(),
        h if starts.h is None else starts.h.to(device).float(),
        c if starts.c is None else starts.c.to(device).float(),
        torch.arange(len(starts), device=device),
    )


@torch.inference_mode()
def imagine(
    world: WorldModel,
    policy: Policy | Callable[[int], Tensor],
    starts: Starts,
    steps: int,
    temperature: float = 1.0,
    seed: int = 0,
    survival: bool = False,
    done: str = "threshold",
) -> Dreams:
    """Dream one dream a start, all at once.

    Parameters
    ----------
    world : a finished world model
    policy : acts in lane i of the dream that begins from ``starts[i]``; or recorded actions: step -> float32 [B, A]
    steps : T; a dream ends before where it ends
    temperature : tau
    seed : lane i draws as episode i of the random-number contract does, with candidate word 0
    survival : every step is worth 1, whatever the model predicts
    done : "threshold" (a dream ends where the end's logit is over 0) | "sample" (as often as its sigmoid says)
    """
    state = world_state(world, starts)
    count, device = len(starts), state.z.device
    words = StepWords(
        seed, torch.zeros(1, dtype=torch.int64, device=device), torch.arange(count, device=device), world.blocks
    )
    lanes = torch.arange(count, device=device)
    on = torch.ones(count, dtype=torch.bool, device=device)
    if not callable(policy):
        begin_episodes(policy, count, world)
    z, seen, actions, rewards, live = [state.z], [world.decode(state)], [], [], []
    for step in range(steps):
        if callable(policy):
            action = policy(step).to(device)
        else:
            action = policy.act(world.features(state, policy.features), lanes)
        drawn = words.at(step)[0]
        imagined = world.imagine(state, action, drawn, temperature)
        state = imagined.state
        z.append(state.z)
        seen.append(world.decode(state))
        actions.append(action)
        rewards.append(torch.ones_like(imagined.reward) if survival else imagined.reward)
        live.append(on)
        # The last block's first word, as on every backend.
        limit = (((drawn[:, -1, 0] >> 9).to(state.z.dtype) + 0.5) * 2.0**-23).logit() if done == "sample" else 0.0
        on = on & ~(imagined.done > limit)
    return Dreams(*(torch.stack(part).cpu() for part in (z, seen, actions, rewards, live)))
