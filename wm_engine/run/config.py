"""The configuration of a run: every room's section together, read from presets, changed by ``--set``, kept as TOML.

The sections of V, of M and of the learner belong to their kinds: ``[memory] kind = "mdn_rnn"`` says which settings
``[memory]`` has.
"""

from __future__ import annotations

import difflib
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

import tomli_w
import torch
from pydantic import BaseModel, Field, ValidationError, create_model
from pydantic.fields import FieldInfo

from wm_engine.cluster import ClusterSettings
from wm_engine.envs import EnvSettings
from wm_engine.errors import ConfigError
from wm_engine.files import write_text
from wm_engine.judge.settings import JudgeSettings
from wm_engine.learn.base import LearnerSettings, learner_kind
from wm_engine.models.base import MemorySettings, VisionSettings, vision_kind, world_model_kind
from wm_engine.real.scoring import EvaluateSettings
from wm_engine.settings import Section

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class DriveSettings(Section):
    """Settings of the real episodes that a round drives."""

    first_episodes: int = Field(48, ge=2, description="in the first round, by the task's random plans")
    first_frames: int = Field(400, ge=1, description="where each of these is cut")
    episodes: int = Field(16, ge=1, description="in each later round, by what the learner would try next")
    frames: int | None = Field(None, ge=1, description="where each of these is cut; left out: env.max_frames")
    patience: int = Field(
        0,
        ge=0,
        description="end a later round's episode after so many frames in a row without a positive reward; 0: never",
    )
    noise: float = Field(
        0.1, ge=0.0, description="exploration noise: in halves of an action's range, or the share of random choices"
    )
    holdout: float = Field(0.08, gt=0.0, lt=1.0, description="share of the episodes that only measures")


class DreamSettings(Section):
    """Settings of what dreams are computed with."""

    free: ClassVar[frozenset[str]] = frozenset({"devices"})

    backend: str = Field("auto", description="auto takes the fastest that is here; see `wm-engine info`")
    precision: str = Field(
        "fp32", description="of M's matrix products in dreams; auto takes bf16 where there are instructions for it"
    )
    devices: list[str] = Field(
        [],
        description='several to split populations over, of the kind of `device`: ["cuda:0", "cuda:1"]',
    )


