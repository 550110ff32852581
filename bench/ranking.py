"""Do low precisions rank controllers as float32 does? ``python -m bench.ranking --run FOLDER``.

Evolution follows nothing but the order of the candidates' mean returns, so what a precision costs it is the rank
correlation of these means with float32's, the starts and the draws being the same. Two yardsticks stand beside it, both
in float32: starts with z one unit in the last place off, since where that changes the order no rounding could keep it;
and other starts and draws, which evolution meets with every generation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor

from wm_engine.dream import DreamEngine
from wm_engine.dream.cpp_backend import CppBackend
from wm_engine.dream.types import Starts
from wm_engine.errors import WMEngineError
from wm_engine.files import write_json
from wm_engine.judge.dream_real_correlation import spearman
from wm_engine.learn.evolve import DreamFitness, derive_seed

from .recorded import RecordedDream
from .tables import aligned

CENTRES = ("controller", "zero")


@dataclass(frozen=True)
class Dreams:
    """What is dreamt: the dream of which run, for how long, and how often."""

    run: RecordedDream
    episodes: int
    steps: int
    seed: int
    threads: int | None = None

    def means(self, params: Tensor, precision: str, *, nudged: bool = False, generation: int = 0) -> np.ndarray:
        """Dream ``params`` float32 [P, D]; returns their mean returns float64 [P], -inf where a dream failed.

        ``nudged``: begins one unit in the last place off. ``generation``: another one, other starts and draws.
        """
        up = torch.tensor(torch.inf)
        begin = self.run.starts
        if nudged:
            begin = Starts(torch.nextafter(begin.z, up), begin.h, begin.c)
        fitness = DreamFitness(
            DreamEngine(self.run.m, self.run.spec, backend="cpp", precision=precision, num_threads=self.threads),
            begin,
            episodes=self.episodes,
            max_steps=self.steps,
            seed=self.seed,
            **self.run.rules,
        )
        returns = fitness(params, generation).double().numpy()
        return np.where(np.isfinite(returns).all(axis=1), returns.mean(axis=1), -np.inf)


@dataclass(frozen=True)
class Ranks:
    """One population: the spread (standard deviation) of its mean returns in float32, and rank correlations with them.

    nudged, redrawn : of float32 itself, from starts a last place off, and with other starts and draws
    """

    centre: str
    width: float
    spread: float
    bf16: float
    int8: float
    nudged: float
    redrawn: float

    def cells(self) -> list[str]:
        """For a table."""
        figures = (self.bf16, self.int8, self.nudged, self.redrawn)
        return [f"{self.width:g} about {self.centre}", f"{self.spread:.1f}", *(f"{rho:.3f}" for rho in figures)]


_HEAD = ["population", "spread", "bf16", "int8", "fp32, starts an ulp off", "fp32, other draws"]


def population(centre: Tensor, width: float, candidates: int, seed: int) -> Tensor:
    """Draw candidates float32 [P, D] about ``centre`` [D]: normal, in the same directions at any ``width``, their
    standard deviation."""
    generator = torch.Generator().manual_seed(seed)
    return centre + width * torch.randn(candidates, centre.numel(), generator=generator)


def rank(dreams: Dreams, params: Tensor, centre: str, width: float) -> Ranks:
    """Rank a population every way."""
    exact = dreams.means(params, "fp32")
    others = {
        "bf16": dreams.means(params, "bf16"),
        "int8": dreams.means(params, "int8"),
        "nudged": dreams.means(params, "fp32", nudged=True),
        "redrawn": dreams.means(params, "fp32", generation=1),
    }
    spread = float(exact[np.isfinite(exact)].std())
    return Ranks(centre, width, spread, **{name: spearman(exact, means) for name, means in others.items()})


@click.command()
@click.option("--run", "root", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True)
@click.option("--candidates", type=click.IntRange(2), default=96, show_default=True, help="Of each population.")
@click.option("--episodes", type=click.IntRange(1), default=32, show_default=True, help="Dreams of each candidate.")
@click.option("--steps", type=click.IntRange(1), default=300, show_default=True, help="Most steps of a dream.")
@click.option(
    "--width",
    "widths",
    type=click.FloatRange(0.0, min_open=True),
    multiple=True,
    default=(0.02, 0.05, 0.1, 0.2),
    show_default=True,
    help="Standard deviation of a population; may be given many times.",
)
@click.option("--seed", default=0, show_default=True, help="Of the populations, the starts and the draws.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads.  [default: all this process may use]")
@click.option("--json", "out", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures there too.")
def main(
    root: Path,
    candidates: int,
    episodes: int,
    steps: int,
    widths: Sequence[float],
    seed: int,
    threads: int | None,
    out: Path | None,
) -> None:
    """Rank correlation of controllers' mean dream returns in bf16 and int8 with float32's, about C and about zero."""
    try:
        run = RecordedDream.of_run(root, seed)
    except (WMEngineError, FileNotFoundError) as error:
        raise click.ClickException(str(error)) from error
    there, reason = CppBackend.available()
    if not there:
        raise click.ClickException(f"int8 and bf16 are compared on the C++ core: {reason}")
    dreams, rows = Dreams(run, episodes, steps, seed, threads), []
    for centre, middle in zip(CENTRES, (run.params, torch.zeros_like(run.params)), strict=True):
        for width in widths:
            params = population(middle, width, candidates, derive_seed(seed, "population", centre))
            rows.append(rank(dreams, params, centre, width))
            click.echo(" ".join(rows[-1].cells()), err=True)
    shape = ", ".join(f"{name} {getattr(run.m, name)}" for name in run.m.SIZES)
    click.echo(f"M: {shape}; P={candidates} E={episodes} T={steps}; rank correlation with fp32")
    click.echo("\n".join(aligned([_HEAD, *(row.cells() for row in rows)])))
    if out is not None:
        said = {"memory": shape, "candidates": candidates, "episodes": episodes, "steps": steps}
        write_json(out, said | {"seed": seed, "round": run.round, "populations": [asdict(row) for row in rows]})


if __name__ == "__main__":
    main()
