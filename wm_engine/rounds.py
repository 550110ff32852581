"""A round of the pipeline: where it works, and how its parts are put together."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from wm_engine.agent import Agent
from wm_engine.config import Config
from wm_engine.controller import SQUASH_RANGES, ControllerSpec, load_controller
from wm_engine.distributed import CrossoverRecipe, DreamRecipe, FleetEngine
from wm_engine.dream import DreamEngine, Starts
from wm_engine.dream.engine import fastest_backend
from wm_engine.dream.starts import recorded_starts
from wm_engine.envs import choose_backend, make_env
from wm_engine.errors import ConfigError, MissingDependencyError
from wm_engine.evolve import DreamFitness, RealFitness, derive_seed
from wm_engine.evolve.fitness import Dreamer
from wm_engine.evolve.optimizers import choose_optimizer
from wm_engine.fleet import Fleet
from wm_engine.memory.model import MDNRNN
from wm_engine.records import Recorder
from wm_engine.runs import Checkpoints, RunFolder, read_json, write_json
from wm_engine.vision.latents import Latents
from wm_engine.vision.model import VAE


@dataclass(frozen=True)
class Round:
    """What a stage works with: the run, which round it is, the configuration, and a cluster's workers if any."""

    run: RunFolder
    index: int
    config: Config
    recorder: Recorder
    fleet: Fleet | None = None

    @property
    def folder(self) -> RunFolder:
        """Where this round works."""
        return self.run.iteration(self.index)

    @property
    def previous(self) -> RunFolder:
        """Where the round before this one worked; ValueError in the first round."""
        if self.index == 0:
            raise ValueError("the first round has none before it")
        return self.run.iteration(self.index - 1)

    @property
    def device(self) -> torch.device:
        """Where this round's models live."""
        return device_of(self.config)

    def seed(self, *words: str) -> int:
        """The seed of one use in this round."""
        return derive_seed(self.config.seed, self.index, *words)

    def checkpoints(self, stage: str) -> Checkpoints:
        """Where an unfinished stage keeps its state."""
        return Checkpoints(self.folder.checkpoints(stage))


def device_of(config: Config) -> torch.device:
    name = config.device
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"device: {name!r} cannot be used here ({reason}). `wm-engine info` lists the devices."
        ) from error
    return device


def check_machine(config: Config) -> None:
    """Raise ConfigError or MissingDependencyError where this machine cannot dream, or evolve, as ``config`` asks.

    Asked before the first stage: the dream comes hours later in a long run.
    """
    spec = ControllerSpec(latent=1, hidden=1, action=1, squash="tanh")
    m = MDNRNN(latent=1, action=1, hidden=1, mixtures=1, mixture=config.memory.mixture)
    make_engine(config, m, spec)
    try:
        choose_optimizer(config.controller.optimizer, config.controller.optimizer_device)
    except ValueError as error:
        raise ConfigError(f"controller.optimizer_device: {error}") from error


def load_models(current: Round) -> tuple[VAE, MDNRNN]:
    return VAE.load(current.folder.vision), MDNRNN.load(current.folder.memory)


def make_agent(folder: RunFolder, config: Config, params: Tensor | None = None) -> Agent:
    """The controller of ``folder``, or another of its shape, on the folder's V and M."""
    spec, own = load_controller(folder.controller)
    chosen = own if params is None else params
    vae, m = VAE.load(folder.vision), MDNRNN.load(folder.memory)
    return Agent(vae, m, spec, chosen.unsqueeze(0), device_of(config), config.vision.precision)


def controller_spec(current: Round, m: MDNRNN) -> ControllerSpec:
    """The controller that the configuration asks for, on this M; ConfigError where it cannot act in the environment."""
    return _controller_spec(current.config, _action_ranges(current.config), m.latent, m.hidden, m.action)


def _controller_spec(
    config: Config, ranges: list[tuple[float, float]], latent: int, hidden: int, action: int
) -> ControllerSpec:
    settings, squash = config.controller, _squash(config, ranges)
    try:
        return ControllerSpec(latent, hidden, action, settings.features, squash, settings.hidden_units)
    except ValueError as error:
        raise ConfigError(f"controller: {error}") from error


def check_environment(config: Config) -> None:
    """Raise ConfigError or MissingDependencyError where the environment cannot be made, or C cannot act in it.

    Asked before the run folder is written to: a mistyped ``env.id`` must not stand in the records of a begun run.
    """
    ranges = _action_ranges(config)
    scored_on = config.env.model_copy(update={"backend": config.evaluate.backend})
    if choose_backend(scored_on) != choose_backend(config.env):
        make_env(scored_on, 1).close()
    _controller_spec(config, ranges, config.vision.latent, config.memory.hidden, len(ranges))


def _action_ranges(config: Config) -> list[tuple[float, float]]:
    with closing(make_env(config.env, 1)) as env:
        return list(zip(env.action_low.tolist(), env.action_high.tolist(), strict=True))


def _squash(config: Config, ranges: list[tuple[float, float]]) -> tuple[str, ...] | str:
    """The controller's squash, as set or as the actions' ranges ask for.

    An action outside the environment's bounds would be clipped there: M learns from the clipped ones, so a dream of the
    others is of another world. Raises ConfigError for such a squash, an unknown word, or not one word for each action.
    """
    words = config.controller.squash or _default_squash(config, ranges)
    each = words * len(ranges) if len(words) == 1 else words
    if len(each) != len(ranges) or not all(word in SQUASH_RANGES for word in each):
        raise ConfigError(
            f"controller.squash: must be one of {', '.join(SQUASH_RANGES)} for each of the {len(ranges)} actions of "
            f"{config.env.id}, or one word for all, but was {list(words)}"
        )
    if "argmax" in each and len(words) != 1:
        raise ConfigError(f"controller.squash: argmax is of all actions at once, but was {list(words)}")
    for dimension, (word, (low, high)) in enumerate(zip(each, ranges, strict=True)):
        least, most = SQUASH_RANGES[word]
        if least < low or most > high:
            raise ConfigError(
                f"controller.squash: {word} puts out [{least:g}, {most:g}], but action {dimension} of {config.env.id} "
                f"must be in [{low:g}, {high:g}]"
            )
    return words[0] if len(words) == 1 else words


