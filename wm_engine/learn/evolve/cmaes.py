"""CMA-ES in matrix products, for populations of thousands.

Hansen 2016, "The CMA Evolution Strategy: A Tutorial" (arXiv:1604.00772), with active updates and the parameter settings
of the ``cma`` package 4, in a form that needs no eigendecomposition. The covariance matrix C is kept as its Cholesky
factor, C = L·Lᵀ, as in Krause, Arbonès & Igel 2016 ("CMA-ES with Optimal Covariance Update and Storage Complexity"),
and updated in the coordinates z in which it is the identity:

    x = m + σ·L·z,  z ~ N(0, I)
    C ← a·C + c₁·p·pᵀ + c_μ·Σ wᵢ·yᵢ·yᵢᵀ  =  L·M·Lᵀ,   M = a·I + c₁·q·qᵀ + c_μ·Zᵀ·W·Z,   y = L·z,  p = L·q
    L ← L·G,  G·Gᵀ = M

M is close to the identity and positive definite by the choice of weights, so its Cholesky factor is cheap and safe
whatever the condition of C. Small populations change C so slowly that M is formed only every ``gap`` generations, from
the rows q and zᵢ of all of them. A generation costs two products of P·D² multiply-adds, and one in ``gap`` O(D³) more;
the memory is O(D² + P·D). Directions that outlast a generation (paths, test step, mirrored step) are kept in z's
coordinates, so nothing of C need be inverted.
"""

from __future__ import annotations

import itertools
import logging
import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from wm_engine.checks import check_choice
from wm_engine.errors import RunMismatchError
from wm_engine.learn.evolve.protocol import (
    GREATEST_AXIS,
    LEAST_AXIS,
    Distribution,
    Ranking,
    Returns,
    State,
    check_factor,
    check_home,
    check_start,
    held_std,
    rank,
    surplus,
)
from wm_engine.machine import one_torch_thread
from wm_engine.rng import derive_seed

_log = logging.getLogger(__name__)

VARIANTS = ("auto", "full", "separable")
MOST_FULL_DIMENSIONS = 5000
"""Above this a full covariance matrix is too large to learn, and a diagonal one is learnt."""
# From here on, as in ``cma``, the step size follows a pair of test steps (TPA) instead of its path's length (CSA),
# which takes of the order of D generations to react: at D = 867 CSA needed 1.8 times the evaluations on the sphere.
_TEST_STEPS_FROM = 300
_TEST_STEPS_MEMORY = 0.3
# Below this, as in ``cma``, the worst candidate's step is tried backwards in the next generation (selective mirroring;
# Auger, Brockhoff & Hansen 2011, "Mirrored Sampling in Evolution Strategies with Weighted Recombination").
_MIRRORED_BELOW = 6
# Of a state's tensors. Since the second, directions are in the coordinates z, and what C has still to learn is rows.
_LAYOUT = 2

# Up to here, as the longest row of the factor over the shortest of its diagonal, steps are float32, in half the time.
# Rounding then errs by about 1e-4 of the shortest axis, or by 1e-3 where the diagonal hides axes shorter than itself.
_FLOAT32_STRETCH = 1e3
# Products of triangular matrices are cut into column blocks, which skips most of the zeros.
_BLOCKS, _BLOCKED_FROM = 4, 192


