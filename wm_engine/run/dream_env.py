"""The dream as an environment of gymnasium, for anyone's tools: one dream, or many stepped together in the engine.

    gymnasium.make("wm_engine/Dream-v0", run="runs/quick")    one
    wm.DreamVectorEnv("runs/quick", num_envs=256)             many

What is seen is M's state or V's decoding of it, actions are the task's, and rewards and ends are M's.
"""

from __future__ import annotations

import inspect
import logging
import os
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from wm_engine.checks import FLOAT32_MAX, check_choice, check_int
from wm_engine.dream.engine import BACKENDS, DreamEngine
from wm_engine.dream.types import Starts
from wm_engine.models.base import as_seen
from wm_engine.ops.dream import DONES
from wm_engine.policies.controller import Controllers, ControllerSpec
from wm_engine.run.config import device_of
from wm_engine.run.published import LoadedRun, load_run
from wm_engine.spaces import Actions, Box, Observations, Pixels

_log = logging.getLogger(__name__)

OBSERVATIONS = ("z", "zh", "decoded")
REWARDS = ("task", "predicted", "survival")
_NOT_OF_ONE_DREAM = ("run", "num_envs", "autoreset_mode", "render_mode")
_BAR = 8
_SHOWN_DEVIATIONS = 3.0


class DreamVectorEnv(VectorEnv):
    """Dreams of a run's world model, B of them, each step of all of them one call of the engine.

    Parameters
    ----------
    run : the folder of a run, or what :func:`wm_engine.load_run` made of it
    num_envs : B
    observation : "zh", what C sees, float32 [Z + H]; "z", float32 [Z]; or "decoded", what V makes of it in the task's
        own space: pictures uint8 [height, width, 3], vectors float32 [size]
    starts : how many recorded states dreams begin from, or the states themselves
    mid_fraction : share of those from the middle of episodes, in [0, 1]; None: the run's
    temperature : tau; None: the run's own dreams'
    horizon : after how many steps a dream is truncated; None: those of the run's own dreams
    reward : "task", what the task says of "predicted" (M's) and "survival" (1 a step), or one of these
    done : "threshold" | "sample", as in :meth:`wm_engine.DreamEngine.rollout`; None: the run's own dreams'
    autoreset_mode : gymnasium's AutoresetMode. NEXT_STEP: the step after an end takes no action and gives the next
        dream's first observation and a reward of 0. SAME_STEP: the ending step gives it, and ``final_obs`` in the
        infos. DISABLED: ``reset(options={"reset_mask": bool [B]})`` begins the next dreams; stepping an ended one is
        refused
    backend, precision, num_threads : as :class:`wm_engine.DreamEngine` has them; device : None: the run's
    render_mode : None | "rgb_array", V's decoding of each dream; a vector is drawn as bars

    Actions are the task's: boxes are clipped to their bounds, as the real environment does, and discrete ones are
    numbers. Rewards are float64 [B]. A dream whose latent, reward or end is not finite is truncated with a reward of
    0, zeros in the place of what is not finite in its observation, and ``failed`` in the infos.

    ``reset(seed=s)`` begins dreams 0 to B - 1 of seed s; every other reset of a lane goes on with its next one, so that
    everything follows from s and the actions. Under a controller, whose actions ``env.engine.act`` computes, the
    first k dreams of every lane are ``env.engine.rollout(params, env.starts, episodes=k * B, seed=s)``, to the bit.

    Raises MissingRunError where nothing is published, ValueError or TypeError for arguments outside these bounds.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - as gymnasium has it

    def __init__(
        self,
        run: str | os.PathLike[str] | LoadedRun,
        num_envs: int = 1,
        *,
        observation: str = "zh",
        starts: int | Starts = 256,
        mid_fraction: float | None = None,
        temperature: float | None = None,
        horizon: int | None = None,
        reward: str = "task",
        done: str | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
        backend: str = "auto",
        precision: str = "fp32",
        device: str | torch.device | None = None,
        num_threads: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        self.num_envs = check_int("num_envs", num_envs, least=1)
        self._observation = check_choice("observation", observation, OBSERVATIONS)
        check_choice("reward", reward, REWARDS)
        if render_mode is not None:
            check_choice("render_mode", render_mode, self.metadata["render_modes"])
        self.render_mode = render_mode
        self._mode = _autoreset_mode(autoreset_mode)
        self.metadata = self.metadata | {"autoreset_mode": self._mode}
        self.run = run if isinstance(run, LoadedRun) else load_run(run)
        config = self.run.config
        task, own = config.env.found(), config.controller.dream_rules(int(self.run.published["round"]))
        steps = own.steps or -(-config.env.frame_limit // config.env.repeat)
        self.horizon = steps if horizon is None else check_int("horizon", horizon, least=1)
        self.temperature = own.temperature if temperature is None else temperature
        self._world, self._vision = self.run.world, self.run.vision
        self.engine = _engine(
            self.run,
            task.spaces.actions,
            backend,
            device=device_of(config) if device is None else device,
            precision=precision,
            num_threads=num_threads,
        )
        if not isinstance(starts, Starts):
            starts = self.run.starts(check_int("starts", starts, least=1), 0, mid_fraction)
        self.starts = starts
        self._lanes = self.engine.lanes(
            self.starts,
            self.num_envs,
            temperature=self.temperature,
            reward=task.reward if reward == "task" else reward,
            done=own.done if done is None else check_choice("done", done, DONES),
        )
        self._world.to(self.engine.device)
        self._vision.to(self.engine.device)
        self._actions, self._shown = task.spaces.actions, task.spaces.observations
        self.single_observation_space = self._observation_space()
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.single_action_space = _action_space(self._actions)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self._over = np.zeros(self.num_envs, bool)
        self._begun = False

    def _observation_space(self) -> gymnasium.Space[Any]:
        if self._observation == "decoded":
            return _space_of(self._shown)
        # Of one row: how many numbers a kind's features are is for the kind to say.
        size = self._world.features(self._lanes.state[:1].float(), self._observation).shape[-1]
        return _reals((size,))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin dreams: the first ones of ``seed``, or of every lane (``options["reset_mask"]``: of some) the next one.

        Returns observations [B, ...] of all lanes, and no infos. ValueError for a seed outside [0, 2**64), for a
        seed with a mask, and for a mask that is no bool [B] or holds no True.
        """
        mask = (options or {}).get("reset_mask")
        if seed is not None:
            seed = check_int("seed", seed, least=0)
            if mask is not None:
                raise ValueError("a seed begins the dreams of all lanes anew: give it, or reset_mask, but not both")
        super().reset(seed=seed)
        if seed is not None or not self._begun:
            if mask is not None:
                raise ValueError(
                    "reset_mask begins the next dreams of some lanes, but none has begun: call reset first"
                )
            self._lanes.restart(int(self.np_random.integers(1 << 63)) if seed is None else seed)
        else:
            self._lanes.next(np.ones(self.num_envs, bool) if mask is None else self._checked_mask(mask))
        self._begun = True
        self._over = np.zeros(self.num_envs, bool) if mask is None else self._over & ~mask
        return self._observe(), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Take actions [B, A], or [B] of a discrete space; see the class for what becomes of lanes that end.

        TypeError and ValueError for actions of another type or shape, and for those that are not finite or not there.
        """
        if not self._begun:
            raise gymnasium.error.ResetNeeded("call reset before step")
        taken = torch.from_numpy(_taken(self._actions, actions, self.num_envs))
        begin = self._over
        if self._mode == AutoresetMode.DISABLED and begin.any():
            raise ValueError(
                f'lanes {np.flatnonzero(begin).tolist()} have ended: reset them first, with options["reset_mask"]'
            )
        out = self._lanes.step(taken)
        failed = out.failed.cpu().numpy()
        ended = out.ended.cpu().numpy() & ~failed
        rewards = np.where(failed, 0.0, out.reward.cpu().numpy().astype(np.float64))
        truncated = (failed | (self._lanes.steps >= self.horizon)) & ~ended
        infos: dict[str, Any] = {}
        if self._mode == AutoresetMode.NEXT_STEP and begin.any():
            self._lanes.next(begin)
            rewards[begin], ended[begin], truncated[begin], failed[begin] = 0.0, False, False, False
        if failed.any():
            infos |= {"failed": failed, "_failed": failed.copy()}
        self._over = ended | truncated
        observations = self._observe()
        if self._mode == AutoresetMode.SAME_STEP and self._over.any():
            infos = self._final(observations, infos)
            self._lanes.next(self._over)
            observations = self._observe()
            self._over = np.zeros(self.num_envs, bool)
        return observations, rewards, ended, truncated, infos

    def _final(self, observations: np.ndarray, infos: dict[str, Any]) -> dict[str, Any]:
        """What SAME_STEP says of the lanes that end with this step."""
        final = np.full(self.num_envs, None, dtype=object)
        for lane in np.flatnonzero(self._over):
            final[lane] = observations[lane]
        over = self._over
        return {"final_obs": final, "_final_obs": over, "final_info": infos, "_final_info": over.copy()}

    @torch.inference_mode()
    def _observe(self) -> np.ndarray:
        if self._observation == "decoded":
            return self._decoded()
        # A copy: a kind's features may be a view of the state, which the next step changes.
        return _finite(np.array(self._world.features(self._lanes.state.float(), self._observation).cpu().numpy()))

    @torch.inference_mode()
    def _decoded(self) -> np.ndarray:
        decoded = as_seen(self._vision.decode(self._latents()), isinstance(self._shown, Pixels))
        return np.asarray(decoded, dtype=self._shown.dtype)

    @torch.inference_mode()
    def _latents(self) -> torch.Tensor:
        """What V decodes of each dream, float32 [B, Z]."""
        latents = self._world.decode(self._lanes.state.float()).cpu().numpy()
        return torch.from_numpy(_finite(np.array(latents))).to(self._vision.device)

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Return a picture of each dream, uint8 [height, width, 3]; None without a render_mode."""
        if self.render_mode is None:
            return None
        if isinstance(self._shown, Pixels):
            return tuple(self._decoded())
        return tuple(_bars(row) for row in self._latents().cpu().numpy())

    def _checked_mask(self, mask: Any) -> np.ndarray:
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.shape != (self.num_envs,):
            raise ValueError(f"reset_mask must be a bool array of shape [{self.num_envs}], but was {mask!r}")
        if not mask.any():
            raise ValueError("reset_mask must hold at least one True, but held none")
        return mask


