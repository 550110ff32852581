"""Planning in M at every real step (PlaNet: Hafner et al. 2019, "Learning latent dynamics for planning from pixels").

    the state now ─► P sequences of T actions ─► their returns in M's dream ─► the best ─► ... ─► the first action

The cross-entropy method (Rubinstein 1997; PlaNet's algorithm 2) begins from last step's plan, moved on by one. There is
nothing to learn beside V and M: as a learner, a round of it has no work. As a judge, it tells a wrong M from a search
that exploits M: both act in the same dream, and a plan is refuted by the real world after every step.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError, model_validator
from torch import Tensor

from wm_engine.dream import DreamEngine, Starts
from wm_engine.envs.task import Task
from wm_engine.errors import CorruptFileError
from wm_engine.files import load_tensors, save_tensors
from wm_engine.learn.base import DreamRules, Learner, LearnerSettings, Problem, State
from wm_engine.models.base import WorldModel
from wm_engine.policies.base import Policy
from wm_engine.policies.controller import ControllerSpec
from wm_engine.rng import derive_seed, keyed_generator
from wm_engine.spaces import Discrete, Spaces

# A choice that no elite made may still be right one step later: probabilities keep so much of the even ones.
_EVEN_SHARE = 0.05
_LEAST_STD = 0.05


class PlanSettings(LearnerSettings):
    """How far and how hard a plan is searched for, and for how long it is kept."""

    kind: Literal["plan"] = "plan"
    horizon: int = Field(20, ge=1, description="T, decisions that are planned ahead")
    candidates: int = Field(128, ge=4, description="P, sequences of actions dreamt in an iteration")
    elites: int = Field(16, ge=2, description="the best of them, which the next iteration is drawn around")
    iterations: int = Field(4, ge=1, description="of drawing and choosing, before every decision that is planned")
    every: int = Field(1, ge=1, description="decisions that are taken of a plan before there is a new one")
    dreams: int = Field(2, ge=1, description="E, dreams of each sequence, with the same draws for all")
    temperature: float = Field(1.0, ge=0.0, le=1e6, description="of M's mixture in these dreams")
    discount: float = Field(
        0.99,
        gt=0.0,
        le=1.0,
        description="worth of a decision's reward one decision later; at 1 a plan may put off for good",
    )
    reward: Literal["task", "predicted", "survival"] = Field(
        "task", description="what a dreamt step is worth: what M predicts, 1, or as the task says"
    )
    done: Literal["threshold", "sample"] = Field("threshold", description="how a dream ends")

    @model_validator(mode="after")
    def _elites_are_some_of_the_candidates(self) -> PlanSettings:
        if self.elites >= self.candidates:
            raise ValueError(f"elites: must be less than candidates ({self.candidates}), but was {self.elites}")
        return self

    @model_validator(mode="after")
    def _a_plan_outlasts_its_use(self) -> PlanSettings:
        if self.every > self.horizon:
            raise ValueError(f"every: must be at most horizon ({self.horizon}), but was {self.every}")
        return self

    def dream_rules(self, round_index: int) -> DreamRules:
        return DreamRules(temperature=self.temperature, done=self.done)


class PlanningPolicy:
    """Plans in M for n lanes, each for itself: an episodic policy.

    settings : of the search; spaces : of the task; reward : "predicted" | "survival"
    seed : lane i's decision t draws by (seed, i, t)
    """

    features = "zhc"

    def __init__(self, settings: PlanSettings, spaces: Spaces, reward: str, seed: int) -> None:
        self.settings, self.spaces, self.seed = settings, spaces, seed
        self.reward = reward if settings.reward == "task" else settings.reward
        low, high = (torch.from_numpy(bound) for bound in spaces.actions.bounds)
        self._centre, self._half = 0.5 * (low + high), 0.5 * (high - low)
        self._world: WorldModel | None = None
        self._engine: DreamEngine | None = None
        self._plans, self._taken = torch.empty(0), torch.empty(0, dtype=torch.int64)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the engine behind: whoever unpickles a policy begins episodes first."""
        return self.__dict__ | {"_world": None, "_engine": None}

    def begin(self, lanes: int, world: WorldModel) -> None:
        """See :class:`wm_engine.policies.base.EpisodicPolicy`."""
        if self._world is not world:
            spec = ControllerSpec(world.latent, world.hidden or 1, world.action, "z", "identity")
            # Of an ensemble features show one member's state, the first one's on the road: plans are made in that one.
            self._world, self._engine = world, DreamEngine(world.episode_models()[0], spec, world.device)
        self._plans = self._unplanned(torch.zeros(lanes, self.settings.horizon, world.action))
        self._taken = torch.zeros(lanes, dtype=torch.int64)

    def act(self, features: Tensor, lanes: Tensor) -> Tensor:
        """See :class:`wm_engine.policies.base.Policy`; a lane whose state is not finite gives a row that is not."""
        index = lanes.cpu()
        due = torch.nonzero(self._taken[index] % self.settings.every == 0).squeeze(1)
        for row in due.tolist():
            self._plan(int(index[row]), features[row])
        actions = self._acted(self._plans[index, 0])
        self._plans[index] = torch.cat([self._plans[index, 1:], self._unplanned(self._plans[index, :1])], dim=1)
        self._taken[index] += 1
        lost = ~torch.isfinite(features).all(dim=1).cpu()
        return actions.masked_fill(lost.unsqueeze(1), torch.nan).to(features.device)

    def _plan(self, lane: int, state: Tensor) -> None:
        """Search for a lane's plan from its present state [F], beginning with what is left of the last one."""
        s, world, engine = self.settings, self._world, self._engine
        assert world is not None
        assert engine is not None
        if not bool(torch.isfinite(state).all()):
            return
        parts = state.float().split([world.latent, world.hidden, world.hidden])
        z, h, c = (part.unsqueeze(0) for part in parts)
        start = Starts(z, h, c) if world.hidden else Starts(z)
        decision = int(self._taken[lane])
        mean, std = self._plans[lane], torch.ones_like(self._plans[lane])
        generator = keyed_generator(self.seed, lane, decision)
        discounts = s.discount ** torch.arange(s.horizon).unsqueeze(1)
        for iteration in range(s.iterations):
            drawn = self._drawn(mean, std, generator)
            rewards = engine.rollout(
                None, start, episodes=s.dreams, max_steps=s.horizon, temperature=s.temperature, reward=self.reward,
                done=s.done, seed=derive_seed(self.seed, lane, decision, iteration),
                actions=self._acted(drawn).to(engine.device), record=True,
            ).rewards  # fmt: skip
            assert rewards is not None
            worth = (rewards.cpu().mean(2) * discounts).sum(0).nan_to_num(nan=-torch.inf)
            best = drawn[worth.topk(s.elites).indices]
            mean, std = best.mean(0), best.std(0, correction=0).clamp(min=_LEAST_STD)
        self._plans[lane] = mean

    def _drawn(self, mean: Tensor, std: Tensor, generator: torch.Generator) -> Tensor:
        """Draw P sequences [P, T, A] around a plan, which is the first of them.

        In a box they are in units of half its width from its centre; of discrete actions they are one-hot, drawn with
        the plan's probabilities.
        """
        count = self.settings.candidates
        if isinstance(self.spaces.actions, Discrete):
            even = torch.full_like(mean, 1.0 / mean.shape[1])
            odds = (1.0 - _EVEN_SHARE) * mean + _EVEN_SHARE * even
            chosen = torch.multinomial(odds, count, replacement=True, generator=generator).T
            chosen[0] = mean.argmax(-1)
            return torch.nn.functional.one_hot(chosen, mean.shape[1]).float()
        noise = torch.randn(count, *mean.shape, generator=generator)
        noise[0] = 0.0
        return (mean + std * noise).clamp(-1.0, 1.0)

    def _unplanned(self, like: Tensor) -> Tensor:
        """Return what a plan says where nothing is planned yet, of this shape [..., A]: the middle, or even odds."""
        discrete = isinstance(self.spaces.actions, Discrete)
        return torch.full_like(like, 1.0 / like.shape[-1] if discrete else 0.0)

    def _acted(self, plan: Tensor) -> Tensor:
        """Turn plans, or drawn sequences, [..., A] into actions of the task [..., A]."""
        if isinstance(self.spaces.actions, Discrete):
            return torch.nn.functional.one_hot(plan.argmax(-1), plan.shape[-1]).float()
        return self._centre + self._half * plan


