"""What the dream's Triton kernels have to compute and to move in a whole dream: the formulas behind their roofline."""

from __future__ import annotations

from .costs import WEIGHT_BYTES, Cost
from .workload import Setup

DREAM_KERNELS = ("rollout_kernel", "advance_kernel", "settle_kernel")
"""Their names in ``wm_engine.kernels.dream``, which the profiler gives them too."""

FORMS = {"persistent": ("rollout_kernel",), "steps": ("advance_kernel", "settle_kernel")}
"""Which of them each form of the dream launches: the persistent one once, the others once a step."""

_ACTED, _ALIVE, _BOOKS = 4, 4, 12


def form_cost(form: str, setup: Setup, precision: str) -> Cost:
    """What a form of FORMS has to compute and to move in a whole dream of a setup that fits in memory."""
    launches, lived = 1 if form == "persistent" else setup.workload.steps, setup.lived_steps()
    costs = [kernel_cost(kernel, setup, precision, launches, lived) for kernel in FORMS[form]]
    known = [cost for cost in costs if cost is not None]
    return Cost(sum(cost.flops for cost in known), sum(cost.bytes for cost in known))


def kernel_cost(kernel: str, setup: Setup, precision: str, launches: int, lived: int) -> Cost | None:
    """Flops and bytes of all launches of a kernel in a dream together; None for a kernel that is not the dream's.

    Flops are those of M's and C's products in their dense form, for the steps that rollouts live. Bytes are the least
    that must move between launches: weights once a launch, and of every rollout what a launch is given and what it
    leaves. Of a kernel that takes all steps this is what a dream begins with and what it ends with; its state passes
    through scratch memory too, which does not have to be, and is not counted. With w bytes a weight:

    - ``advance_kernel``, a step: gates and controller; reads h ``wH``, c ``4H``, z ``4Z``, its share of the controller
      ``4D/E``; writes h, c and whether the action was finite ``4``
    - ``settle_kernel``, a step: the head; reads h ``wH`` and that flag; writes z ``4Z``; reads and writes whether the
      rollout lives ``4`` and its return, length and failure ``12``
    - ``rollout_kernel``, all steps: reads h, c, z of every rollout and every controller; writes its ``12`` bytes

    Parameters
    ----------
    kernel : of DREAM_KERNELS
    launches : how many times it was launched; a larger population than fits in memory takes one for each block
    lived : steps that the rollouts lived together
    """
    work = setup.workload
    macs, w = work.macs_per_step(), WEIGHT_BYTES[precision]
    head = setup.m.layout.size
    gate_weights = w * macs["gates"] + 4 * 4 * work.hidden
    head_weights = w * macs["head"] + 4 * head
    controller = 4 * setup.spec.num_params
    state = (w + 4) * work.hidden
    if kernel == "advance_kernel":
        each = 2 * state + 4 * work.latent + controller / work.episodes + _ACTED
        return Cost(2.0 * lived * (macs["gates"] + macs["controller"]), launches * gate_weights + lived * each)
    if kernel == "settle_kernel":
        each = w * work.hidden + 4 * work.latent + _ACTED + 2 * (_ALIVE + _BOOKS)
        return Cost(2.0 * lived * macs["head"], launches * head_weights + lived * each)
    if kernel == "rollout_kernel":
        moved = work.rollouts * (state + 4 * work.latent + _BOOKS) + work.candidates * controller
        return Cost(2.0 * lived * sum(macs.values()), launches * (gate_weights + head_weights) + moved)
    return None
