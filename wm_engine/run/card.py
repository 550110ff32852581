"""The card of the published models, ``models/README.md``: what they are, for someone who meets the folder alone."""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from wm_engine.files import read_json, write_text
from wm_engine.run.config import Config, read_config
from wm_engine.run.folder import RunFolder


def how_scored(published: Mapping[str, Any], episodes: int | None) -> str:
    """Say of a score where its policy was trained, how it was chosen, on how many episodes it was scored, and after
    how many real frames and minutes.

    published : what ``published.json`` holds; episodes : of the score, None where it has not been taken yet
    """
    scored = (
        f"scored on {episodes:,} real episodes that no choice saw" if episodes else "not scored on its own episodes yet"
    )
    if "imported" in published:
        return f"Trained elsewhere and imported from {published['imported']['format']}; {scored}."
    trained = "in dreams alone" if published["trained_in"] == "dream" else "in the real environment"
    judged, rounds = published["judged"], published["judged_rounds"]
    if published["chosen"] == "best" and judged and rounds > 1:
        chosen = f"the best of {rounds} rounds judged on {judged['episodes']} real episodes each is published"
    else:
        chosen = "the last round is published, whatever it scored"
    return (
        f"Trained {trained}; {chosen}; {scored}. Learnt from {published['learning_frames']:,} real frames in "
        f"{published['minutes']:,.1f} minutes; {published['judged_frames']:,} more were driven for scores alone."
    )


def write_card(folder: RunFolder) -> None:
    """Write ``models/README.md`` from what is published, the configuration and, where they are of these models, the
    scores: task, how trained, score, seeds, licence, commit."""
    published, config = read_json(folder.published), read_config(folder.config)
    scores: dict[str, Any] = read_json(folder.scores) if folder.scores.exists() else {}
    if scores.get("how", {}).get("controller", {}).get("models") != published["digests"]:
        scores = {}
    write_text(folder.card, _card(config, published, scores))


def _card(config: Config, published: Mapping[str, Any], scores: Mapping[str, Any]) -> str:
    imported = published.get("imported")
    how = how_scored(published, scores["controller"]["episodes"] if scores else None)
    return "\n".join([
        f"# A world model of {config.env.task}",
        "",
        f"V ({config.vision.kind}) compresses what is seen, M ({config.memory.kind}) dreams on, and a policy "
        f"({config.controller.kind}) acts on what M holds (Ha & Schmidhuber 2018).",
        "",
        "| | |",
        "| --- | --- |",
        f"| task | {config.env.task} |",
        f"| how trained | {how} |",
        f"| score | {_score_text(scores)} |",
        f"| seeds | {_seeds(config, scores, imported)} |",
        f"| licence | {_licence(imported)} |",
        f"| made by | {_program()} |",
        *(["", "What is not as it was where it came from:", ""] if imported else []),
        *([f"- {note}." for note in imported["notes"]] if imported else []),
        "",
        "Files, each a safetensors file that says its kind and sizes; `published.json` has their digests:",
        "",
        *(f"- `{name}`: {digest}" for name, digest in sorted(published["digests"].items())),
        "",
        "```python",
        "import wm_engine as wm",
        "",
        'run = wm.load_run("the folder above this one")',
        "out = run.engine().rollout(run.controller.params, run.starts(64), episodes=64, max_steps=40, seed=0)",
        "```",
        "",
        "What a model of a world has learnt holds where its episodes went, and nowhere else; a score is of its task's "
        "own episodes.",
        "",
    ])  # fmt: skip


def _score_text(scores: Mapping[str, Any]) -> str:
    if not scores:
        return "not scored yet"
    parts = []
    for name, title in (("controller", ""), ("random", "random policy ")):
        score = scores.get(name)
        if score is not None and score["mean"] is not None:
            parts.append(f"{title}{score['mean']:.1f} ± {score['std']:.1f} over {score['episodes']} real episodes")
    return "; ".join(parts) or "not finite"


def _seeds(config: Config, scores: Mapping[str, Any], imported: Any) -> str:
    scored = f"; scored episodes {config.evaluate.seed} and on" if scores else ""
    return ("of the training: unknown" if imported else f"of the training: {config.seed}") + scored


def _licence(imported: Any) -> str:
    if imported:
        return f"that of its source ({imported['format']}), which this import does not change"
    return "of the models: for whoever trained them to say; of the program: MIT"


@functools.cache
def _program() -> str:
    """Name the program with its version, and its commit where it runs from a clone."""
    version = metadata.version("wm-engine")
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return f"wm_engine {version}"
    words = ["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"]
    try:
        answer = subprocess.run(words, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return f"wm_engine {version}"
    return f"wm_engine {version}, commit {answer}"
