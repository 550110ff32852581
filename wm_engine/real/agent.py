"""The agent: V sees, M remembers, a policy acts, for a whole batch of real environments at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from wm_engine.checks import check_choice, check_int
from wm_engine.models.base import Vision, WorldModel, WorldState
from wm_engine.policies.base import Policy


class Agent:
    """A policy acting on what real environments show (Ha & Schmidhuber 2018, section 2.4).

    Parameters
    ----------
    vision, world : V and M; both are moved to ``device``
    policy : acts on M's features; None where every call of :meth:`with_policy` brings one
    precision : "fp32" | "bf16", of V

    Actions should lie in the environment's bounds (the squash sees to it): the environment clips them, M hears of them
    unclipped.

    A lane is one environment with its own hidden state (h, c). What a lane does depends on what it sees alone up to
    rounding: the rounding of a batched matrix product may depend on the size of the batch.
    """

    def __init__(
        self,
        vision: Vision,
        world: WorldModel,
        policy: Policy | None = None,
        device: str | torch.device = "cpu",
        precision: str = "fp32",
    ) -> None:
        if vision.latent != world.latent:
            raise ValueError(
                f"world must have V's {vision.latent} latent dimensions, but had {world.latent}: are they of one run?"
            )
        self.device = torch.device(device)
        self.precision = check_choice("precision", precision, ("fp32", "bf16"))
        self.vision, self.world = vision.to(self.device).eval(), world.to(self.device).eval()
        self.policy = policy
        # Of an ensemble the first member is what a controller sees on the road.
        self._memory = self.world.episode_models()[0]
        self._h, self._c = self._memory.initial(0)

    def with_policy(self, policy: Policy) -> Agent:
        """Return an agent with the same V and M and another policy."""
        return Agent(self.vision, self.world, policy, self.device, self.precision)

    def begin(self, lanes: int) -> None:
        """Begin new episodes in so many lanes: their hidden states are those of a beginning."""
        self._h, self._c = self._memory.initial(check_int("lanes", lanes, least=1))

    @torch.inference_mode()
    def act(
        self,
        observations: np.ndarray,
        lanes: np.ndarray | None = None,
        perturb: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> np.ndarray:
        """Take one step in the given lanes: V's mean, the policy's action on it, M's hidden state moved on by both.

        Parameters
        ----------
        observations : [m, ...], in the task's space
        lanes : int64 [m], which lanes these are of; None: all, in order
        perturb : what becomes of the actions float32 [m, A] before they are taken (exploration noise); M hears of the
            actions as they are then

        Returns
        -------
        actions : float32 [m, A]; a row is non-finite where its candidate's parameters are
        """
        if self.policy is None:
            raise ValueError("this agent has no policy: give it one by with_policy")
        begun = len(self._h)
        index = torch.arange(begun) if lanes is None else torch.as_tensor(np.asarray(lanes))
        index = index.to(self.device)
        if len(observations) != len(index) or len(index) > begun:
            raise ValueError(
                f"observations must be one a lane ({len(index)} of {begun} lanes), but were {len(observations)}"
            )
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            z, _ = self.vision.encode(torch.tensor(np.asarray(observations), device=self.device))
        state = WorldState(z.float(), self._h[index], self._c[index])
        actions = self.policy.act(self._memory.features(state, self.policy.features), index)
        taken = actions.cpu().numpy()
        if perturb is not None:
            taken = np.asarray(perturb(taken), dtype=np.float32)
            actions = torch.from_numpy(taken).to(self.device)
        if self._memory.hidden:
            self._h[index], self._c[index] = self._memory.observe(state.z, actions, (state.h, state.c))
        return taken