class DreamEnv(gymnasium.Env):
    """One dream of a run's world model: :class:`DreamVectorEnv` of one lane, whose arguments it takes.

    ``reset(seed=s)`` begins dream 0 of seed s, every reset without a seed the next one.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - as gymnasium has it

    def __init__(self, run: str | os.PathLike[str] | LoadedRun, render_mode: str | None = None, **rules: Any) -> None:
        known = [name for name in inspect.signature(DreamVectorEnv).parameters if name not in _NOT_OF_ONE_DREAM]
        for name in rules.keys() - set(known):
            raise TypeError(f"a dream takes {', '.join(known)}, but was given {name}")
        self._dream = DreamVectorEnv(run, 1, autoreset_mode=AutoresetMode.DISABLED, render_mode=render_mode, **rules)
        config = self._dream.run.config
        rate = config.env.found().frames_per_second / config.env.repeat
        self.metadata = self.metadata | {"render_fps": max(1, round(rate))}
        self.render_mode = render_mode
        self.observation_space = self._dream.single_observation_space
        self.action_space = self._dream.single_action_space

    @property
    def engine(self) -> DreamEngine:
        """What dreams."""
        return self._dream.engine

    @property
    def starts(self) -> Starts:
        """The states that dreams begin from, in turn."""
        return self._dream.starts

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin a dream; see the class. Returns its first observation, and no infos."""
        super().reset(seed=seed)
        observations, infos = self._dream.reset(seed=seed)
        return observations[0], infos

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take an action of the action space; see :meth:`DreamVectorEnv.step`."""
        observations, rewards, ended, truncated, infos = self._dream.step(np.asarray(action)[None])
        failed = {"failed": True} if "failed" in infos else {}
        return observations[0], float(rewards[0]), bool(ended[0]), bool(truncated[0]), failed

    def render(self) -> np.ndarray | None:
        """Return V's picture of the dream, uint8 [height, width, 3]; None without a render_mode."""
        pictures = self._dream.render()
        return None if pictures is None else pictures[0]


