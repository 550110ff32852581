"""Keeps the source folder from shadowing the installed package, and gives the modules of tests/ to all tests."""

from __future__ import annotations

import importlib.util
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent

# `python -m pytest` puts the current folder on the path, where wm_engine/ stands without the built core and kernels.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != ROOT]
if importlib.util.find_spec("wm_engine") is None:
    raise SystemExit("wm_engine is not installed: run `pip install '.[test]'` first, then `pytest`")
sys.path.insert(0, str(TESTS))

# A shell's background jobs begin with the interrupt ignored, and hand that down to the processes that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Read when Triton is imported: its kernels run in its interpreter, on the CPU. TRITON_INTERPRET=0 tests them on a GPU,
# WM_ENGINE_EMULATE=sm_90 as compiled for a GPU that is emulated.
if "WM_ENGINE_EMULATE" in os.environ:
    os.environ["TRITON_INTERPRET"] = "0"
    from emulated import install

    install(os.environ["WM_ENGINE_EMULATE"])
os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Folders are shared out among at most four processes, by file; files that are named run in this one."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    named = any(Path(argument.split("::")[0]).is_file() for argument in config.args)
    return 0 if named or cpus == 1 else min(cpus, 4)


def pytest_sessionstart() -> None:
    """Where the C++ core is required, its absence fails the run: the tests that need it would only be skipped."""
    from wm_engine.core import core

    module, reason = core()
    if module is None and os.environ.get("WM_ENGINE_REQUIRE_CPP", "0") not in ("", "0"):
        pytest.exit(f"WM_ENGINE_REQUIRE_CPP is set, but {reason}", returncode=1)


@pytest.fixture(autouse=True, scope="session")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Leave the repository: `python -c`, as tests start it, would find the source folder in the current one."""
    os.chdir(tmp_path_factory.mktemp("elsewhere"))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """One torch thread, but where a test takes more: threads wait for each other by spinning, and on busy cores small
    tensors take minutes. Processes that tests start, and the core's dreams, have as many as ever."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def threads_kept() -> Iterator[None]:
    """Torch and NumPy's BLAS have as many threads afterwards as before."""
    import torch

    from wm_engine.machine import describe_blas, use_threads

    torchs, (_, blas) = torch.get_num_threads(), describe_blas()
    yield
    use_threads(blas)
    torch.set_num_threads(torchs)


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Call the command line as a shell would: status, output, errors; no traceback; logging is as before afterwards."""
    from wm_engine import cli

    logger = logging.getLogger("wm_engine")
    handlers, level = list(logger.handlers), logger.level

    def call(*arguments: str) -> tuple[int, str, str]:
        status = cli.main(list(arguments))
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return status, captured.out, captured.err

    yield call
    logger.handlers[:] = handlers
    logger.setLevel(level)