@dataclass(frozen=True)
class Parameters:
    """The strategy parameters for D and P: learning rates, damping and recombination weights, best rank first.

    weights : float64 [P], positive ones summing to 1, then negative ones
    mueff : variance-effective number of parents
    cs, damps : of the step size's path; test_damps : of its test steps
    cc : of the covariance's path; c1, cmu : of C
    gap : generations between refreshes of the factor; C changes too little in between to matter
    """

    weights: Tensor
    mueff: float
    cs: float
    damps: float
    test_damps: float
    cc: float
    c1: float
    cmu: float
    gap: int

    @classmethod
    def of(cls, dimension: int, popsize: int, separable: bool) -> Parameters:
        """The defaults of ``cma`` 4 (tutorial, table 1, with the package's later changes to cs and damps)."""
        D, P = dimension, popsize
        raw = math.log((P + 1) / 2) - torch.arange(1, P + 1, dtype=torch.float64).log()
        positive, negative = raw.clamp(min=0.0), raw.clamp(max=0.0)
        positive = positive / positive.sum()
        mueff = 1.0 / float((positive**2).sum())
        mueff_negative = float(negative.sum() ** 2 / (negative**2).sum())

        if separable:
            # Ros & Hansen 2008: a diagonal can be learnt D/3 times as fast as a full matrix, and more.
            cc = (1 + 1 / D + mueff / D) / (math.sqrt(D) + 1 / D + 2 * mueff / D)
            c1 = 1 / (D + 2 * math.sqrt(D) + mueff / D)
            cmu = min(1 - c1, (mueff + 1 / mueff - 1.75) / (D + 4 * math.sqrt(D) + mueff / 2))
        else:
            cc = (4 + mueff / D) / (D + 4 + 2 * mueff / D)
            c1 = min(1, P / 6) * 2 / ((D + 1.3) ** 2 + mueff)
            cmu = min(1 - c1, 2 * (mueff + 1 / mueff - 1.75) / ((D + 2) ** 2 + mueff))
        # No decay; no more than their share of information; and C stays positive definite (tutorial, eqs. 50-52), which
        # a diagonal does by itself, see _DiagonalShape.
        share = min(1 + c1 / cmu, 1 + 2 * mueff_negative / (mueff + 2))
        if not separable:
            share = min(share, (1 - c1 - cmu) / (D * cmu))
        weights = positive + max(0.0, share) * negative / float(negative.abs().sum())

        cs = min(0.5, (mueff + 2) / (D + mueff + 3))
        crowd = max(1.0, 3 * (1 - 0.5 ** (D / 9))) * math.sqrt((mueff - 1) / (D + 1))
        # A mirrored candidate lets the step size move faster: 0.159 is the share of them that serves best.
        mirrored = 1 if P < _MIRRORED_BELOW else 0
        damps = 0.5 + 0.5 * min(1.0, (mirrored / (0.159 * P) - 1) ** 2) + cs + 2 * max(0.0, crowd - 1)
        test_damps = 0.7 + 2 * math.log(D) + 2 * math.log(max(1, P - D))
        gap = max(1, int(1 / (10 * D * (c1 + cmu))))
        return cls(weights, mueff, cs, damps, test_damps, cc, c1, cmu, gap)


class _Shape(Protocol):
    """C, up to σ²: how white noise z becomes steps y = L·z, and how C learns."""

    def stretch(self, z: Tensor) -> Tensor:
        """z f32 [P, D] to y [P, D], in float32 where that is exact enough, else in float64."""
        ...

    def learn(self, decay: float, rows: Tensor, weights: Tensor, carried: Tensor) -> Tensor:
        """C ← decay·C + Σ wᵢ (L·rowᵢ)(L·rowᵢ)ᵀ for rows f32 [R, D], weights f64 [R].

        carried : f64 [N, D], directions in the coordinates z

        The carried directions in the new coordinates: L·z stays what it was.
        """
        ...

    def greatest_std(self) -> float:
        """The largest standard deviation of a coordinate, less σ."""
        ...

    def shrink(self, scale: float) -> None:
        """L ← L / scale, a power of two."""
        ...

    def factor(self) -> Tensor:
        """L, [D, D] or, where it is diagonal, [D]."""
        ...

    def state(self) -> dict[str, Tensor]:
        """The tensors that the constructor takes."""
        ...


