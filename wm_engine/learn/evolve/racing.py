"""Racing: candidates whose place is clear dream fewer episodes.

Maron & Moore 1997 ("The Racing Algorithm") stop a candidate once its confidence interval parts from the others'. For an
evolution strategy it is not the value that matters but the rank, and not every rank alike: CMA-ES weighs rank i by
log((P + 1)/2) - log(i), so ranks 1 and 3 differ as much as 20 and 60. A candidate's place is clear once its rank is
known to within a factor, the same for all ranks: most of a population is settled early, the best few dream on.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from wm_engine.checks import check_int

# Half the width of a candidate's interval, in standard errors; and how far apart, as a share of the log-ranks' whole
# range log P, the ends of its rank may lie. Narrower intervals for less clear places lost a tenth of a point at the end
# on the task of `bench.evolution`, wider ones cost twice the steps (TUNING.md).
_CONFIDENCE, _CLEAR = 0.5, 0.5


def race_rounds(episodes: int, first: int) -> list[range]:
    """The episodes of each round: ``first`` for all candidates, then as many again as there were before.

    ValueError where the first round would be the last.
    """
    check_int("episodes", episodes, least=1)
    if check_int("first", first, least=2) >= episodes:
        raise ValueError(f"first must be less than episodes ({episodes}), or nothing is raced, but was {first}")
    edges = [0, first]
    while edges[-1] < episodes:
        edges.append(min(2 * edges[-1], episodes))
    return [range(a, b) for a, b in itertools.pairwise(edges)]


class Race:
    """The returns of P candidates over E episodes with common random numbers, as far as they were dreamt.

    A return is taken as the sum of the candidate's worth, the episode's effect, the same for all, and noise. Sums over
    different episodes are made comparable by taking the effects out; what was not dreamt is filled in from them.
    """

    def __init__(self, candidates: int, episodes: int) -> None:
        self._returns = torch.full((candidates, episodes), torch.nan, dtype=torch.float64)
        self._effect = torch.zeros(episodes, dtype=torch.float64)
        self._worth = torch.zeros(candidates, dtype=torch.float64)
        self._failed = torch.zeros(candidates, dtype=torch.bool)
        self._done = 0

    def add(self, candidates: Tensor, returns: Tensor) -> None:
        """The next episodes' returns [n, e] of the given candidates, int64 [n]. A non-finite one ends its race."""
        episodes = slice(self._done, self._done + returns.shape[1])
        returns = returns.double()
        finite = torch.isfinite(returns).all(dim=1)
        self._failed[candidates[~finite]] = True
        candidates, returns = candidates[finite], returns[finite]
        self._returns[candidates, episodes] = returns
        if len(candidates):
            self._effect[episodes] = (returns - self._worth[candidates].unsqueeze(1)).mean(dim=0)
        self._done = episodes.stop
        self._worth = torch.nan_to_num((self._returns - self._effect).nanmean(dim=1))

    def unclear(self) -> Tensor:
        """The candidates, int64 [n], whose rank is not known to within the factor P^0.5."""
        running = torch.isfinite(self._returns[:, max(self._done - 1, 0)])
        entered = ~self._failed
        noise = self._returns[:, : self._done] - self._effect[: self._done] - self._worth.unsqueeze(1)
        count = torch.isfinite(noise).sum(dim=1).clamp(min=1)
        variance = torch.nan_to_num(noise).square().sum(dim=1) / (count - 1).clamp(min=1)
        # A few episodes tell a candidate's own variance badly; everyone's together steadies it.
        variance = 0.5 * (variance + variance[entered].mean())
        error = _CONFIDENCE * (variance / count).sqrt()
        low, high = self._worth - error, self._worth + error
        # Of the others, those surely better begin above one's end, and those surely worse end below one's beginning.
        rivals = int(entered.sum())
        best = 1 + rivals - torch.searchsorted(low[entered].sort().values, high, right=True)
        worst = rivals - torch.searchsorted(high[entered].sort().values, low)
        apart = (worst.clamp(min=1).double() / best).log()
        allowed = _CLEAR * torch.tensor(float(len(self._worth))).log()
        return torch.nonzero(running & entered & (apart > allowed)).squeeze(1)

    @property
    def dreamt(self) -> Tensor:
        """Mask of the returns that were dreamt and not filled in, bool [P, E]."""
        return torch.isfinite(self._returns)

    def result(self) -> Tensor:
        """Returns float32 [P, E]: as dreamt, or filled in; NaN for a candidate that failed."""
        expected = self._worth.unsqueeze(1) + self._effect
        filled = torch.where(self.dreamt, self._returns, expected)
        filled[self._failed] = torch.nan
        return filled.float()
