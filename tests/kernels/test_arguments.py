"""The dream's kernels' arguments: one order in all of them, and constants in groups that Triton can tell apart."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest

pytest.importorskip("triton", minversion="3.2", reason="Triton 3.2 or newer is not installed")
from wm_engine.kernels import dream
from wm_engine.kernels.constants import Switches

KERNELS = (dream.rollout_kernel, dream.act_kernel, dream.advance_kernel, dream.settle_kernel)
PLAIN = Switches(GREEDY=False, SAMPLE_DONE=True, SURVIVAL=False, COMMON=True, RECORD=False, STRIDED=False)


def test_arguments_have_one_order() -> None:
    for one, other in combinations([kernel.arg_names for kernel in KERNELS], 2):
        assert [name for name in one if name in other] == [name for name in other if name in one]


def test_constants_are_plain_numbers_in_the_interpreter_and_triton_s_when_compiled() -> None:
    assert PLAIN.value.COMMON is True
    assert type(PLAIN.COMMON).__name__ == "constexpr"
    assert PLAIN.COMMON.value is True


def test_groups_are_told_apart_by_what_they_hold() -> None:
    same, other = replace(PLAIN), replace(PLAIN, RECORD=True)
    assert (same, hash(same), repr(same)) == (PLAIN, hash(PLAIN), repr(PLAIN))
    assert other != PLAIN
    assert repr(other) != repr(PLAIN)
    # Up to Triton 3.8 functions' names are made of it.
    assert repr(PLAIN).isidentifier()