def _engine(run: LoadedRun, actions: Actions, backend: str, **options: Any) -> DreamEngine:
    """Make an engine that can step lanes: of ``auto``'s choices the first one that does."""
    spec = run.controller.spec if isinstance(run.controller, Controllers) else _any_spec(run, actions)
    engine = DreamEngine(run.world, spec, backend=backend, **options)
    entry = next(entry for entry in BACKENDS if entry.name == engine.backend)
    if entry.steps_lanes or backend != "auto":
        return engine
    _log.info("backend %s is passed over: it dreams whole rollouts alone; torch steps lanes", engine.backend)
    return DreamEngine(run.world, spec, backend="torch", **options)


def _any_spec(run: LoadedRun, actions: Actions) -> ControllerSpec:
    """A linear controller's shape, for an engine of a run whose policy is none."""
    world = run.world
    features = "zh" if world.hidden else "z"
    return ControllerSpec(
        world.latent, world.hidden or 1, actions.size, features, "tanh" if isinstance(actions, Box) else "argmax"
    )


def _autoreset_mode(mode: Any) -> AutoresetMode:
    known = {name: member for member in AutoresetMode for name in (member, member.name, member.value)}
    if mode not in known:
        names = ", ".join(member.name for member in AutoresetMode)
        raise ValueError(f"autoreset_mode must be one of {names}, but was {mode!r}")
    return known[mode]


