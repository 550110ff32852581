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

from torch import Tensor

from wm_engine.assess import assess, fidelity_file, parts_folder, scores_file, video_file
from wm_engine.collect import collect
from wm_engine.config import Config
from wm_engine.controller import ControllerSpec, load_controller, save_controller
from wm_engine.errors import ConfigError
from wm_engine.evolve import ControllerResult, ControllerSettings, Distribution, RealFitness, train_controller
from wm_engine.memory.model import MDNRNN
from wm_engine.memory.training import train_memory
from wm_engine.rollouts import RolloutStore
from wm_engine.rounds import (
    Round,
    controller_spec,
    dream_fitness,
    evolution_result,
    load_models,
    make_agent,
    real_fitness,
)
from wm_engine.runs import Checkpoints, Manifest, RunFolder, file_fingerprint, fingerprint
from wm_engine.settings import Section
from wm_engine.vision.latents import Latents, encode_store
from wm_engine.vision.model import VAE
from wm_engine.vision.training import train_vision

# Of the candidates of a generation, so many drive into the store where an evolving population collects.
_KEPT_A_GENERATION = 16

# Of [controller], what the evaluation dreams and drives by.
_DREAM_KEYS = (
    *("temperature", "reward", "done", "starts", "mid_fraction", "dream_steps"),
    *("final_dream_episodes", "sigma", "real_lanes"),
)


@dataclass(frozen=True)
class Artifact:
    """Something a stage leaves behind, and how to tell one from another: None where it is not there or not whole."""

    path: Path
    digest: Callable[[], str | None]


@dataclass(frozen=True)
class Stage:
    """One step of a round.

    sections : what of Config the work reads beside its inputs: "SECTION", or "SECTION.KEY" for one setting of it
    later_sections : what it reads too from the second round on, as configured
    inputs, outputs : the artifacts of a round that the stage reads and leaves behind, by name
    work : does it, or what is left of it
    clear : deletes what it has left behind, finished or not; the pipeline itself deletes ``checkpoints(name)``
    """

    name: str
    sections: tuple[str, ...]
    inputs: Callable[[Round], Mapping[str, Artifact]]
    outputs: Callable[[Round], Mapping[str, Artifact]]
    work: Callable[[Round], None]
    clear: Callable[[Round], None]
    later_sections: Callable[[Config], tuple[str, ...]] = lambda config: ()

    def settings(self, config: Config, index: int) -> dict[str, Any]:
        """What of the configuration the stage's result in round ``index`` follows from, as nested tables."""
        tables: dict[str, Any] = {}
        for name in (*self.sections, *(self.later_sections(config) if index else ())):
            section, _, key = name.partition(".")
            value = getattr(config, section)
            if key:
                tables.setdefault(section, {})[key] = value.identity()[key]
            else:
                tables[section] = value.identity() if isinstance(value, Section) else value
        return tables


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
        collected = sum(info.iteration == current.index for info in infos)
        if collected < _episodes_wanted(current):
            return None
        return fingerprint([asdict(info) for info in infos if info.iteration <= current.index])

    return Artifact(path, digest)


def _episodes_wanted(current: Round) -> int:
    """How many episodes of this round make its rollouts whole: what a finished collection was told, whatever the
    configuration says now."""
    entry = Manifest(current.run.manifest).get(current.index, "collect")
    told = entry.settings["collect"] if entry is not None and entry.done else current.config.collect.identity()
    episodes = int(told["episodes"])
    if current.index and told["policy"] == "evolve":
        return math.ceil(episodes / _KEPT_A_GENERATION) * _KEPT_A_GENERATION
    return episodes


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


def _collecting_later(config: Config) -> tuple[str, ...]:
    """What V and M drive with, and a population's waves."""
    return ("vision.precision", *(("controller.real_lanes",) if config.collect.policy == "evolve" else ()))


