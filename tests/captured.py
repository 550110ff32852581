"""A stand-in for CUDA's graphs and streams, for the host's half of the dream's kernels where no GPU is.

What is captured is kept instead of done, and done at each replay, when all memory that a launch was given must still be
held. Other work is done at once; but each stream knows what it has waited for, and work on one that has not waited for
all that was done before is a race.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from wm_engine.kernels import launch


class Stream:
    """Comes after the first ``after`` pieces of work."""

    def __init__(self, device: Any = None) -> None:
        self.after = 0

    def wait_event(self, event: Event) -> None:
        self.after = max(self.after, event.after)


class Event:
    """Comes after the first ``after`` pieces of work; after none until it is recorded."""

    after = 0

    def record(self, stream: Stream) -> None:
        self.after = stream.after


class Graph:
    """What was captured, in order."""

    def __init__(self, device: Device) -> None:
        self._device, self.work = device, list[Callable[[], Any]]()

    def replay(self) -> None:
        self._device.replays += 1
        for do in self.work:
            self._device.work(do)


class Device(TorchDispatchMode):
    """The device. While it is entered, and in captures, torch's operations that write are work too.

    stream : the current one; captures, replays : how many there were; run_kernel : does a launch
    marked : memory, by its address, with a stream that uses it
    """

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.stream, self.run_kernel = Stream(), launch.launch
        self.captures = self.replays = 0
        self.marked: set[tuple[int, Stream]] = set()
        self._done = 0
        self._graph: Graph | None = None
        patch.setattr(launch, "has_graphs", lambda device: True)
        patch.setattr(launch, "launch", self._launched)
        patch.setattr(torch.cuda, "CUDAGraph", partial(Graph, self))
        patch.setattr(torch.cuda, "graph", self._capture)
        patch.setattr(torch.cuda, "Stream", Stream)
        patch.setattr(torch.cuda, "Event", Event)
        patch.setattr(torch.cuda, "current_stream", lambda: self.stream)
        patch.setattr(Tensor, "record_stream", lambda value, stream: self.marked.add((value.data_ptr(), stream)))

    def work(self, do: Callable[[], Any]) -> None:
        if self._graph is not None:
            self._graph.work.append(do)
            return
        if self.stream.after < self._done:
            raise RuntimeError("a race: work on a stream that has not waited for what was done on another")
        do()
        self._done += 1
        self.stream.after = self._done

    def _launched(self, kernel: Any, grid: tuple[int, ...], values: dict[str, Any], settings: launch.Settings) -> None:
        lent = {name: weakref.ref(value) if isinstance(value, Tensor) else value for name, value in values.items()}

        def do() -> None:
            given = {name: value() if isinstance(value, weakref.ref) else value for name, value in lent.items()}
            gone = [name for name, value in given.items() if value is None]
            if gone:
                raise RuntimeError(f"a launch was replayed whose {', '.join(gone)} nobody holds any more")
            self.run_kernel(kernel, grid, given, settings)

        self.work(do)

    @contextmanager
    def _capture(self, graph: Graph, stream: Stream, capture_error_mode: str) -> Iterator[None]:
        self._graph, self.captures = graph, self.captures + 1
        try:
            with self:
                yield
        finally:
            self._graph = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        do = partial(func, *args, **kwargs or {})
        if any(each.alias_info is not None and each.alias_info.is_write for each in func._schema.arguments):
            self.work(do)
            return args[0]
        if self._graph is not None and not func.is_view:
            raise RuntimeError(f"{func.name()} allocates or waits in a capture")
        return do()
