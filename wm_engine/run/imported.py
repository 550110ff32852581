"""A run folder of models that others trained: what dreams, plays and scores runs takes it like one of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from wm_engine.checks import check_choice
from wm_engine.errors import RunMismatchError
from wm_engine.files import file_fingerprint, lock_folder, save_tensors, sweep_temporaries
from wm_engine.foreign.base import Foreign
from wm_engine.kinds import kind_name
from wm_engine.ops.mdn import MIXTURES
from wm_engine.policies.controller import save_controller
from wm_engine.run.config import Config, make_config
from wm_engine.run.folder import RunFolder
from wm_engine.run.published import write_published

_OURS = {"config.toml", "models"}


def import_models(root: Path, found: Foreign, name: str, task: str) -> RunFolder:
    """Write what was read as the published models of a new run folder; cut short, it can be given again.

    Parameters
    ----------
    root : the run folder
    found : what a reader gave
    name : of its format
    task : of the environment that it was trained in

    Raises RunMismatchError where the folder holds anything else already, ConfigError where the task or the sizes do not
    fit the program.
    """
    folder = RunFolder(Path(root))
    _check_new(folder)
    config = _config(found, task)
    with lock_folder(folder.root):
        _check_new(folder)
        sweep_temporaries(folder.root)
        config.write(folder.config)
        found.vision.save(folder.vision)
        found.world.save(folder.memory)
        save_controller(folder.controller, found.spec, found.params)
        save_tensors(folder.starts, {"mean": found.start_mean, "log_variance": found.start_log_variance})
        write_published(folder, {
            "round": 0, "task": task, "trained_in": "elsewhere", "chosen": "last", "judged_rounds": 0, "judged": None,
            "learning_frames": 0, "judged_frames": 0, "minutes": 0.0,
            "imported": {
                "format": name,
                "files": {path.name: file_fingerprint(path) for path in found.files},
                "notes": list(found.notes),
            },
        })  # fmt: skip
    return folder


def _check_new(folder: RunFolder) -> None:
    """Refuse a folder that holds more than an import that was cut short: RunMismatchError."""
    there = {path.name for path in folder.root.iterdir() if path.name[0] != "."} if folder.root.is_dir() else set()
    if folder.published.exists() or there - _OURS:
        raise RunMismatchError(
            f"{folder.root}: holds {', '.join(sorted(there)[:3])} already, which an import would mix with. Choose "
            "another --run folder."
        )


def _config(found: Foreign, task: str) -> Config:
    spec, m = found.spec, found.world
    tables: dict[str, Any] = {
        "estimate": False,
        "env": {"task": task},
        "vision": {"kind": kind_name(type(found.vision), "wm_engine.models")},
        "memory": {
            "kind": "mdn_rnn", "hidden": m.hidden, "mixtures": m.mixtures,
            "mixture": check_choice("mixture", m.mixture, MIXTURES),
        },
        "controller": {
            "kind": "evolution", "features": spec.features, "hidden_units": spec.hidden_units,
            "squash": [spec.squash] if isinstance(spec.squash, str) else list(spec.squash),
        },
    }  # fmt: skip
    if tables["vision"]["kind"] != "blind":
        tables["vision"]["latent"] = m.latent
    config = make_config(tables, source="import")
    config.env.found()
    return config
