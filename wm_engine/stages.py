"""The stages of a round: what each reads, does and leaves behind.

    collect -> vision -> memory -> controller -> evaluate

A stage's work can be killed at any moment and called again: whatever of its artifacts is there was made whole, and what
is missing is made from the last checkpoint on, to the same result bit for bit.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wm_engine.agent import Agent
from wm_engine.collect import collect
from wm_engine.config import Config
from wm_engine.controller import ControllerSpec, load_controller, save_controller
from wm_engine.dream import DreamEngine, Starts
from wm_engine.dream.starts import recorded_starts
from wm_engine.envs import make_env
from wm_engine.errors import ConfigError, MissingDependencyError
from wm_engine.evaluate import Scores, evaluate_agent, evaluate_random, record_video
from wm_engine.evolve import (
    ControllerResult,
    ControllerSettings,
    DreamFitness,
    RealFitness,
    derive_seed,
    train_controller,
)
from wm_engine.fidelity import controller_mix, correlation_scalars, dream_real_correlation
from wm_engine.memory.fidelity import memory_fidelity
from wm_engine.memory.model import MDNRNN
from wm_engine.memory.training import train_memory
from wm_engine.records import Recorder
from wm_engine.rollouts import RolloutStore
from wm_engine.runs import Checkpoints, RunFolder, file_fingerprint, fingerprint, read_json, write_json
from wm_engine.settings import Section
from wm_engine.vision.latents import Latents, encode_store
from wm_engine.vision.model import VAE
from wm_engine.vision.training import train_vision

# Of the candidates of a generation, so many drive into the store where an evolving population collects.
_KEPT_A_GENERATION = 16


@dataclass(frozen=True)
class Artifact:
    """Something a stage leaves behind, and how to tell one from another: None where it is not there or not whole."""

    path: Path
    digest: Callable[[], str | None]


@dataclass(frozen=True)
class Round:
    """What a stage works with: the run, which round it is, and the configuration."""

    run: RunFolder
    index: int
    config: Config
    recorder: Recorder

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
        return _device(self.config)

    def seed(self, *words: str) -> int:
        """The seed of one use in this round."""
        return derive_seed(self.config.seed, self.index, *words)

    def checkpoints(self, stage: str) -> Checkpoints:
        """Where an unfinished stage keeps its state."""
        return Checkpoints(self.folder.checkpoints(stage))


def _device(config: Config) -> torch.device:
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
    """Raise ConfigError or MissingDependencyError where this machine cannot dream as ``config`` asks.

    Asked before the first stage: the dream comes hours later in a long run.
    """
    spec = ControllerSpec(latent=1, hidden=1, action=1, squash="tanh")
    _engine(config, MDNRNN(latent=1, action=1, hidden=1, mixtures=1, mixture=config.memory.mixture), spec)


@dataclass(frozen=True)
class Stage:
    """One step of a round.

    sections : the names in Config of what the work reads beside its inputs
    inputs, outputs : the artifacts of a round that the stage reads and leaves behind, by name
    work : does it, or what is left of it
    clear : forgets everything it has done, finished or not
    """

    name: str
    sections: tuple[str, ...]
    inputs: Callable[[Round], Mapping[str, Artifact]]
    outputs: Callable[[Round], Mapping[str, Artifact]]
    work: Callable[[Round], None]
    clear: Callable[[Round], None]

    def settings(self, config: Config) -> dict[str, Any]:
        """What of the configuration the stage's result follows from."""
        values = {name: getattr(config, name) for name in self.sections}
        return {name: value.identity() if isinstance(value, Section) else value for name, value in values.items()}


def file_artifact(path: Path) -> Artifact:
    """A file, told apart by its bytes."""
    return Artifact(path, lambda: file_fingerprint(path) if path.exists() else None)


def _rollouts(current: Round) -> Artifact:
    path = current.run.rollouts

    def digest() -> str | None:
        if not path.exists():
            return None
        store = RolloutStore.open(path, create=False)
        infos = [store.info(index) for index in range(len(store))]
        episodes = [asdict(info) for info in infos if info.iteration <= current.index]
        present = any(info.iteration == current.index for info in infos)
        return fingerprint(episodes) if present else None

    return Artifact(path, digest)