class Config(Section):
    """The whole configuration. A preset states what differs from the defaults of the sections."""

    free: ClassVar[frozenset[str]] = frozenset({"rounds", "checkpoint_seconds", "threads", "estimate"})

    seed: int = Field(0, ge=0, lt=2**32, description="root of every random number of the run")
    rounds: int = Field(8, ge=1, description="rounds of drive, see, remember, dream, judge; more may be added later")
    threads: int = Field(
        0, ge=0, description="CPU threads, torch's and NumPy's; 0: all that affinity and cgroups allow"
    )
    device: str = Field(
        "auto", description="where V and M are trained and dreams run: cpu, cuda, mps; auto takes a GPU"
    )
    checkpoint_seconds: float = Field(60.0, ge=0.0, description="how much work a kill may cost; 0: every unit is kept")
    estimate: bool = Field(True, description="say how long the run will take, from a few seconds' measurement")
    env: EnvSettings = EnvSettings()
    drive: DriveSettings = DriveSettings()
    vision: VisionSettings = VisionSettings()
    memory: MemorySettings = MemorySettings()
    dream: DreamSettings = DreamSettings()
    controller: LearnerSettings = LearnerSettings()
    judge: JudgeSettings = JudgeSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    cluster: ClusterSettings = ClusterSettings()

    def identity(self) -> dict[str, Any]:
        """Return what a run's results follow from, as nested tables."""
        tables: dict[str, Any] = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if name not in self.free:
                tables[name] = value.identity() if isinstance(value, Section) else value
        return tables

    def tables(self) -> dict[str, Any]:
        """Return the configuration as nested dicts of plain values, without keys that are None (TOML has no null)."""
        return self.model_dump(mode="json", exclude_none=True)

    def to_toml(self) -> str:
        """Return the configuration as TOML text; :func:`read_config` gives back an equal one."""
        return tomli_w.dumps(self.tables())

    def explained(self) -> str:
        """The same TOML with every setting's description and bounds above it."""
        lines: list[str] = []
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if isinstance(value, Section):
                lines += ["", f"[{name}]"]
                for key, inner in type(value).model_fields.items():
                    lines += _explained(key, inner, getattr(value, key))
            else:
                lines += _explained(name, field, value)
        return "\n".join(lines) + "\n"

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the TOML text atomically."""
        write_text(path, self.to_toml())


def _explained(name: str, field: FieldInfo, value: Any) -> list[str]:
    about = [f"# {field.description}"] if field.description else []
    if value is None:
        return [*about, f"# {name} is not set"]
    return [*about, tomli_w.dumps({name: list(value) if isinstance(value, tuple) else value}).rstrip()]


def presets() -> dict[str, str]:
    """The names of the presets that are installed, each with its one-line description."""
    files = [file for file in resources.files("wm_engine.presets").iterdir() if file.name.endswith(".toml")]
    first_lines = {
        file.name.removesuffix(".toml"): file.read_text(encoding="utf-8").partition("\n")[0] for file in files
    }
    return {name: line.partition(": ")[2] for name, line in sorted(first_lines.items())}


def load_preset(name: str) -> dict[str, Any]:
    """The tables of preset ``name``: one that is installed, or the path of a TOML file (``my/preset.toml``).

    Raises ConfigError where there is no such preset, naming those that exist.
    """
    if name.endswith(".toml"):
        return _read_toml(Path(name))
    known = presets()
    if name not in known:
        nearest = difflib.get_close_matches(name, known, 1)
        hint = f"; the nearest known one is {nearest[0]!r}" if nearest else ""
        raise ConfigError(
            f"preset {name!r}: unknown{hint}. There are {', '.join(known)}; a path that ends in .toml names a file."
        )
    text = (resources.files("wm_engine.presets") / f"{name}.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def read_config(path: str | os.PathLike[str], changes: Sequence[str] = ()) -> Config:
    """The configuration kept in a run folder's ``config.toml``, with ``changes`` as in :func:`resolve` applied.

    Raises ConfigError that names the file where it holds something else.
    """
    return _changed(_read_toml(Path(path)), changes, source=str(path))


def resolve(preset: str, changes: Sequence[str] = ()) -> Config:
    """The configuration of ``preset`` with ``changes`` ("section.key=value", later ones win) applied."""
    return _changed(load_preset(preset), changes, source=f"preset {preset}")


def _changed(tables: dict[str, Any], changes: Sequence[str], source: str) -> Config:
    for change in changes:
        apply_change(tables, change)
    return make_config(tables, source=source)


def apply_change(tables: dict[str, Any], change: str) -> None:
    """Set one key of ``tables`` from "section.key=value": the value is TOML, and a bare word is a string.

    Raises ConfigError where the text has no "=" or the key names a value as if it were a section.
    """
    key, equals, text = change.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise ConfigError(f"--set {change}: must look like section.key=value, for example --set vision.steps=2000")
    for name in path[:-1]:
        tables = tables.setdefault(name, {})
        if not isinstance(tables, dict):
            raise ConfigError(f"--set {change}: {name!r} is a value, not a section with keys of its own")
    tables[path[-1]] = _value(text.strip())


def _value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    # A newline inside the text could smuggle in further keys; then it is no single value.
    return parsed["value"] if parsed.keys() == {"value"} else text


_KINDS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "vision": (vision_kind, "vae"),
    "memory": (world_model_kind, "mdn_rnn"),
    "controller": (learner_kind, "evolution"),
}
"""Sections that belong to kinds: what finds a kind by its name, and the default one."""


def _with_kinds(tables: Mapping[str, Any]) -> type[Config]:
    """Config with the sections of the kinds that ``tables`` name; ConfigError where one names no kind."""
    settings = []
    for section, (find, default) in _KINDS.items():
        table = tables.get(section)
        settings.append(find(table.get("kind", default) if isinstance(table, Mapping) else default).Settings)
    return _config_of(*settings)


@functools.cache
def _config_of(*settings: type[Section]) -> type[Config]:
    """Config with sections of these types for V, M and the learner: one class for equal types."""
    sections: dict[str, Any] = {name: (kind, kind()) for name, kind in zip(_KINDS, settings, strict=True)}
    return create_model("Config", __base__=Config, **sections)


def make_config(tables: Mapping[str, Any], source: str = "settings") -> Config:
    """Check ``tables`` and fill in the defaults.

    Raises ConfigError that names ``source`` and, a line each, every unknown key with the nearest known one and every
    ill-typed value with what it should be.
    """
    try:
        kind = _with_kinds(tables)
        # Through JSON: pydantic's strict mode takes an array as a tuple there, and nothing else more loosely.
        return kind.model_validate_json(json.dumps(dict(tables), default=str))
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    except ValidationError as error:
        problems = [
            _problem(details["loc"], details["type"], details["msg"], details["input"], kind)
            for details in error.errors()
        ]
        raise ConfigError(f"{source}: " + "\n  ".join(problems)) from None


def _problem(location: tuple[int | str, ...], trouble: str, message: str, given: Any, config: type[Config]) -> str:
    key = ".".join(map(str, location))
    if trouble == "extra_forbidden":
        nearest = nearest_key(key, config)
        return f"{key}: unknown key" + (f"; the nearest known one is {nearest}" if nearest else "")
    reason = message.removeprefix("Value error, ").replace("Input should be", "must be")
    if not location:
        return reason
    shown = "" if isinstance(given, dict) else f", but was {given!r}"
    return f"{key}: {reason[0].lower() + reason[1:]}{shown}"


def nearest_key(key: str, config: type[Config]) -> str | None:
    """The known key most like ``key``: the same name in another section, or the closest spelling; None if none is."""
    known = [name for name, _ in flatten(config().model_dump())] + list(config.model_fields)
    leaf = key.rpartition(".")[2]
    same_leaf = [name for name in known if name.rpartition(".")[2] == leaf]
    by_spelling = difflib.get_close_matches(key, same_leaf or known, 1, cutoff=0.0 if same_leaf else 0.6)
    if by_spelling:
        return by_spelling[0]
    leaves = {name.rpartition(".")[2]: name for name in known}
    by_leaf = difflib.get_close_matches(leaf, leaves, 1, cutoff=0.75)
    return leaves[by_leaf[0]] if by_leaf else None


def flatten(tables: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every (dotted key, value) of nested tables."""
    for name, value in tables.items():
        if isinstance(value, (dict, BaseModel)):
            yield from flatten(dict(value), f"{prefix}{name}.")
        else:
            yield prefix + name, value


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line "key: old -> new" for every key whose value differs between two nested tables."""
    before, after = dict(flatten(old)), dict(flatten(new))
    keys = [*before, *(key for key in after if key not in before)]
    return [
        f"{key}: {_shown(before, key)} -> {_shown(after, key)}" for key in keys if before.get(key) != after.get(key)
    ]


def _shown(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key]) if key in values else "(not set)"


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML ({error})") from error


def device_of(config: Config) -> torch.device:
    """Return the device of the configuration; ConfigError where it cannot be used here."""
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