def _collect(current: Round) -> None:
    config = current.config
    store = RolloutStore.open(current.run.rollouts)
    # The first round has no V and M to drive with yet.
    policy = config.collect.policy if current.index else "random"
    if policy == "evolve":
        _collect_by_evolution(current, store)
        return
    agent = make_agent(current.previous, config) if policy == "agent" else None
    collect(
        store,
        config.env,
        config.collect.model_copy(update={"policy": policy}),
        current.seed("collect"),
        iteration=current.index,
        agent=agent,
        recorder=current.recorder,
        fleet=current.fleet,
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
        lanes=current.config.controller.real_lanes,
        seed=current.seed("collect"),
        device=current.device,
        precision=current.config.vision.precision,
        fleet=current.fleet,
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


def _clear_collect(current: Round) -> None:
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
    # In float32 whatever V was trained in: bfloat16 errs by a tenth of the posterior's standard deviation, and encoding
    # costs seconds.
    encode_store(vae, store, current.folder.latents, "fp32", current.device)


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


def _controller(current: Round) -> None:
    settings, folder = current.config.controller, current.folder
    vae, m = load_models(current)
    spec = controller_spec(current, m)
    initial = _beginning(current, spec)
    real = real_fitness(
        current, vae, m, spec, "evolution", settings.real_episodes, settings.real_steps, settings.real_patience
    )
    identity = {"vision": file_fingerprint(folder.vision), "memory": file_fingerprint(folder.memory)}
    if initial is not None:
        source = current.previous.controller if current.index else folder.evolution / "initial.safetensors"
        identity["initial"] = file_fingerprint(source)
    with closing(real):
        result = train_controller(
            settings,
            spec,
            dream=dream_fitness(
                current, m, spec, "evolution", settings.dream_episodes, settings.dream_steps, settings.dream_race
            ),
            real=real if "real" in settings.train_in else None,
            seed=current.seed("evolution"),
            checkpoints=Checkpoints(folder.evolution),
            recorder=current.recorder,
            iteration=current.index,
            initial=initial,
            identity=identity,
        )
    result.save(evolution_result(folder))
    save_controller(folder.controller, spec, result.params)


def _beginning(current: Round, spec: ControllerSpec) -> Distribution | Tensor | None:
    """Where the search begins: at the last round's controller, in the first at what ``controller.init_from`` names.

    V and M go on from the last round's, so its controller still drives on them, if worse (docs/runs.md).
    What ``init_from`` names is copied into the round's folder when the evolution begins, so that going on needs the
    other run no more.
    """
    if current.index:
        shape, params = load_controller(current.previous.controller)
        return params if shape == spec else None
    settings = current.config.controller
    if not settings.init_from:
        return None
    copy = current.folder.evolution / "initial.safetensors"
    source = copy if copy.exists() else _result_of(Path(settings.init_from))
    try:
        found = ControllerResult.load(source)
    except FileNotFoundError as error:
        raise ConfigError(f"controller.init_from: {source}: no such file; name a run with a controller") from error
    there, distribution = found.spec, found.distribution
    if there is None or distribution is None:
        raise ConfigError(f"controller.init_from: {source}: written before a search's distribution was kept in it")
    if there != spec:
        theirs, ours = asdict(there), asdict(spec)
        changes = [f"{name} {theirs[name]} there, {ours[name]} here" for name in ours if theirs[name] != ours[name]]
        raise ConfigError(f"controller.init_from: {source}: another controller's shape: {'; '.join(changes)}")
    if source != copy:
        found.save(copy)
    return distribution if settings.init_with == "distribution" else distribution.mean


def _result_of(path: Path) -> Path:
    """The evolution's result in a run's folder (of its chosen round), in a round's, or the file itself."""
    if path.is_file():
        return path
    run = RunFolder(path)
    chosen = Manifest(run.manifest).published if run.manifest.exists() else None
    return evolution_result(run if chosen is None else run.iteration(chosen))


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
        # V of the round before sees for whoever drives.
        later_sections=_collecting_later,
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
        clear=_clear_files(lambda current: current.folder.vision, lambda current: current.folder.latents),
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
        sections=("seed", "env", "vision.precision", "controller", "dream"),
        inputs=lambda current: (
            {
                "vision": file_artifact(current.folder.vision),
                "latents": _latents(current),
                "memory": file_artifact(current.folder.memory),
            }
            | _earlier(current, "controller")
        ),
        outputs=lambda current: {
            "controller": file_artifact(current.folder.controller),
            "evolution": file_artifact(evolution_result(current.folder)),
        },
        work=_controller,
        clear=_clear_files(lambda current: current.folder.controller, lambda current: current.folder.evolution),
    ),
    Stage(
        name="evaluate",
        sections=(
            "seed",
            "env",
            "vision.precision",
            "memory.holdout",
            "dream",
            *(f"controller.{key}" for key in _DREAM_KEYS),
            "evaluate",
            "fidelity",
        ),
        inputs=lambda current: {
            "vision": file_artifact(current.folder.vision),
            "latents": _latents(current),
            "memory": file_artifact(current.folder.memory),
            "controller": file_artifact(current.folder.controller),
            "evolution": file_artifact(evolution_result(current.folder)),
        },
        outputs=lambda current: {
            "scores": file_artifact(scores_file(current.folder)),
            "fidelity": file_artifact(fidelity_file(current.folder)),
            "video": file_artifact(video_file(current.folder)),
        },
        work=assess,
        clear=_clear_files(
            lambda current: scores_file(current.folder),
            lambda current: fidelity_file(current.folder),
            lambda current: video_file(current.folder),
            lambda current: parts_folder(current.folder),
        ),
    ),
)
"""A round, in order."""
