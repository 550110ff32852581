"""The layout: every module has its place in one order, and imports only what stands before it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "wm_engine"

INFRASTRUCTURE = (
    *("errors", "settings", "kinds", "checks", "spaces", "machine", "core", "progress", "files", "recorder", "fleet"),
)
# The loop's own order: what is one environment's stands in envs/tasks/, what is one model's in its file of models/.
PARTS = (
    *(
        "rng",
        "envs",
        "data",
        "ops",
        "models",
        "policies",
        "dream",
        "learn",
        "real",
        "judge",
        "cluster",
        "foreign",
        "run",
    ),
    *("report", "play", "info", "cli", "main"),
)
ORDER = {name: place for place, name in enumerate(INFRASTRUCTURE + PARTS)}
# Data, native code and environments of our own: imported by anyone, importing nothing of ours; kernels/ has its
# arguments checked by `checks`.
LEAVES = {"presets", "kernels", "bench", "_C", "worlds"}


def part_of(path: Path) -> str:
    """The top-level module or package of wm_engine that a source file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(path: Path) -> set[str]:
    """The parts of wm_engine that a source file imports, at its top or inside functions, type checking included."""
    package = ["wm_engine", *path.relative_to(PACKAGE).parts[:-1]]
    return {part for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) for part in _parts(node, package)}


def _parts(node: ast.AST, package: list[str]) -> list[str]:
    if isinstance(node, ast.Import):
        modules = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        base = package[: len(package) - node.level + 1] if node.level else []
        source = ".".join([*base, *([node.module] if node.module else [])])
        modules = [f"{source}.{alias.name}" for alias in node.names] if source == "wm_engine" else [source]
    else:
        return []
    names = [module.split(".") for module in modules]
    return [name[1] for name in names if name[0] == "wm_engine" and len(name) > 1]


def sources() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE) != Path("__init__.py"))


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_a_module_imports_only_what_stands_before_it(path):
    part = part_of(path)
    if part in LEAVES:
        assert not imported_parts(path)
        return
    later = {
        name for name in imported_parts(path) - LEAVES - {part} if ORDER.get(name, len(ORDER)) > ORDER.get(part, -1)
    }
    assert not later, f"{path.relative_to(ROOT)} stands before {sorted(later)} and must not import them"


def test_every_module_has_its_place():
    unknown = {part_of(path) for path in sources()} - ORDER.keys() - LEAVES
    assert not unknown, f"not in DESIGN's table of modules: {sorted(unknown)}"


def test_nothing_executes_on_import():
    """A module holds definitions: no calls stand alone at its top level."""
    for path in sources():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            runs = isinstance(node, (ast.For, ast.While, ast.With)) or (
                isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
            )
            assert not runs, f"{path.relative_to(ROOT)}:{node.lineno} does something on import"


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("import wm_engine.run.loop", {"run"}),
        ("from wm_engine.dream import engine", {"dream"}),
        ("from wm_engine import cli, rng", {"cli", "rng"}),
        ("from . import base", {"models"}),
        ("from .vae import VAE", {"models"}),
        ("from .. import report", {"report"}),
        ("from ..learn.base import X", {"learn"}),
        ("def f():\n    from wm_engine.cli import main", {"cli"}),
        ("import torch, os", set()),
    ],
)
def test_the_walk_sees_every_form_of_import(monkeypatch, tmp_path, line, parts):
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    path = tmp_path / "models" / "trainer.py"
    path.parent.mkdir()
    path.write_text(line + "\n")
    assert imported_parts(path) == parts
