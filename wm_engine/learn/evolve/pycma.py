"""CMA-ES by the ``cma`` package (Hansen, Akimoto and Baudis), behind the ask/tell protocol: the reference optimiser."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from wm_engine.errors import RunMismatchError
from wm_engine.learn.evolve.protocol import (
    Distribution,
    Ranking,
    Returns,
    State,
    as_float64,
    check_factor,
    check_start,
    held_std,
    rank,
)
from wm_engine.machine import describe_blas, one_torch_thread

_log = logging.getLogger(__name__)

_EPSILON = float(np.finfo(np.float64).eps)


class PycmaES:
    """``cma.CMAEvolutionStrategy`` with the package's own defaults: active CMA, CSA below 300 dimensions, TPA above.

    x0 [D]: first mean; sigma: first step size; popsize: P, at least 4; seed: at least 0; factor: of the first
    distribution (:class:`wm_engine.learn.evolve.protocol.Distribution`). With a factor L the package searches in the
    coordinates u of x = x0 + L·u, where that distribution is round: CMA-ES is the same in any coordinates. The package
    neither prints nor writes files nor touches NumPy's global random state.

    The state is the history of rankings, replayed when it is loaded, and the mean and the deviations that it led to. A
    ranking means something for the very candidates that it ranked, and another ``cma``, NumPy, CPU or number of BLAS
    threads may draw others; so a replay that does not end with the same bits is refused. It costs what the optimiser
    itself cost, about 50 ms a generation at D = 867 and P = 64.
    """

    _MORE_OPTIONS: ClassVar[dict[str, Any]] = {}  # of the package, for subclasses

    def __init__(self, x0: Any, sigma: float, popsize: int, seed: int = 0, *, factor: Tensor | None = None) -> None:
        import cma  # here, because it takes more than a second to import and many runs never need it

        self._x0, self._sigma0, self._popsize, self._seed = check_start(x0, sigma, popsize, seed)
        self._factor = None if factor is None else check_factor(factor, self._x0.size)
        self._noise = np.random.default_rng((self._seed, 0))
        self._es = cma.CMAEvolutionStrategy(
            self._x0 if factor is None else np.zeros_like(self._x0),
            self._sigma0,
            {
                "popsize": self._popsize,
                "randn": lambda *shape: self._noise.standard_normal(shape),
                "seed": np.nan,  # leaves NumPy's global generator alone
                "verbose": -9,
                "verb_disp": 0,
                "verb_log": 0,
                **self._MORE_OPTIONS,
            },
        )
        self._orders: list[np.ndarray] = []
        self._asked: list[np.ndarray] | None = None
        self.last_ranking: Ranking | None = None

    @property
    def dimension(self) -> int:
        return self._x0.size

    @property
    def popsize(self) -> int:
        return self._popsize

    @property
    def generation(self) -> int:
        return len(self._orders)

    @property
    def mean(self) -> Tensor:
        return self._outside(as_float64(self._es.gp.pheno(self._es.mean)))

    @property
    def sigma(self) -> float:
        return float(self._es.sigma)

    @property
    def distribution(self) -> Distribution:
        variances, axes = torch.linalg.eigh(as_float64(self._es.sm.covariance_matrix))
        # Rounding can cost the covariance its definiteness; no axis is flatter than float64 can tell from none.
        axes = self._from_sampler() @ (axes * variances.clamp(min=_EPSILON * float(variances.max())).sqrt())
        upper = torch.linalg.qr(axes.T).R
        factor = upper.T * torch.where(upper.diagonal() < 0, -1.0, 1.0)
        if self._factor is not None:
            factor = self._factor[:, None] * factor if self._factor.dim() == 1 else self._factor @ factor
        return Distribution.balanced(self.mean, self.sigma, factor)

    def _from_sampler(self) -> Tensor:
        """Return the map from the coordinates that the package samples in to those of its candidates, [D, D].

        When the covariance's condition passes 10^12, the package moves it into a linear map between the two, ``es.gp``.
        """
        scales = np.broadcast_to(self._es.sigma_vec.scaling, self._x0.shape)
        return as_float64(self._es.gp.pheno(np.diag(scales)))

    def _greatest_std(self) -> float:
        """The largest standard deviation of a coordinate of the package's candidates."""
        if self._es.gp.isidentity:
            return float(self._es.stds.max())
        turned = self._from_sampler()
        variances = ((turned @ as_float64(self._es.sm.covariance_matrix)) * turned).sum(dim=1)
        return self.sigma * float(variances.max()) ** 0.5

    def _outside(self, points: Tensor) -> Tensor:
        """Points [..., D] of the package's coordinates in those of the search."""
        if self._factor is None:
            return points
        steps = points * self._factor if self._factor.dim() == 1 else points @ self._factor.T
        return as_float64(self._x0) + steps

    @one_torch_thread()
    def ask(self) -> Tensor:
        if self._asked is None:
            self._asked = self._es.ask()
        return self._outside(as_float64(np.stack(self._asked)))

    @one_torch_thread()
    def tell(self, returns: Returns) -> None:
        if self._asked is None:
            raise RuntimeError("tell: ask() first; a generation is told once")
        ranking = rank(returns, self._popsize, self._seed, self.generation)
        self._update(ranking.order)
        self.last_ranking = ranking

    def _update(self, order: np.ndarray) -> None:
        # The package minimises, and uses no more than the order: it gets each candidate's place.
        places = np.empty(self._popsize)
        places[order] = np.arange(self._popsize)
        with _global_random_state_kept():
            self._es.tell(self._asked, places.tolist())
        # Not by the package's minstd and maxstd, which say nothing, and after a thousand generations at the upper bound
        # had let the step size overflow and the distribution collapse to the lower one.
        spread = self._greatest_std()
        held = held_std(spread, self._sigma0)
        if held != spread:
            self._es.sigma *= held / spread
        self._asked = None
        self._orders.append(order.astype(np.int32))

    def state(self) -> State:
        orders = np.stack(self._orders) if self._orders else np.empty((0, self._popsize), np.int32)
        tensors = {"x0": as_float64(self._x0), "orders": torch.from_numpy(orders)}
        tensors |= {} if self._factor is None else {"first_factor": self._factor.clone()}
        values = {"kind": "pycma", "sigma": self._sigma0, "popsize": self._popsize, "seed": self._seed}
        return tensors | self._reached(), values | {"made_with": _surroundings()}

    def _reached(self) -> dict[str, Tensor]:
        """Return what a replay must reach to the bit: mean and deviations, in the package's own coordinates."""
        return {"mean": as_float64(self._es.mean), "stds": as_float64(self._es.stds)}

    @classmethod
    def from_state(cls, tensors: dict[str, Tensor], values: dict[str, Any]) -> PycmaES:
        """The optimiser whose ``state()`` this was, ready for its next ``ask``.

        Raises RunMismatchError where the replay did not come to where the optimiser was.
        """
        orders, factor = tensors["orders"].numpy(), tensors.get("first_factor")
        optimizer = cls(tensors["x0"], values["sigma"], values["popsize"], values["seed"], factor=factor)
        if not {"mean", "stds"} <= tensors.keys():
            raise RunMismatchError(
                "pycma's state is of an earlier version, which did not keep the mean that its replay must come to, so "
                "that nothing tells whether it does. Delete it to begin anew."
            )
        for order in orders:
            optimizer.ask()
            optimizer._update(order.astype(np.int64))
        optimizer._check_replayed(tensors, values["made_with"])
        return optimizer

    def _check_replayed(self, tensors: dict[str, Tensor], made_with: dict[str, Any]) -> None:
        now, reached = _surroundings(), self._reached()
        changes = [f"{name} was {made_with.get(name)} and is now {now[name]}" for name in now]
        changes = [change for change, name in zip(changes, now, strict=True) if made_with.get(name) != now[name]]
        if all(torch.equal(tensors[name], reached[name]) for name in reached):
            if changes:
                _log.warning("pycma: %s; its replay came to the same bits, what follows may not", "; ".join(changes))
            return
        distance = float(((reached["mean"] - tensors["mean"]) / tensors["stds"]).abs().max())
        why = "; ".join(changes) or "its versions and threads are the same: another CPU?"
        raise RunMismatchError(
            f"pycma's search cannot be replayed here: after {self.generation} generations its mean is {distance:.2g} "
            f"standard deviations away from where it was ({why}). Go on as it was made, or delete its checkpoints and "
            "begin anew."
        )


def _surroundings() -> dict[str, Any]:
    """Name what the last bits of the package's results follow from, as far as it is known."""
    import cma

    blas, threads = describe_blas()
    return {"cma": cma.__version__, "numpy": np.__version__, "BLAS": blas, "BLAS threads": threads}


@contextmanager
def _global_random_state_kept() -> Iterator[None]:
    # Above 300 dimensions the package draws the coordinates of a self-check from NumPy's global generator.
    before = np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