def _default_squash(config: Config, ranges: list[tuple[float, float]]) -> tuple[str, ...]:
    """A squash for every action dimension whose range is the environment's: tanh for [-1, 1], sigmoid for [0, 1]."""
    words = {(-1.0, 1.0): "tanh", (0.0, 1.0): "sigmoid"}
    for dimension, bounds in enumerate(ranges):
        if bounds not in words:
            raise ConfigError(
                f"env.id: action {dimension} of {config.env.id} ranges over {list(bounds)}, but a controller acts in "
                "[-1, 1] or [0, 1]. Set controller.squash, or wrap it with gymnasium.wrappers.RescaleAction and "
                "register that."
            )
    return tuple(words[bounds] for bounds in ranges)


def make_engine(
    config: Config, m: MDNRNN, spec: ControllerSpec, crossovers: Mapping[str, int] | None = None
) -> DreamEngine:
    settings, device = config.dream, device_of(config)
    elsewhere = [name for name in settings.devices if name.partition(":")[0] != device.type]
    if elsewhere:
        raise ConfigError(f"dream.devices: must be of the kind of device, {device}, but named {', '.join(elsewhere)}")
    try:
        return DreamEngine(
            m, spec, device, settings.backend, settings.precision, devices=settings.devices or None,
            crossovers=crossovers,
        )  # fmt: skip
    except ValueError as error:
        raise ConfigError(f"dream: {error}") from error
    except RuntimeError as error:
        raise MissingDependencyError(f"dream.backend: {error}") from error


def engine_of(current: Round, m: MDNRNN, spec: ControllerSpec) -> DreamEngine:
    """An engine on this machine that dreams as the round began to, even where it measured how."""
    crossovers = _crossovers(current)
    engine = make_engine(current.config, m, spec, crossovers)
    _keep(current, crossovers, engine.crossovers())
    return engine


def _crossovers(current: Round) -> dict[str, int]:
    path = current.folder.crossovers
    return dict(read_json(path)) if path.exists() else {}


def _keep(current: Round, known: dict[str, int], found: dict[str, int]) -> dict[str, int]:
    """What is known with what was found, which the round then keeps."""
    if not found.keys() <= known.keys():
        write_json(current.folder.crossovers, known | found)
    return known | found


def make_dreamer(current: Round, m: MDNRNN, spec: ControllerSpec) -> Dreamer:
    """What dreams in this round: an engine here, or one on each of the cluster's workers."""
    settings, fleet = current.config.dream, current.fleet
    if fleet is None:
        return engine_of(current, m, spec)
    backend = settings.backend
    if backend == "auto" and fleet.device == current.device.type:
        backend = make_engine(current.config, m, spec).backend
    elif backend == "auto":
        # By name too: were it left to the workers, one without Triton would dream other bits than the rest.
        try:
            backend = fastest_backend(fleet.device, settings.precision, m, spec)
        except ValueError as error:
            raise ConfigError(f"dream: {error}") from error
    crossovers = _crossovers(current)
    recipe = DreamRecipe(m, spec, fleet.device, backend, settings.precision, crossovers)
    if backend == "triton":
        # One worker measures for all.
        found = next(iter(fleet.map(CrossoverRecipe(recipe), [None])))
        recipe = replace(recipe, crossovers=_keep(current, crossovers, found))
    return FleetEngine(recipe, fleet, current.device)


def dream_starts(current: Round, m: MDNRNN, use: str, count: int, mid_fraction: float) -> Starts:
    latents = Latents.open(current.folder.latents)
    return recorded_starts(m, latents, count, mid_fraction, current.seed("starts", use))


def dream_fitness(
    current: Round, m: MDNRNN, spec: ControllerSpec, use: str, episodes: int, max_steps: int, race: int = 0
) -> DreamFitness:
    """The dream as the controller is trained in it, with the luck of one use of it."""
    settings = current.config.controller
    return DreamFitness(
        make_dreamer(current, m, spec),
        dream_starts(current, m, use, settings.starts, settings.mid_fraction),
        episodes=episodes,
        max_steps=max_steps,
        temperature=settings.temperature,
        reward=settings.reward,
        done=settings.done,
        seed=current.seed("dream", use),
        race=race,
    )


def real_fitness(
    current: Round,
    vae: VAE,
    m: MDNRNN,
    spec: ControllerSpec,
    use: str,
    episodes: int,
    max_steps: int,
    patience: int = 0,
) -> RealFitness:
    """The real environment, with the tracks of one use of it."""
    return RealFitness(
        current.config.env,
        vae,
        m,
        spec,
        episodes=episodes,
        max_steps=max_steps,
        patience=patience,
        final_steps=current.config.controller.final_real_steps,
        lanes=current.config.controller.real_lanes,
        seed=current.seed("real", use),
        device=current.device,
        precision=current.config.vision.precision,
        fleet=current.fleet,
    )


def evolution_result(folder: RunFolder) -> Path:
    return folder.evolution / "result.safetensors"