def _latents(current: Round) -> Artifact:
    folder = current.folder.latents

    def digest() -> str | None:
        try:
            return Latents.open(folder).fingerprint()
        except FileNotFoundError:
            return None

    return Artifact(folder, digest)


def _earlier(current: Round, *names: str) -> dict[str, Artifact]:
    """Models of the round before, where there is one."""
    if current.index == 0:
        return {}
    return {f"earlier {name}": file_artifact(getattr(current.previous, name)) for name in names}


def _collect_inputs(current: Round) -> dict[str, Artifact]:
    if current.index == 0:
        return {}
    before = {"earlier rollouts": _rollouts(Round(current.run, current.index - 1, current.config, current.recorder))}
    drives = current.config.collect.policy != "random"
    return before | (_earlier(current, "vision", "memory", "controller") if drives else {})


def _collect(current: Round) -> None:
    config = current.config
    store = RolloutStore.open(current.run.rollouts)
    # The first round has no V and M to drive with yet.
    policy = config.collect.policy if current.index else "random"
    if policy == "evolve":
        _collect_by_evolution(current, store)
        return
    agent = _agent(current.previous, config) if policy == "agent" else None
    collect(
        store,
        config.env,
        config.collect.model_copy(update={"policy": policy}),
        current.seed("collect"),
        iteration=current.index,
        agent=agent,
        recorder=current.recorder,
    )


def _collect_by_evolution(current: Round, store: RolloutStore) -> None:
    """Evolve a population in the real environment from the last round's controller on, and keep what it drives.

    Episodes of a short evolution vary more than one agent's with noise: its candidates fail in many ways. Only some of
    each generation are kept, so that the store holds all of its generations.
    """
    settings = current.config.collect
    spec, start = load_controller(current.previous.controller)
    fitness = RealFitness(
        current.config.env,
        VAE.load(current.previous.vision),
        MDNRNN.load(current.previous.memory),
        spec,
        max_steps=settings.max_steps,
        patience=settings.patience,
        seed=current.seed("collect"),
        device=current.device,
        precision=current.config.vision.precision,
        store=store,
        store_episodes=_KEPT_A_GENERATION,
        iteration=current.index,
    )
    evolution = ControllerSettings(
        train_in="real",
        real_generations=math.ceil(settings.episodes / _KEPT_A_GENERATION),
        finalists=0,
        final_real_episodes=1,
    )
    with closing(fitness):
        train_controller(
            evolution,
            spec,
            real=fitness,
            seed=current.seed("collect", "evolution"),
            checkpoints=current.checkpoints("collect"),
            recorder=current.recorder.within("collect"),
            iteration=current.index,
            initial=start,
        )
    current.checkpoints("collect").clear()


def _clear_collect(current: Round) -> None:
    current.checkpoints("collect").clear()
    if current.run.rollouts.exists():
        store = RolloutStore.open(current.run.rollouts, create=False)
        store.keep(sum(store.info(index).iteration < current.index for index in range(len(store))))


def _vision(current: Round) -> None:
    config, store = current.config, RolloutStore.open(current.run.rollouts, create=False)
    path = current.folder.vision
    if path.exists():
        vae = VAE.load(path)
    else:
        vae = train_vision(
            store,
            config.vision,
            current.seed("vision"),
            current.checkpoints("vision"),
            current.recorder,
            iteration=current.index,
            init=VAE.load(current.previous.vision) if current.index else None,
            device=current.device,
        )
        vae.save(path)
    encode_store(vae, store, current.folder.latents, config.vision.precision, current.device)
    current.checkpoints("vision").clear()


def _memory(current: Round) -> None:
    config = current.config
    m = train_memory(
        Latents.open(current.folder.latents),
        config.memory,
        current.seed("memory"),
        current.checkpoints("memory"),
        current.recorder,
        iteration=current.index,
        init=MDNRNN.load(current.previous.memory) if current.index else None,
        device=current.device,
    )
    m.save(current.folder.memory)
    current.checkpoints("memory").clear()


def _models(current: Round) -> tuple[VAE, MDNRNN]:
    return VAE.load(current.folder.vision), MDNRNN.load(current.folder.memory)