class Plan(Learner):
    """A learner with nothing to learn: its policy plans in M as M is now."""

    Settings = PlanSettings

    def __init__(self, settings: PlanSettings, spaces: Spaces, reward: str, seed: int) -> None:
        self.settings, self._spaces, self._reward, self._seed = settings, spaces, reward, seed

    @classmethod
    def build(cls, settings: PlanSettings, task: Task, world: WorldModel, seed: int, device: torch.device) -> Plan:
        return cls(settings, task.spaces, task.reward, derive_seed(seed, "plan"))

    def units(self, round_index: int) -> int:
        return 0

    def learn(self, problem: Problem, done: int) -> Iterator[dict[str, float]]:
        yield from ()

    def policy(self) -> PlanningPolicy:
        return PlanningPolicy(self.settings, self._spaces, self._reward, self._seed)

    def candidates(self, count: int, seed: int) -> PlanningPolicy:
        """Return the planner with draws of its own for this occasion: its lanes differ by those."""
        return PlanningPolicy(self.settings, self._spaces, self._reward, seed)

    def state(self) -> State:
        return {}, {}

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Nothing is learnt, so there is nothing to put back."""

    def save_policy(self, path: Path, policy: Policy) -> None:
        assert isinstance(policy, PlanningPolicy)
        described = {
            "kind": "plan",
            "settings": policy.settings.model_dump_json(),
            "spaces": json.dumps(policy.spaces.to_json()),
            "reward": policy.reward,
        }
        save_tensors(path, {"seed": torch.tensor(policy.seed)}, described)

    @classmethod
    def load_policy(cls, path: Path) -> PlanningPolicy:
        tensors, said = load_tensors(path)
        try:
            settings = PlanSettings.model_validate_json(said["settings"])
            return PlanningPolicy(
                settings, Spaces.from_json(json.loads(said["spaces"])), said["reward"], int(tensors["seed"])
            )
        except (KeyError, ValueError, ValidationError) as error:
            raise CorruptFileError(f"{path}: not a planner of this project ({error})") from error


learner = Plan
