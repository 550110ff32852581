"""What tells machines apart that would give other bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from wm_engine.cluster.compatibility import check_compatibility, hash_sources, machine_signature
from wm_engine.errors import WMEngineError

FP32, BF16 = "bits of V and M in fp32", "bits of V and M in bf16"


def elsewhere(**variables: str) -> dict[str, Any]:
    """The signature that another process on this machine gives it."""
    code = "import json; from wm_engine.cluster.compatibility import machine_signature as m; print(json.dumps(m()))"
    environment = os.environ | variables
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)  # type: ignore[no-any-return]


def test_another_process_of_this_machine_has_the_same_signature() -> None:
    """Whatever its number of threads is, and this one's."""
    check_compatibility(elsewhere(OMP_NUM_THREADS="1"), machine_signature(), ("fp32", "bf16"))


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="needs an x86-64 processor with AVX2"
)
@pytest.mark.parametrize("variable", ["ONEDNN_MAX_CPU_ISA=SSE41", "MKL_CBWR=COMPATIBLE", "ATEN_CPU_CAPABILITY=default"])
def test_other_kernels_of_torch_are_told_apart(variable: str) -> None:
    """What V and M compute with, each by itself: oneDNN's convolutions, MKL's products, torch's own loops."""
    name, _, value = variable.partition("=")
    theirs = elsewhere(**{name: value})
    with pytest.raises(
        WMEngineError, match=f"would give other bits: {FP32} {theirs[FP32]} there, {machine_signature()[FP32]} here"
    ):
        check_compatibility(theirs, machine_signature(), ("fp32",))


def test_a_signature_draws_no_random_numbers_and_leaves_the_threads() -> None:
    before = torch.get_rng_state(), torch.get_num_threads()
    machine_signature()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.get_num_threads() == before[1]


def test_bits_in_a_precision_that_nobody_uses_do_not_matter() -> None:
    ours = machine_signature()
    theirs = ours | {BF16: "others"}
    check_compatibility(theirs, ours, ("fp32",))
    with pytest.raises(WMEngineError, match=f"{BF16} others there"):
        check_compatibility(theirs, ours, ("fp32", "bf16"))


@pytest.mark.parametrize("missing", ["there", "here"])
def test_a_package_that_one_side_lacks_is_named(missing: str) -> None:
    sides = {"there": machine_signature() | {"envpool": "1.2.5"}, "here": machine_signature() | {"envpool": "1.2.5"}}
    del sides[missing]["envpool"]
    with pytest.raises(WMEngineError, match=rf"envpool .*missing {missing}"):
        check_compatibility(sides["there"], sides["here"], ("fp32",))


def test_two_commits_are_told_apart_and_two_ways_to_install_one_are_not(tmp_path: Path) -> None:
    def tree(name: str, kernels: str, step: str = "x = 1\n") -> str:
        package = tmp_path / name / "wm_engine"
        files = {package / "a.py": "", package / "bench/b.py": name, tmp_path / name / kernels / "step.py": step}
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return hash_sources(package, [tmp_path / name / kernels])

    assert tree("installed", "wm_engine/kernels") == tree("editable", "kernels")
    assert tree("installed", "wm_engine/kernels") != tree("changed", "kernels", "x = 2\n")