def _agent(folder: RunFolder, config: Config, params: Tensor | None = None) -> Agent:
    """The controller of ``folder``, or another of its shape, on the folder's V and M."""
    spec, own = load_controller(folder.controller)
    chosen = own if params is None else params
    vae, m = VAE.load(folder.vision), MDNRNN.load(folder.memory)
    return Agent(vae, m, spec, chosen.unsqueeze(0), _device(config), config.vision.precision)


def _controller_spec(current: Round, m: MDNRNN) -> ControllerSpec:
    settings = current.config.controller
    squash = settings.squash or _squash(current)
    try:
        return ControllerSpec(m.latent, m.hidden, m.action, settings.features, squash, settings.hidden_units)
    except ValueError as error:
        raise ConfigError(f"controller: {error}") from error


def _squash(current: Round) -> tuple[str, ...]:
    """A squash for every action dimension whose range is the environment's: tanh for [-1, 1], sigmoid for [0, 1]."""
    words = {(-1.0, 1.0): "tanh", (0.0, 1.0): "sigmoid"}
    env = make_env(current.config.env, 1)
    ranges = list(zip(env.action_low.tolist(), env.action_high.tolist(), strict=True))
    env.close()
    for dimension, bounds in enumerate(ranges):
        if bounds not in words:
            raise ConfigError(
                f"env.id: action {dimension} of {current.config.env.id} ranges over {list(bounds)}, but a controller "
                "acts in [-1, 1] or [0, 1]. Wrap it with gymnasium.wrappers.RescaleAction and register that."
            )
    return tuple(words[bounds] for bounds in ranges)


def _engine(config: Config, m: MDNRNN, spec: ControllerSpec) -> DreamEngine:
    settings = config.dream
    try:
        return DreamEngine(m, spec, _device(config), settings.backend, settings.precision)
    except ValueError as error:
        raise ConfigError(f"dream: {error}") from error
    except RuntimeError as error:
        raise MissingDependencyError(f"dream.backend: {error}") from error


def _controller(current: Round) -> None:
    settings, folder = current.config.controller, current.folder
    vae, m = _models(current)
    spec = _controller_spec(current, m)
    real = _real_fitness(
        current, vae, m, spec, "evolution", settings.real_episodes, settings.real_steps, settings.real_patience
    )
    with closing(real):
        result = train_controller(
            settings,
            spec,
            dream=_dream_fitness(current, m, spec, "evolution", settings.dream_episodes, settings.dream_steps),
            real=real if "real" in settings.train_in else None,
            seed=current.seed("evolution"),
            checkpoints=Checkpoints(folder.evolution),
            recorder=current.recorder,
            iteration=current.index,
            identity={"vision": file_fingerprint(folder.vision), "memory": file_fingerprint(folder.memory)},
        )
    result.save(_evolution_result(folder))
    save_controller(folder.controller, spec, result.params)


def _evolution_result(folder: RunFolder) -> Path:
    return folder.evolution / "result.safetensors"


def _starts(current: Round, m: MDNRNN, use: str, count: int, mid_fraction: float) -> Starts:
    latents = Latents.open(current.folder.latents)
    return recorded_starts(m, latents, count, mid_fraction, current.seed("starts", use))


def _dream_fitness(
    current: Round, m: MDNRNN, spec: ControllerSpec, use: str, episodes: int, max_steps: int
) -> DreamFitness:
    """The dream as the controller is trained in it, with the luck of one use of it."""
    settings = current.config.controller
    return DreamFitness(
        _engine(current.config, m, spec),
        _starts(current, m, use, settings.starts, settings.mid_fraction),
        episodes=episodes,
        max_steps=max_steps,
        temperature=settings.temperature,
        reward=settings.reward,
        done=settings.done,
        seed=current.seed("dream", use),
    )


def _real_fitness(
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
    )


