"""Where the C++ core is missing: the reason, the backend's refusal, and a test run that requires it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from world import World

from wm_engine.core import core
from wm_engine.dream.cpp_backend import CppBackend
from wm_engine.ops import mdn, registered


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No core can be imported."""
    monkeypatch.setitem(sys.modules, "wm_engine._C", None)
    core.cache_clear()
    yield
    core.cache_clear()


@pytest.mark.usefixtures("missing")
def test_a_missing_core_says_why() -> None:
    there, reason = CppBackend.available()
    assert not there
    assert "was not built" in reason
    assert "C++17 compiler" in reason
    assert CppBackend.describe() == reason
    with pytest.raises(RuntimeError, match="backend 'cpp' is not available here: the C\\+\\+ core was not built"):
        World().got("cpp", "fp32", episodes=1, max_steps=1)


@pytest.mark.usefixtures("missing")
def test_the_mixtures_operators_do_without() -> None:
    logits, means, target = torch.randn(3, 1, 2), torch.randn(3, 4, 2), torch.randn(3, 4)
    assert torch.equal(registered.mdn_nll(logits, means, means, target), mdn.mdn_nll(logits, means, means, target))


WITHOUT_CORE = "import sys; sys.modules['wm_engine._C'] = None; import pytest; sys.exit(pytest.main(sys.argv[1:]))"


def test_a_run_that_requires_the_core_fails_without_it() -> None:
    tests = Path(__file__).parent
    command = [sys.executable, "-c", WITHOUT_CORE, "-q", "-p", "no:cacheprovider", str(tests / "test_native.py")]
    environment = os.environ | {"WM_ENGINE_REQUIRE_CPP": "1"}
    run = subprocess.run(
        command, env=environment, cwd=tests.parent, capture_output=True, text=True, timeout=120, check=False
    )
    output = run.stdout + run.stderr
    assert run.returncode == 1, output
    assert "WM_ENGINE_REQUIRE_CPP is set, but the C++ core was not built" in output