def _reals(shape: tuple[int, ...]) -> gymnasium.spaces.Box:
    """All finite float32 numbers: a drawn latent has no other bounds."""
    return gymnasium.spaces.Box(-FLOAT32_MAX, FLOAT32_MAX, shape, np.float32)


def _space_of(observations: Observations) -> gymnasium.Space[Any]:
    if isinstance(observations, Pixels):
        return gymnasium.spaces.Box(0, 255, observations.shape, np.uint8)
    return _reals(observations.shape)


def _action_space(actions: Actions) -> gymnasium.Space[Any]:
    if isinstance(actions, Box):
        low, high = actions.bounds
        return gymnasium.spaces.Box(low, high, dtype=np.float32)
    return gymnasium.spaces.Discrete(actions.count)


def _taken(space: Actions, actions: Any, count: int) -> np.ndarray:
    """Actions as M takes them, float32 [B, A]; TypeError or ValueError where they are none of the space."""
    given = np.asarray(actions)
    kinds, words = ("f", "floating numbers") if isinstance(space, Box) else ("iu", "whole numbers")
    if given.dtype.kind not in kinds:
        raise TypeError(f"actions must be an array of {words}, but its dtype was {given.dtype}")
    if given.shape != (count, *space.shape):
        raise ValueError(f"actions must have shape {[count, *space.shape]}, but had {list(given.shape)}")
    if isinstance(space, Box):
        if not np.isfinite(given).all():
            raise ValueError(
                f"actions must be finite, but lane {int(np.argmin(np.isfinite(given).all(axis=1)))}'s was not"
            )
        return space.clip(given)
    if given.min() < 0 or given.max() >= space.count:
        raise ValueError(f"actions must be from 0 to {space.count - 1}, but were from {given.min()} to {given.max()}")
    return space.from_stored(given)


def _finite(values: np.ndarray) -> np.ndarray:
    """The same array, zeros in the place of what is not finite."""
    if not np.isfinite(values).all():
        values[~np.isfinite(values)] = 0.0
    return values


def _bars(values: np.ndarray) -> np.ndarray:
    """Draw a vector float [n] as bars from the middle, up to three units high: uint8 [64, 8 n, 3]."""
    picture = np.full((64, _BAR * len(values), 3), 255, np.uint8)
    for place, value in enumerate(np.clip(values / _SHOWN_DEVIATIONS, -1.0, 1.0)):
        top, bottom = sorted((32, 32 - round(31 * float(value))))
        picture[top : bottom + 1, _BAR * place + 1 : _BAR * (place + 1) - 1] = 0
    return picture
