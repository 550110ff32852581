"""What a dream step has to compute and to move, phase by phase: the formulas behind GFLOP/s and the roofline."""

from __future__ import annotations

from dataclasses import dataclass

from .workload import Workload

WEIGHT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int8": 1}


@dataclass(frozen=True)
class Cost:
    """Of one phase, for one rollout and step: multiply-adds counted as two flops, and bytes to and from caches."""

    flops: float
    bytes: float


def phase_costs(work: Workload, precision: str, rows: float) -> dict[str, Cost]:
    """Costs of the phases that multiply matrices, by the names that the core gives them.

    A tile of ``rows`` rollouts reads each weight once a step, so a rollout's share of the weights is 1/rows. With w
    bytes a weight and float32 states:

    - controller: ``2 A (Z+H)`` flops; its own parameters ``4 A (Z+H)`` and the features ``4 (Z+H)`` bytes
    - gates (and cell): ``2 · 4H (Z+A+H)`` flops; weights ``w 4H (Z+A+H) / rows``, inputs ``4 (Z+A+H)``, c read and
      written and h written ``12 H`` bytes
    - reward_and_end: ``2 H R`` flops, R = 2 rows of the head (2+K where ``shared``: the logits); weights
      ``4 H R / rows``, h ``4 H``, outputs ``4 R`` bytes
    - mixture: ``2 H (N + 2Z)`` flops, N = ZK logits where ``per_dim`` and none (counted above) where ``shared``: of the
      components that were not chosen, means and deviations are never computed; weights ``w H N / rows`` and, since each
      component is read by about rows/K rollouts, ``w H 2Z K / rows``, h ``4 H``, outputs ``4 (N + 2Z)`` bytes
    """
    z, a, h, k = work.latent, work.action, work.hidden, work.mixtures
    weight = WEIGHT_BYTES[precision]
    shared = work.mixture == "shared"
    control = 2 + k if shared else 2
    logits, chosen = 0 if shared else z * k, 2 * z
    readers = max(1.0, rows / k)
    return {
        "controller": Cost(2 * a * (z + h), 4 * a * (z + h) + 4 * (z + h)),
        "gates": Cost(8 * h * (z + a + h), weight * 4 * h * (z + a + h) / rows + 4 * (z + a + h) + 12 * h),
        "reward_and_end": Cost(2 * h * control, 4 * h * control / rows + 4 * h + 4 * control),
        "mixture": Cost(
            2 * h * (logits + chosen),
            weight * h * (logits / rows + chosen / readers) + 4 * h + 4 * (logits + chosen),
        ),
    }


def step_cost(work: Workload, precision: str, rows: float) -> Cost:
    """All phases of :func:`phase_costs` together."""
    costs = phase_costs(work, precision, rows).values()
    return Cost(sum(cost.flops for cost in costs), sum(cost.bytes for cost in costs))
