"""The command line's beginning: what libraries read once, when they are loaded, is said here before they are."""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping, Sequence


def wait_passively(environment: MutableMapping[str, str]) -> None:
    """Let OpenMP's threads sleep while they wait for each other, unless the user's environment says otherwise.

    By default they spin: where another process keeps a core busy, V's encoder then runs ten times slower on two threads
    than on one (docs/machines.md). libgomp reads the policy once, when torch is loaded. Processes that this one starts
    inherit it.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & environment.keys():
        environment["OMP_WAIT_POLICY"] = "PASSIVE"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; see :func:`wm_engine.cli.main` for the exit status."""
    wait_passively(os.environ)
    from wm_engine.cli import main as run

    return run(arguments)


if __name__ == "__main__":
    sys.exit(main())
