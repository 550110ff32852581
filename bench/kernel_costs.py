"""What the dream's Triton kernels have to compute and to move in a whole dream: the formulas behind their roofline."""

from __future__ import annotations

from .costs import WEIGHT_BYTES, Cost
from .workload import Setup

DREAM_KERNELS = ("rollout_kernel", "act_kernel", "advance_kernel", "settle_kernel")
"""Their names in ``wm_engine.kernels.dream``, which the profiler gives them too."""

FORMS = {"persistent": ("rollout_kernel",), "steps": ("act_kernel", "advance_kernel", "settle_kernel")}
"""Which of them each form of the dream launches: the last two once a step, the others once."""

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

    - ``act_kernel``, once: the first step's actions; reads h ``wH``, z ``4Z`` and every controller; writes the gates'
      inputs ``w(Z+A)`` and whether the action was finite ``4``
    - ``advance_kernel``, a step: gates; reads h ``wH``, c ``4H`` and the inputs; writes h and c
    - ``settle_kernel``, a step: the head and the next step's actions, of which nobody lives the last; reads h ``wH``,
      the flag and its share of the controller ``4D/E``; writes z ``4Z``, inputs and flag; reads and writes whether the
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
    state, inputs = (w + 4) * work.hidden, w * (work.latent + work.action)
    acting = w * work.hidden + 4 * work.latent + inputs + controller / work.episodes + _ACTED
    if kernel == "act_kernel":
        return Cost(2.0 * work.rollouts * macs["controller"], work.rollouts * acting)
    if kernel == "advance_kernel":
        return Cost(2.0 * lived * macs["gates"], launches * gate_weights + lived * (2 * state + inputs))
    if kernel == "settle_kernel":
        each = acting + _ACTED + 2 * (_ALIVE + _BOOKS)
        return Cost(2.0 * lived * (macs["head"] + macs["controller"]), launches * head_weights + lived * each)
    if kernel == "rollout_kernel":
        moved = work.rollouts * (state + 4 * work.latent + _BOOKS) + work.candidates * controller
        return Cost(2.0 * lived * sum(macs.values()), launches * (gate_weights + head_weights) + moved)
    return None