class _FullShape:
    def __init__(
        self, factor: Tensor, gap: int, rows: Tensor | None = None, weights: Tensor | None = None, decay: float = 1.0
    ) -> None:
        self._gap = gap
        # What C has still to learn: each generation's rows [R, D] and their weights [R]; and how far C itself fades.
        self._rows = [] if rows is None else list(rows)
        self._weights = [] if weights is None else list(weights)
        self._decay = decay
        self._set(factor)

    def _set(self, factor: Tensor) -> None:
        self._factor, self._greatest = factor, _greatest_row(factor)
        narrow = self._greatest <= _FLOAT32_STRETCH * float(factor.diagonal().min())
        self._steps_factor = factor.float() if narrow else factor

    def stretch(self, z: Tensor) -> Tensor:
        factor = self._steps_factor
        z = z.to(factor.dtype)
        steps = torch.empty_like(z)
        for first, last in _blocks(len(factor)):
            _product(z[:, :last], factor[first:last, :last].T, out=steps[:, first:last])
        return steps

    def learn(self, decay: float, rows: Tensor, weights: Tensor, carried: Tensor) -> Tensor:
        self._rows.append(rows)
        self._weights = [decay * earlier for earlier in self._weights] + [weights]
        self._decay *= decay
        return self._refresh(carried) if len(self._rows) >= self._gap else carried

    def _refresh(self, carried: Tensor) -> Tensor:
        # In these coordinates all is of order one, so float32 is exact enough for the sum, and twice as fast.
        # Only the lower triangle is made: a Cholesky factor needs no more.
        rows = self._rows[0] if len(self._rows) == 1 else torch.cat(self._rows)
        weighted = rows * torch.cat(self._weights).float().unsqueeze(1)
        change = _identity_like(self._factor, self._decay)
        for first, last in _blocks(len(change)):
            change[first:, first:last].add_(_product(rows[:, first:].T, weighted[:, first:last]))
        self._rows, self._weights, self._decay = [], [], 1.0

        update, factor = _cholesky(change), torch.zeros_like(self._factor)
        for first, last in _blocks(len(factor)):
            _product(self._factor[first:, first:], update[first:, first:last], out=factor[first:, first:last])
        greatest = _greatest_row(factor)
        # The condition has no other bound: C is never formed. One on the diagonal's stretch, 10^7, was tried: where the
        # condition is 10^14 or more, the search began anew again and again.
        if float(factor.diagonal().min()) >= LEAST_AXIS and greatest <= GREATEST_AXIS:
            # Contiguous, as a restored state is: what is summed up in another order ends in other bits.
            carried = torch.linalg.solve_triangular(update, carried.T, upper=False).T.contiguous()
        else:
            _log.warning(
                "CMA-ES: the covariance left floating-point range; it begins anew as a sphere, as wide as it was"
            )
            width = min(greatest, GREATEST_AXIS) if greatest > 0.0 else 1.0
            carried, factor = carried @ (self._factor / width).T, _identity_like(factor, width)
        self._set(factor)
        return carried

    def greatest_std(self) -> float:
        return self._greatest

    def shrink(self, scale: float) -> None:
        self._set(self._factor / scale)

    def factor(self) -> Tensor:
        return self._factor

    def state(self) -> dict[str, Tensor]:
        nothing = self._factor.new_zeros(0)
        return {
            "factor": self._factor,
            "rows": torch.stack(self._rows) if self._rows else nothing,
            "weights": torch.stack(self._weights) if self._weights else nothing,
            "decay": torch.tensor(self._decay, dtype=torch.float64),
        }


def _blocks(size: int) -> list[tuple[int, int]]:
    """Columns [0, size) in a few blocks, as (first, last not included); in one where that is quicker."""
    count = _BLOCKS if size >= _BLOCKED_FROM else 1
    edges = [round(size * index / count) for index in range(count + 1)]
    return list(itertools.pairwise(edges))


def _product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """The matrices' product, into ``out`` where it is given.

    On the CPU by NumPy: torch's MKL uses half of an AMD core (96 against 226 GFLOP/s in float32 on Zen 5).
    """
    if left.device.type != "cpu":
        return torch.mm(left, right, out=out)
    made = np.matmul(left.numpy(), right.numpy(), out=None if out is None else out.numpy())
    return torch.from_numpy(made) if out is None else out


def _greatest_row(matrix: Tensor) -> float:
    """The greatest length of a row."""
    return float(torch.linalg.vector_norm(matrix, dim=1).max())


def _identity_like(matrix: Tensor, scale: float = 1.0) -> Tensor:
    """scale·I; torch.eye takes ten times as long."""
    identity = torch.zeros_like(matrix)
    identity.diagonal().fill_(scale)
    return identity