def _evaluate(current: Round) -> None:
    """Score the controller where it counts, and measure how far the dream was right."""
    parts = current.folder.root / "evaluation"
    scores = {
        "controller": _part(parts / "controller.json", lambda: _score(current)),
        "random": _part(parts / "random.json", lambda: _random_score(current)),
        "dream_winner": _part(parts / "dream_winner.json", lambda: _dream_winner_score(current)),
        "dream": _part(parts / "dream.json", lambda: _dream_prediction(current)),
    }
    scores["gap"] = scores["dream"]["mean"] - scores["controller"]["mean"]
    fidelity = {
        "memory": _part(parts / "memory.json", lambda: _memory_fidelity(current)),
        "correlation": _part(parts / "correlation.json", lambda: _correlation(current)),
    }
    video = current.folder.root / "controller.mp4"
    if not video.exists():
        seed = scores["controller"]["seeds"][0]
        agent = _agent(current.folder, current.config)
        record_video(agent, current.config.env, seed, video, current.config.evaluate.max_steps)

    numbers = {
        f"{name}_{key}": scores[name][key] for name in ("controller", "random", "dream") for key in ("mean", "std")
    }
    current.recorder.log("evaluate", 0, current.index, gap=scores["gap"], **numbers)
    current.recorder.log("fidelity", 0, current.index, **_fidelity_scalars(fidelity))
    write_json(current.folder.root / "fidelity.json", fidelity)
    # Last, because the choice among rounds reads it: a round with a score is one that has been measured whole.
    write_json(scores_file(current.folder), scores)


def _part(path: Path, compute: Callable[[], Any]) -> Any:
    """What ``path`` holds, computed and written first where it is not there: a kill costs one part, not all."""
    if not path.exists():
        write_json(path, compute())
    return read_json(path)


def scores_file(folder: RunFolder) -> Path:
    """Where a round keeps its real scores."""
    return folder.root / "scores.json"


def round_score(current: Round) -> float | None:
    """The mean real return of the round's controller; None before it was evaluated."""
    path = scores_file(current.folder)
    return float(read_json(path)["controller"]["mean"]) if path.exists() else None


def _plain(scores: Scores) -> dict[str, Any]:
    return {
        "mean": float(scores.mean),
        "std": float(scores.std),
        "standard_error": float(scores.standard_error),
        "episodes": len(scores.returns),
        "returns": [float(value) for value in scores.returns],
        "lengths": [int(value) for value in scores.lengths],
        "seeds": [int(value) for value in scores.seeds],
    }


def _score(current: Round, params: Tensor | None = None) -> dict[str, Any]:
    agent = _agent(current.folder, current.config, params)
    return _plain(evaluate_agent(agent, current.config.env, current.config.evaluate))


def _random_score(current: Round) -> dict[str, Any]:
    return _plain(evaluate_random(current.config.env, current.config.evaluate))


def _dream_winner_score(current: Round) -> dict[str, Any] | None:
    """The dream phase's own winner, where the real phase came out with another one."""
    result = ControllerResult.load(_evolution_result(current.folder))
    winner = result.winners.get("dream")
    if winner is None or torch.equal(winner, result.params):
        return None
    return _score(current, winner)


def _dream_prediction(current: Round) -> dict[str, Any]:
    """What the dream says that the controller is worth, over as many steps as it is scored for in the real world.

    From episode starts only, as real episodes begin there.
    """
    settings = current.config.controller
    _, m = _models(current)
    spec, params = load_controller(current.folder.controller)
    steps, episodes = current.config.evaluate.max_steps, settings.final_dream_episodes
    out = _engine(current.config, m, spec).rollout(
        params.unsqueeze(0),
        _starts(current, m, "prediction", settings.starts, 0.0),
        episodes=episodes,
        max_steps=steps,
        temperature=settings.temperature,
        seed=current.seed("prediction"),
        reward=settings.reward,
        done=settings.done,
    )
    returns, lengths = out.returns[0].double().cpu(), out.lengths[0].double().cpu()
    return {
        "mean": float(returns.mean()),
        "std": float(returns.std(unbiased=episodes > 1)),
        "episodes": episodes,
        "max_steps": steps,
        "mean_length": float(lengths.mean()),
        "temperature": settings.temperature,
    }


def _memory_fidelity(current: Round) -> dict[str, Any]:
    _, m = _models(current)
    latents = Latents.open(current.folder.latents)
    _, held_out = latents.split(current.config.memory.holdout)
    return memory_fidelity(m, latents, held_out, current.seed("memory fidelity"))


