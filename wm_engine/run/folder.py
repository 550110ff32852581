"""The run folder: where everything of a run lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from wm_engine.errors import MissingRunError, RunMismatchError


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run.

    config : the resolved configuration, written first
    rollouts : the store; checkpoints : the loop's state, the newest few; models : what is published
    metrics : metrics.jsonl and TensorBoard's events; scores : the published policy's; report : the page
    """

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.toml"

    @property
    def rollouts(self) -> Path:
        return self.root / "rollouts"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def models(self) -> Path:
        return self.root / "models"

    @property
    def vision(self) -> Path:
        return self.models / "vision.safetensors"

    @property
    def memory(self) -> Path:
        return self.models / "memory.safetensors"

    @property
    def controller(self) -> Path:
        return self.models / "controller.safetensors"

    @property
    def published(self) -> Path:
        """The note on what is published: of which round, chosen how, with a digest of each model."""
        return self.models / "published.json"

    @property
    def starts(self) -> Path:
        """The states that imported models dream from: posteriors, "mean" and "log_variance" [N, Z]."""
        return self.models / "starts.safetensors"

    @property
    def card(self) -> Path:
        """What the published models are, for people."""
        return self.models / "README.md"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics"

    @property
    def scores(self) -> Path:
        return self.root / "scores.json"

    @property
    def diagnosis(self) -> Path:
        """What ``wm-engine diagnose`` found, beside ``diagnosis.safetensors`` with the worst episodes."""
        return self.root / "diagnosis.json"

    @property
    def film(self) -> Path:
        return self.root / "controller.mp4"

    @property
    def report(self) -> Path:
        return self.root / "report"

    @property
    def sweeps(self) -> Path:
        """Trainings of C on the published V and M, a folder for each sweep."""
        return self.root / "sweeps"

    @property
    def crossovers(self) -> Path:
        """The measured choice between forms of a GPU's dreams, where it was made."""
        return self.root / "crossovers.json"

    def check(self) -> None:
        """Refuse a folder that holds something else than a run of this edition: RunMismatchError."""
        if (self.root / "manifest.json").exists() or (self.root / "iterations").exists():
            raise RunMismatchError(
                f"{self.root}: a run folder of wm_engine's first edition, whose stages this one does not have. Choose "
                "another --run folder, or go on in this one with version 0.1."
            )
        if self.root.is_dir() and not self.config.exists():
            others = sorted(path.name for path in self.root.iterdir() if not path.name.startswith("."))
            if others:
                raise RunMismatchError(
                    f"{self.root}: holds {', '.join(others[:3])} but no config.toml, so it is no run folder. Choose "
                    "another --run folder."
                )

    def existing(self) -> RunFolder:
        """Return the folder itself; MissingRunError where there is no run in it."""
        self.check()
        if not self.config.exists():
            raise MissingRunError(f"{self.root}: no run folder (there is no config.toml in it)")
        return self
