"""What a step of the dream's compiled kernels asks of a GPU: ``python tests/instructions.py sm_90``.

Counted on the emulated GPU (tests/ptx) for a tile of 64 rollouts and one step at the paper's size in bfloat16: warps'
instructions as PTX has them, and with the assembler's expansions reckoned; their special functions; each warp's
barriers; and what is copied asynchronously, in KB. The persistent kernel's beginning and end cancel out; of the
per-step form all launches of one step are counted, its kernel for the first actions too.
"""

from __future__ import annotations

import os
import sys
from collections import Counter

os.environ["TRITON_INTERPRET"] = "0"

import emulated
import numpy as np
import torch

from wm_engine import MDNRNN, ControllerSpec, Starts
from wm_engine.dream.triton_backend import TritonBackend
from wm_engine.dream.types import RolloutPlan

# Seen in what cuobjdump shows of small kernels for sm_90; all others count as one.
_EXPANSIONS = {
    "mov": 0.2, "cvt.u64.u32": 0.0, "cvt.s64.s32": 0.5, "ex2.approx.f32": 4.0, "div.full": 8.0, "add.s64": 1.5,
    "mul.lo.s64": 4.0, "mad.lo.s64": 5.0, "shl.b64": 1.5, "ld.param": 0.0,
}  # fmt: skip
_SPECIAL = ("ex2", "div", "rsqrt", "sqrt", "rcp")
_ROLLOUTS = 64


def counts(form: str, mixture: str, steps: int) -> Counter[str]:
    """Of a whole dream of so many steps."""
    emulated.TALLIES.clear()
    m = MDNRNN(mixture=mixture)
    m.state_dict()["head.bias"][-1] = -20.0  # nobody's episode ends
    backend = TritonBackend(m, ControllerSpec(), torch.device("cpu"), "bf16", form)
    starts = Starts(*(torch.zeros(1, n) for n in (32, 256, 256)))
    plan = RolloutPlan(episodes=_ROLLOUTS // 4, max_steps=steps, seed=1, done="threshold")
    backend.rollout(torch.zeros(4, 867), starts, plan)
    found: Counter[str] = Counter()
    for program, tally in emulated.TALLIES.values():
        for instruction, warps in zip(program.code, tally.tolist(), strict=True):
            name = ".".join(instruction.words)
            found["ptx"] += warps
            found["reckoned"] += warps * next((x for start, x in _EXPANSIONS.items() if name.startswith(start)), 1.0)
            found["special"] += warps * (instruction.words[0] in _SPECIAL)
            found["barriers"] += warps * (name == "bar.sync") / (program.threads // 32)
            if name.startswith("cp.async.c") and len(instruction.operands) > 2:
                found["copied"] += warps * 32 * instruction.operands[2].value / 1024
    return found


def main(target: str) -> None:
    """Print a row for each form and mixture."""
    emulated.install(target)
    torch.manual_seed(0)
    names = ("ptx", "reckoned", "special", "barriers", "copied")
    print(f"{'form':<12}{'mixture':<9}" + "".join(f"{name:>11}" for name in names))
    for form in ("persistent", "steps"):
        for mixture in ("shared", "per_dim"):
            one = counts(form, mixture, 1)
            if form == "persistent":
                two = counts(form, mixture, 2)
                one = Counter({name: two[name] - one[name] for name in two})
            print(f"{form:<12}{mixture:<9}" + "".join(f"{np.round(one[name]):>11,.0f}" for name in names))


if __name__ == "__main__":
    main(*sys.argv[1:])