def _correlation(current: Round) -> dict[str, Any]:
    settings, folder = current.config.fidelity, current.folder
    vae, m = _models(current)
    spec, best = load_controller(folder.controller)
    result = ControllerResult.load(_evolution_result(folder))
    mix = controller_mix(
        best,
        result.history.get("dream"),
        count=settings.controllers,
        sigma=current.config.controller.sigma,
        seed=current.seed("mix"),
    )
    steps = settings.dream_steps or current.config.controller.dream_steps
    dream = _dream_fitness(current, m, spec, "fidelity", settings.dream_episodes, steps)
    real = _real_fitness(current, vae, m, spec, "fidelity", settings.real_episodes, settings.real_steps)
    with closing(real):
        return dream_real_correlation(dream, real, mix, resamples=settings.resamples, seed=current.seed("bootstrap"))


def _fidelity_scalars(fidelity: Mapping[str, Any]) -> dict[str, float]:
    memory = {name: float(value) for name, value in fidelity["memory"].items() if isinstance(value, (int, float))}
    return memory | correlation_scalars(fidelity["correlation"])


def evaluate_folder(folder: RunFolder, config: Config, video: Path | None = None) -> dict[str, Any]:
    """Score the controller in ``folder`` as ``config.evaluate`` says, beside a random policy; nothing is kept."""
    scores = {
        "controller": _plain(evaluate_agent(_agent(folder, config), config.env, config.evaluate)),
        "random": _plain(evaluate_random(config.env, config.evaluate)),
    }
    if video is not None:
        seed = scores["controller"]["seeds"][0]
        record_video(_agent(folder, config), config.env, seed, video, config.evaluate.max_steps)
    return scores


def _clear_files(*stage_paths: Callable[[Round], Path]) -> Callable[[Round], None]:
    def clear(current: Round) -> None:
        for path_of in stage_paths:
            path = path_of(current)
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    return clear


STAGES = (
    Stage(
        name="collect",
        sections=("seed", "env", "collect"),
        inputs=_collect_inputs,
        outputs=lambda current: {"rollouts": _rollouts(current)},
        work=_collect,
        clear=_clear_collect,
    ),
    Stage(
        name="vision",
        sections=("seed", "vision"),
        inputs=lambda current: {"rollouts": _rollouts(current)} | _earlier(current, "vision"),
        outputs=lambda current: {"vision": file_artifact(current.folder.vision), "latents": _latents(current)},
        work=_vision,
        clear=_clear_files(
            lambda current: current.folder.vision,
            lambda current: current.folder.latents,
            lambda current: current.folder.checkpoints("vision"),
        ),
    ),
    Stage(
        name="memory",
        sections=("seed", "memory"),
        inputs=lambda current: {"latents": _latents(current)} | _earlier(current, "memory"),
        outputs=lambda current: {"memory": file_artifact(current.folder.memory)},
        work=_memory,
        clear=_clear_files(lambda current: current.folder.memory, lambda current: current.folder.checkpoints("memory")),
    ),
    Stage(
        name="controller",
        sections=("seed", "env", "controller", "dream"),
        inputs=lambda current: {
            "vision": file_artifact(current.folder.vision),
            "latents": _latents(current),
            "memory": file_artifact(current.folder.memory),
        },
        outputs=lambda current: {
            "controller": file_artifact(current.folder.controller),
            "evolution": file_artifact(_evolution_result(current.folder)),
        },
        work=_controller,
        clear=_clear_files(lambda current: current.folder.controller, lambda current: current.folder.evolution),
    ),
    Stage(
        name="evaluate",
        sections=("seed", "env", "evaluate", "fidelity"),
        inputs=lambda current: {
            "vision": file_artifact(current.folder.vision),
            "latents": _latents(current),
            "memory": file_artifact(current.folder.memory),
            "controller": file_artifact(current.folder.controller),
            "evolution": file_artifact(_evolution_result(current.folder)),
        },
        outputs=lambda current: {
            "scores": file_artifact(scores_file(current.folder)),
            "fidelity": file_artifact(current.folder.root / "fidelity.json"),
            "video": file_artifact(current.folder.root / "controller.mp4"),
        },
        work=_evaluate,
        clear=_clear_files(
            lambda current: scores_file(current.folder),
            lambda current: current.folder.root / "fidelity.json",
            lambda current: current.folder.root / "controller.mp4",
            lambda current: current.folder.root / "evaluation",
        ),
    ),
)
"""A round, in order."""
