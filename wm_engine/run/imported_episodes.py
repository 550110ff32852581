"""A run of one's own episodes: the loop learns V and M from them with no environment at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wm_engine.data.imported import read_file, spaces_of
from wm_engine.data.store import RolloutStore
from wm_engine.errors import ConfigError
from wm_engine.files import lock_folder
from wm_engine.run.config import apply_change, load_preset, make_config
from wm_engine.run.folder import RunFolder
from wm_engine.spaces import Vector


def import_episodes(
    files: Sequence[Path],
    root: Path,
    preset: str | None = None,
    changes: Sequence[str] = (),
    actions: int | None = None,
) -> int:
    """Write the episodes of ``files`` into a new run folder with its configuration; returns how many they are.

    Every file is read and checked before anything is written, and what was written is taken away where the writing
    fails: a folder is a whole run or as it was.

    Parameters
    ----------
    files : .npz and videos; see :mod:`wm_engine.data.imported`
    root : must be empty or not there
    preset : what its settings begin with; None: the defaults, and an ``identity`` for vectors
    changes : "section.key=value", as in ``--set``
    actions : how many discrete actions there are; None: as many as occur

    Raises ConfigError for a folder that is not empty, for too few episodes and for wrong settings, CorruptFileError
    for a file that is not as it should be, StorageError where the disk is full.
    """
    folder = RunFolder(Path(root))
    if folder.root.is_dir() and any(not path.name.startswith(".") for path in folder.root.iterdir()):
        raise ConfigError(f"{folder.root}: holds something already. Episodes are imported into a new --run folder.")
    read = [read_file(Path(path)) for path in files]
    spaces = spaces_of(read, actions)
    episodes = [episode for file in read for episode in file.episodes(spaces)]
    if len(episodes) < 2:
        raise ConfigError("FILES hold 1 episode, but must hold at least 2: one of them only measures")
    tables: dict[str, Any] = load_preset(preset) if preset else {}
    # The default preset's V sees pictures.
    if isinstance(spaces.observations, Vector):
        tables["vision"] = {"kind": "identity"}
    tables["env"] = {"task": "recorded", "recorded": json.dumps(spaces.to_json())}
    for change in changes:
        apply_change(tables, change)
    config = make_config(tables, source=f"preset {preset}" if preset else "settings")
    there = folder.root.is_dir()
    folder.root.mkdir(parents=True, exist_ok=True)
    try:
        with lock_folder(folder.root):
            store = RolloutStore.open(folder.rollouts, spaces)
            for episode in episodes:
                store.append(episode)
            config.write(folder.config)  # last: a folder with a configuration is a run
    except BaseException:
        shutil.rmtree(folder.rollouts, ignore_errors=True)
        if not there:
            shutil.rmtree(folder.root, ignore_errors=True)
        raise
    return len(episodes)