def _cholesky(matrix: Tensor) -> Tensor:
    """The Cholesky factor; of the nearest of matrix + εI that has one, should rounding have cost it definiteness."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    ridge = 1e-12
    if int(failed):
        _log.warning("CMA-ES: an update of the covariance was not positive definite")
    while int(failed):
        if ridge > 1.0 or not bool(torch.isfinite(matrix).all()):
            _log.warning("CMA-ES: it could not be mended; the covariance stays as it was")
            return _identity_like(matrix)
        factor, failed = torch.linalg.cholesky_ex(matrix + ridge * _identity_like(matrix))
        ridge *= 100.0
    return factor


class _DiagonalShape:
    def __init__(self, stds: Tensor) -> None:
        self._stds = stds

    def stretch(self, z: Tensor) -> Tensor:
        return z.double() * self._stds

    def learn(self, decay: float, rows: Tensor, weights: Tensor, carried: Tensor) -> Tensor:
        # The exponential of the change, not one plus it: a coordinate's variance then stays positive by itself, however
        # much bad candidates take away. ``cma`` does so too, and learns at ln 2 times these rates.
        before, change = self._stds, (decay - 1.0) + weights @ rows.double() ** 2
        stds = before * torch.exp(0.5 * change)
        self._stds = stds.clamp(LEAST_AXIS, GREATEST_AXIS)
        held = int((stds != self._stds).sum())
        if held:
            _log.warning("CMA-ES: %d of %d scales are held at the ends of floating-point range", held, len(stds))
        return carried * (before / self._stds)

    def greatest_std(self) -> float:
        return float(self._stds.max())

    def shrink(self, scale: float) -> None:
        self._stds = self._stds / scale

    def factor(self) -> Tensor:
        return self._stds

    def state(self) -> dict[str, Tensor]:
        return {"stds": self._stds}


class BatchedCMAES:
    """CMA-ES over populations of thousands, on the CPU or a GPU.

    Parameters
    ----------
    x0 : [D], the first mean; sigma : the first step size; popsize : P, at least 4
    seed : generation g draws from a generator keyed with ``derive_seed(seed, "cmaes", g)``
    variant : "full" | "separable" (a diagonal C, memory O(P·D)) | "auto": separable above 5,000 dimensions
    device : the CPU or a CUDA GPU; the state lives there, and ``ask`` leaves the candidates there. The noise is drawn
        there too, so another kind of device, or another model of GPU, draws other candidates
    factor : of the first distribution (see :class:`wm_engine.learn.evolve.protocol.Distribution`); None: the identity
    sigma_max : the largest standard deviation that a coordinate may have. A fitness that is mostly noise, or that
        changes under the search, lets the step size run away (docs/transfer.md); infinity: no bound but floats'

    State is float64; the white noise, and products in which it is exact enough, are float32. As in ``cma``, the step
    size is adapted by the length of its path (CSA) below 300 dimensions, and above by two-point adaptation (TPA;
    Hansen 2008, Akimoto & Hansen 2020): candidates 0 and 1 then repeat the mean's last step, forwards and backwards,
    and σ grows where the forward one ranks better. With 4 or 5 candidates one more repeats the worst of the generation
    before backwards, unless that was one such. Logged and mended: a step size that leaves 10^±15 times the first is
    held there; an update that is not positive definite; a covariance whose axes leave float64's range (10^±150) begins
    anew as a sphere.
    """

    def __init__(
        self,
        x0: Any,
        sigma: float,
        popsize: int,
        seed: int = 0,
        *,
        variant: str = "auto",
        device: str | torch.device = "cpu",
        factor: Tensor | None = None,
        sigma_max: float = math.inf,
    ) -> None:
        mean, self._sigma, self._popsize, self._seed = check_start(x0, sigma, popsize, seed)
        check_choice("variant", variant, VARIANTS)
        if not sigma_max > 0.0:
            raise ValueError(f"sigma_max must be greater than 0, but was {sigma_max}")
        self._sigma_max = float(sigma_max)
        self._separable = variant == "separable" or (variant == "auto" and mean.size > MOST_FULL_DIMENSIONS)
        self._device = check_home(device)
        self._first_sigma, self._generation = self._sigma, 0
        self._mean = torch.from_numpy(mean).to(self._device)
        self._sigma_path = torch.zeros_like(self._mean)
        # Directions z, in the coordinates of L: C's path, the mean's last step, and the worst candidate's backwards.
        self._path, self._shift, self._mirror = (torch.zeros_like(self._mean) for _ in range(3))
        self._test_steps, self._trend = mean.size >= _TEST_STEPS_FROM, 0.0
        self._mirrored = False
        self._parameters = Parameters.of(mean.size, self._popsize, self._separable)
        self._weights = self._parameters.weights.to(self._device)
        first = torch.ones_like(self._mean)
        if factor is not None:
            first = check_factor(factor, mean.size, diagonal_only=self._separable).to(self._device)
        self._shape: _Shape
        if self._separable:
            self._shape = _DiagonalShape(first)
        else:
            self._shape = _FullShape(first.diag() if first.dim() == 1 else first, self._parameters.gap)
        self._first_sigma *= self._balance(self._shape.greatest_std())
        self._drawn: tuple[Tensor, Tensor] | None = None  # z and y of the generation's candidates
        self.last_ranking: Ranking | None = None

    @property
    def dimension(self) -> int:
        return self._mean.numel()

    @property
    def popsize(self) -> int:
        return self._popsize

    @property
    def generation(self) -> int:
        return self._generation

    @property
    def mean(self) -> Tensor:
        return self._mean.clone()

    @property
    def sigma(self) -> float:
        return self._sigma

    @property
    def distribution(self) -> Distribution:
        return Distribution.balanced(self.mean.cpu(), self._sigma, self._shape.factor().cpu().clone())

    @one_torch_thread()
    def ask(self) -> Tensor:
        if self._drawn is None:
            z = self._draw()
            self._drawn = z, self._shape.stretch(z)
        _, y = self._drawn
        return y.to(torch.float64, copy=True).mul_(self._sigma).add_(self._mean)

    def _draw(self) -> Tensor:
        """The generation's noise, f32 [P, D], with what is tried on purpose in it."""
        key = derive_seed(self._seed, "cmaes", self._generation)
        generator = torch.Generator(self._device).manual_seed(key)
        z = torch.randn(self._popsize, self.dimension, generator=generator, device=self._device)
        if self._test_steps and self._generation > 0:
            z[0] = _lengthened(self._shift, z[0])
            z[1] = -z[0]
        if self._mirrored:
            place = self._mirror_place()
            longer = float(torch.linalg.vector_norm(self._mirror)) > math.sqrt(self.dimension)
            z[place] = _lengthened(self._mirror, z[place]) if longer else self._mirror.float()
        return z

    @one_torch_thread()
    def tell(self, returns: Returns) -> None:
        if self._drawn is None:
            raise RuntimeError("tell: ask() first; a generation is told once")
        z, y = self._drawn
        ranking = rank(returns, self._popsize, self._seed, self._generation)
        weights = torch.empty_like(self._weights)
        weights[torch.from_numpy(ranking.order).to(self._device)] = self._weights
        worst = int(ranking.order[-1])
        # Backwards and forwards again would teach nothing new.
        mirrors = self._popsize < _MIRRORED_BELOW and not (self._mirrored and worst == self._mirror_place())
        self._mirror = -z[worst].double() if mirrors else torch.zeros_like(self._mirror)
        path_length = self._update(z, y, weights)
        self._adapt_sigma(path_length, ranking)
        self._drawn, self._mirrored, self.last_ranking = None, mirrors, ranking
        self._generation += 1

    def _mirror_place(self) -> int:
        """Return the mirrored candidate's place: the first after the test steps."""
        return 2 if self._test_steps else 0

    def _update(self, z: Tensor, y: Tensor, weights: Tensor) -> float:
        """Move the mean, the paths and C; the length of the step size's path."""
        p, D = self._parameters, self.dimension
        parents = weights.clamp(min=0.0)
        z_mean, y_mean = ((parents.to(each.dtype) @ each).double() for each in (z, y))
        self._mean = self._mean + self._sigma * y_mean

        self._sigma_path = (1 - p.cs) * self._sigma_path + math.sqrt(p.cs * (2 - p.cs) * p.mueff) * z_mean
        length = float(torch.linalg.vector_norm(self._sigma_path))
        # A long path means that σ is still far too small: C must not learn the direction meanwhile.
        settled = length**2 / (1 - (1 - p.cs) ** (2 * (self._generation + 1))) < D * (2 + 4 / (D + 1))
        path = (1 - p.cc) * self._path
        if settled:
            path = path + math.sqrt(p.cc * (2 - p.cc) * p.mueff) * z_mean

        c1_kept = p.c1 if settled else p.c1 * (1 - p.cc * (2 - p.cc))
        decay = 1 - c1_kept - p.cmu * float(p.weights.sum())
        if not self._separable:
            # However long a candidate's step, what it takes away leaves C positive definite; a diagonal is so anyway.
            squares = (z * z).sum(dim=1).double()
            weights = torch.where(weights < 0, weights * D / squares.clamp(min=1e-9), weights)
        rows = torch.cat([z, path.float().unsqueeze(0)])
        shares = torch.nn.functional.pad(p.cmu * weights, (0, 1), value=p.c1)
        carried = torch.stack([path, z_mean, self._mirror])
        self._path, self._shift, self._mirror = self._shape.learn(decay, rows, shares, carried)
        return length

    def _adapt_sigma(self, path_length: float, ranking: Ranking) -> None:
        p, D, before = self._parameters, self.dimension, self._sigma
        if self._test_steps:
            if self._generation > 0:
                forward, backward = (int((ranking.order == candidate).argmax()) for candidate in (0, 1))
                better = (backward - forward) / (self._popsize - 1)
                self._trend += _TEST_STEPS_MEMORY * (math.copysign(math.sqrt(abs(better)), better) - self._trend)
            self._sigma *= math.exp(self._trend / p.test_damps)
        else:
            expected = math.sqrt(D) * (1 - 1 / (4 * D) + 1 / (21 * D**2))
            self._sigma *= math.exp(min(1.0, p.cs / p.damps * (path_length / expected - 1)))

        greatest = self._shape.greatest_std()
        spread = self._sigma * greatest
        held = min(held_std(spread, self._first_sigma), self._sigma_max)
        if held != spread:
            self._sigma = held / greatest
        self._mirror = self._mirror * (before / self._sigma)  # the same step as it was, in steps of now
        self._balance(greatest)

    def _balance(self, greatest: float) -> float:
        """Let σ take over what L's longest row has of more than 2^±40, and give that power of two back.

        A search that is done goes on shrinking C while σ is held, and float32 steps of a factor below 1e-38 are zero.
        """
        scale = surplus(greatest, bits=40)
        if scale != 1.0:
            self._shape.shrink(scale)
            self._sigma *= scale
        return scale

    def state(self) -> State:
        tensors = {"mean": self._mean, "sigma_path": self._sigma_path, "path": self._path, "shift": self._shift}
        tensors["mirror"] = self._mirror
        tensors |= {f"shape.{name}": tensor for name, tensor in self._shape.state().items()}
        values = {
            "kind": "batched",
            "layout": _LAYOUT,
            "separable": self._separable,
            "device": str(self._device),
            "popsize": self._popsize,
            "seed": self._seed,
            "sigma": self._sigma,
            "sigma_max": None if math.isinf(self._sigma_max) else self._sigma_max,
            "first_sigma": self._first_sigma,
            "trend": self._trend,
            "mirrored": self._mirrored,
            "generation": self._generation,
        }
        return {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}, values

    @classmethod
    def from_state(cls, tensors: dict[str, Tensor], values: dict[str, Any]) -> BatchedCMAES:
        """The optimiser whose ``state()`` this was, ready for its next ``ask``.

        Raises RunMismatchError for a state of another version's making.
        """
        if (layout := values.get("layout", 1)) != _LAYOUT:
            raise RunMismatchError(
                f"the search was begun by another version of wm_engine, whose states have layout {layout}; this one "
                f"reads {_LAYOUT}. Go on with that version, or begin anew."
            )
        variant = "separable" if values["separable"] else "full"
        # Its step sizes may have gone beyond what a search may begin with.
        restored = cls(
            tensors["mean"], 1.0, values["popsize"], values["seed"], variant=variant, device=values["device"],
            sigma_max=math.inf if values.get("sigma_max") is None else values["sigma_max"],
        )  # fmt: skip
        restored._first_sigma, restored._sigma = values["first_sigma"], values["sigma"]
        restored._trend, restored._generation = values["trend"], values["generation"]
        restored._mirrored = values["mirrored"]
        # Copies, because the alignment of what a file was read into could change the last bits of matrix products.
        parts = {name: tensor.to(restored._device, copy=True) for name, tensor in tensors.items()}
        restored._sigma_path, restored._path = parts["sigma_path"], parts["path"]
        restored._shift, restored._mirror = parts["shift"], parts["mirror"]
        if values["separable"]:
            restored._shape = _DiagonalShape(parts["shape.stds"])
        else:
            restored._shape = _FullShape(
                parts["shape.factor"],
                restored._parameters.gap,
                parts["shape.rows"],
                parts["shape.weights"],
                float(parts["shape.decay"]),
            )
        restored._balance(restored._shape.greatest_std())
        return restored


def _lengthened(direction: Tensor, noise: Tensor) -> Tensor:
    """The direction, f64 [D], as long as the noise, f32 [D], in its place."""
    return (direction * (torch.linalg.vector_norm(noise) / torch.linalg.vector_norm(direction))).float()
