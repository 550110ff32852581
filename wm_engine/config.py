"""The configuration of a run: every stage's section together, read from presets, changed by ``--set``, kept as TOML."""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar

import tomli_w
from pydantic import BaseModel, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo

from wm_engine.collect import CollectSettings
from wm_engine.distributed import ClusterSettings
from wm_engine.envs import EnvSettings
from wm_engine.errors import ConfigError
from wm_engine.evaluate import EvaluateSettings
from wm_engine.evolve import ControllerSettings
from wm_engine.fidelity import FidelitySettings
from wm_engine.memory.training import MemorySettings
from wm_engine.runs import write_text
from wm_engine.settings import Section
from wm_engine.vision.training import VisionSettings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class DreamSettings(Section):
    """What dreams are computed with."""

    free: ClassVar[frozenset[str]] = frozenset({"devices"})

    backend: str = Field("auto", description="auto takes the fastest that is here; see `wm-engine info`")
    precision: str = Field("fp32", description="of M's matrix products in dreams; on a GPU, bf16 for speed")
    devices: list[str] = Field(
        [],
        description='several to split populations over, of the kind of `device`: ["cuda:0", "cuda:1"]',
    )


class Config(Section):
    """The whole configuration. A preset states what differs from the defaults of the stages' sections."""

    seed: int = Field(0, ge=0, lt=2**32, description="root of every random number of the run")
    iterations: int = Field(1, ge=1, description="rounds of collect, vision, memory, controller, evaluate")
    threads: int = Field(
        0, ge=0, description="CPU threads, torch's and NumPy's; 0: all that affinity and cgroups allow"
    )
    device: str = Field(
        "auto", description="where V and M are trained and dreams run: cpu, cuda, mps; auto takes a GPU"
    )
    env: EnvSettings = EnvSettings()
    collect: CollectSettings = CollectSettings()
    vision: VisionSettings = VisionSettings()
    memory: MemorySettings = MemorySettings()
    dream: DreamSettings = DreamSettings()
    controller: ControllerSettings = ControllerSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    fidelity: FidelitySettings = FidelitySettings()
    cluster: ClusterSettings = ClusterSettings()

    @model_validator(mode="after")
    def _one_holdout(self) -> Config:
        # The episodes that M is measured on must be ones that V has not learnt either.
        if self.memory.holdout != self.vision.holdout:
            raise ValueError(
                f"memory.holdout: must be vision.holdout ({self.vision.holdout}): V and M are measured on the same "
                f"episodes; but was {self.memory.holdout}"
            )
        return self

    def tables(self) -> dict[str, Any]:
        """The configuration as nested dicts of plain values; keys that are None are left out (TOML has no null)."""
        return self.model_dump(mode="json", exclude_none=True)

    def to_toml(self) -> str:
        """The configuration as TOML text; :func:`read_config` gives back an equal one."""
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


def make_config(tables: Mapping[str, Any], source: str) -> Config:
    """Check ``tables`` and fill in the defaults.

    Raises ConfigError that names ``source`` and, a line each, every unknown key with the nearest known one and every
    ill-typed value with what it should be.
    """
    try:
        # Through JSON: pydantic's strict mode takes an array as a tuple there, and nothing else more loosely.
        return Config.model_validate_json(json.dumps(dict(tables), default=str))
    except ValidationError as error:
        problems = [
            _problem(details["loc"], details["type"], details["msg"], details["input"]) for details in error.errors()
        ]
        raise ConfigError(f"{source}: " + "\n  ".join(problems)) from None


def _problem(location: tuple[int | str, ...], kind: str, message: str, given: Any) -> str:
    key = ".".join(map(str, location))
    if kind == "extra_forbidden":
        nearest = nearest_key(key)
        return f"{key}: unknown key" + (f"; the nearest known one is {nearest}" if nearest else "")
    reason = message.removeprefix("Value error, ").replace("Input should be", "must be")
    if not location:
        return reason
    shown = "" if isinstance(given, dict) else f", but was {given!r}"
    return f"{key}: {reason[0].lower() + reason[1:]}{shown}"


def nearest_key(key: str) -> str | None:
    """The known key most like ``key``: the same name in another section, or the closest spelling; None if none is."""
    known = [name for name, _ in flatten(Config().model_dump())] + list(Config.model_fields)
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
