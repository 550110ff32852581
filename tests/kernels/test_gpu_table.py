"""bench/gpu.py where no GPU is: it says so, and its table can be written."""

from __future__ import annotations

import pytest
import torch

from wm_engine.bench import gpu


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 2
    assert "torch finds none here" in capsys.readouterr().err


def test_the_table_holds_what_was_measured() -> None:
    where = {"rival": "triton persistent bf16", "rollouts": 4096, "hidden": 256, "mixture": "shared"}
    measured = {"steps_per_second": 2.5e6, "of_matrix_ceiling": 0.125, "bytes_per_rollout": 4000.0}
    op = {"op": "sample", "mixture": "shared", "of_copy": 0.5, "times_torch": 3.0}
    result = {
        "provenance": {"device": "a GPU", "commit": "abc"},
        "ceilings": {"bf16_macs_per_second": 1e14, "copy_bytes_per_second": 4e12},
        "parity": [{"rival": "triton steps bf16", "passed": False, "reason": "off"}],
        "absent": {"JAX": "not installed"},
        "speeds": [where | measured, where | {"error": "out of memory"}],
        "mixture": [op],
    }
    table = gpu.markdown(result)
    for row in (
        "device a GPU, commit abc",
        "200 TFLOP/s in bf16, 4.00 TB/s copied",
        "| triton steps bf16 | no | off |",
        "| JAX | - | not installed |",
        "| 256 | shared | 4096 | triton persistent bf16 | 2.5 | 12.5% | 4000 |",
        "| 256 | shared | 4096 | triton persistent bf16 | out of memory | | |",
        "| sample | shared | 50% | 3.0 |",
    ):
        assert row in table
