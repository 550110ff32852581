"""A fleet of Ray actors: lost ones are replaced, hung ones ended, and their tasks done again.

Ray keeps the processes and moves the bytes. Which task goes where, how long it may take and what a loss means is
decided here, because a training must end with a clear message and never wait for ever.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field

from wm_engine import kernels
from wm_engine.distributed.kinship import check_kinship, kinship
from wm_engine.errors import MissingDependencyError, WMEngineError
from wm_engine.fleet import Recipe
from wm_engine.machine import use_threads
from wm_engine.settings import Section

_log = logging.getLogger(__name__)

# A task that so many workers were lost with is itself what ends them.
_MOST_ATTEMPTS = 3
# So many losses for each worker, with no task finished in between, are no accident.
_MOST_LOSSES = 3
_SECONDS_BETWEEN_SIGNS = 60.0
_SECONDS_TO_ANSWER = 10.0
# Tasks ahead of the oldest unanswered one, for each worker: answers wait for their turn in the driver's memory.
_TASKS_AHEAD = 2
_REMEDY = "Look at the nodes (`ray status`). The same command goes on where this one stopped, with --ray or without."


class ClusterSettings(Section):
    """How the work is spread with --ray. No result follows from it."""

    free: ClassVar[frozenset[str]] = frozenset({"actors", "cpus", "timeout", "start_timeout"})

    actors: int = Field(0, ge=0, description="workers; 0: as many as the cluster has room for")
    cpus: int = Field(0, ge=0, description="CPUs of each; 0: all of the smallest node, shared among its GPUs if any")
    timeout: float = Field(1800.0, gt=0.0, description="seconds until a shard counts as hung and is done elsewhere")
    start_timeout: float = Field(
        300.0, gt=0.0, description="seconds to wait for a first actor, or for a last one's heir"
    )


def _gpu() -> str | None:
    """The model of the GPU that this process may use, and what its kernels are compiled with."""
    if not torch.cuda.is_available():
        return None
    triton = kernels.triton_version() if kernels.missing() is None else None
    return f"{torch.cuda.get_device_name()}, Triton {triton or 'none'}"


class _Worker:
    """What an actor runs."""

    def __init__(self, cpus: int, threads: int) -> None:
        use_threads(threads)
        self._cpus, self._number = cpus, -1
        self._work: Callable[[Any], Any] | None = None

    def kinship(self) -> dict[str, Any]:
        return kinship() | {"GPU": _gpu()}

    def work(self, number: int, recipe: list[Any], task: Any) -> Any:
        """Answer ``task``. The recipe comes as a reference, in a list so that Ray does not fetch it at every call."""
        import ray

        if self._work is None or number != self._number:
            getattr(self._work, "close", lambda: None)()
            self._work, self._number = ray.get(recipe[0]).build(self._cpus), number
        return self._work(task)


@dataclass
class _Actor:
    """An actor and what it is at: starting (no task, a reference), idle (no reference), or at a task."""

    handle: Any
    since: float
    reference: Any
    task: int | None = None

    @property
    def idle(self) -> bool:
        return self.reference is None


class RayFleet:
    """Workers on a Ray cluster, one a GPU where ``device`` is a GPU or some CPUs each.

    address : "auto" for the cluster that this machine belongs to, or HOST:PORT
    device : of the workers; "auto" takes GPUs where the cluster has any
    threads : of torch in each worker. Some of torch's results depend on the number of threads in their last bits, so
        this is the driver's own number, whatever the worker's CPUs
    precisions : that V and M compute in; all machines must give the same bits in these

    Raises MissingDependencyError where Ray is not installed, WMEngineError where there is no cluster or no room in it.
    """

    def __init__(
        self,
        address: str,
        settings: ClusterSettings,
        device: str = "auto",
        threads: int = 1,
        precisions: Collection[str] = ("fp32", "bf16"),
    ) -> None:
        self._ray = _import_ray()
        self._settings, self._threads, self._precisions = settings, threads, precisions
        self._mine = not self._ray.is_initialized()
        if self._mine:
            _connect(self._ray, address)
        self.device = _device(self._ray, device)
        self.workers, self._cpus = _room(_nodes(self._ray), settings, self.device)
        self._recipes: dict[int, tuple[int, Recipe, Any]] = {}
        self._losses = 0
        self._gpus: set[str | None] = set()
        self._actors = [self._start() for _ in range(self.workers)]
        _log.info(
            "ray: %d actors of %d CPUs%s on %d nodes",
            self.workers,
            self._cpus,
            " and a GPU" if self.device == "cuda" else "",
            len(_nodes(self._ray)),
        )

    def close(self) -> None:
        """End the actors, and leave the cluster if this fleet joined it."""
        for actor in self._actors:
            self._ray.kill(actor.handle)
        self._actors = []
        if self._mine and self._ray.is_initialized():
            self._ray.shutdown()

    def map(self, recipe: Recipe, tasks: Sequence[Any]) -> Iterator[Any]:
        """See :class:`wm_engine.fleet.Fleet`.

        Raises WMEngineError where actors are lost again and again, or none starts.
        """
        number, _, reference = self._shared(recipe)
        job = _Job(tasks)
        handed_out = 0
        try:
            while handed_out < len(tasks):
                for actor in self._actors:
                    ahead = handed_out + _TASKS_AHEAD * self.workers
                    if actor.idle and job.waiting and job.waiting[0] < ahead:
                        actor.task = job.waiting.popleft()
                        actor.since = time.monotonic()
                        actor.reference = actor.handle.work.remote(number, [reference], tasks[actor.task])
                self._turn(job)
                while handed_out in job.answers:
                    yield job.answers.pop(handed_out)
                    handed_out += 1
        finally:
            self._abandon()

    def _shared(self, recipe: Recipe) -> tuple[int, Recipe, Any]:
        """A recipe's number, itself, and its place in Ray's object store, where it is put once."""
        if id(recipe) not in self._recipes:
            # Only the newest is kept: stages work one after another, and models can be large.
            self._recipes = {id(recipe): (self._next_number(), recipe, self._ray.put(recipe))}
        return self._recipes[id(recipe)]

    def _next_number(self) -> int:
        return max((number for number, _, _ in self._recipes.values()), default=-1) + 1

    def _turn(self, job: _Job) -> None:
        """Wait for something to happen, and take it in."""
        engaged = [actor for actor in self._actors if not actor.idle]
        references = [actor.reference for actor in engaged]
        # Who is only late in starting is not waited for while others are at work: no node may have room for it.
        clocks = [actor for actor in engaged if actor.task is not None] or engaged
        patience = min(_SECONDS_BETWEEN_SIGNS, *(max(self._left(actor), 0.01) for actor in clocks))
        self._ray.wait(references, num_returns=1, timeout=patience)
        done, _ = self._ray.wait(references, num_returns=len(references), timeout=0)
        for actor in engaged:
            if actor.reference in done:
                self._take(actor, job)
        now = time.monotonic()
        at_work = any(actor.task is not None or actor.idle for actor in self._actors)
        for actor in list(self._actors):
            if actor.task is not None and self._left(actor) <= 0:
                self._lose(actor, job, f"gave no answer for {now - actor.since:.0f} s (cluster.timeout)")
            elif actor.task is None and not actor.idle and not at_work and self._left(actor) <= 0:
                raise WMEngineError(
                    f"ray: no actor of {self._cpus} CPUs started within {self._settings.start_timeout:.0f} s "
                    f"(cluster.start_timeout); {_resources(self._ray)}. {_REMEDY}"
                )
        if not done and now - job.sign >= _SECONDS_BETWEEN_SIGNS:
            job.sign = now
            busy = sum(actor.task is not None for actor in self._actors)
            _log.info("ray: %d shards are being worked on, %d wait; %d actors", busy, len(job.waiting), self.workers)

    def _left(self, actor: _Actor) -> float:
        limit = self._settings.start_timeout if actor.task is None else self._settings.timeout
        return limit - (time.monotonic() - actor.since)

    def _take(self, actor: _Actor, job: _Job) -> None:
        """What an actor has come back with: that it is ready, an answer, an error of the work, or that it is lost."""
        errors = self._ray.exceptions
        try:
            answer = self._ray.get(actor.reference)
        except errors.RayTaskError as error:
            actor.reference, actor.task = None, None
            if isinstance(error.cause, WMEngineError):
                raise error.cause from None  # for a person, who has no use for the actor's traceback
            raise error.as_instanceof_cause() from None
        except errors.RayError as error:
            self._lose(actor, job, f"was lost ({str(error).strip().partition(chr(10))[0]})")
            return
        if actor.task is None:
            theirs = dict(answer)
            self._check_gpu(theirs.pop("GPU", None))
            check_kinship(theirs, kinship(), self._precisions)
        else:
            job.answers[actor.task] = answer
            self._losses = 0
        actor.reference, actor.task = None, None

    def _check_gpu(self, gpu: str | None) -> None:
        """All actors must have one model of GPU: another gives other bits. The driver need not have any."""
        self._gpus.add(gpu)
        if len(self._gpus) > 1:
            raise WMEngineError(
                f"ray: the actors' GPUs would give different bits: {'; '.join(sorted(map(str, self._gpus)))}. Take "
                "nodes with one model of GPU and one version of Triton, or dream on CPUs (device=cpu)."
            )

    def _lose(self, actor: _Actor, job: _Job, how: str) -> None:
        """Replace an actor, and put its task first in line again."""
        self._losses += 1
        what = "while it started" if actor.task is None else f"with shard {actor.task}"
        _log.warning("ray: an actor %s %s; it is replaced, and the shard is done again", how, what)
        self._ray.kill(actor.handle)
        self._actors[self._actors.index(actor)] = self._start()
        if actor.task is not None:
            job.attempts[actor.task] += 1
            if job.attempts[actor.task] >= _MOST_ATTEMPTS:
                raise WMEngineError(
                    f"ray: shard {actor.task} of {len(job.attempts)} took {_MOST_ATTEMPTS} actors with it; the last "
                    f"one {how}. {_REMEDY}"
                )
            job.waiting.appendleft(actor.task)
        if self._losses >= _MOST_LOSSES * self.workers:
            raise WMEngineError(
                f"ray: {self._losses} actors were lost in a row, and none answered; the last one {how}. {_REMEDY}"
            )

    def _start(self) -> _Actor:
        gpus = 1 if self.device == "cuda" else 0
        worker = self._ray.remote(_Worker).options(num_cpus=self._cpus, num_gpus=gpus, max_restarts=0)
        handle = worker.remote(self._cpus, self._threads)
        return _Actor(handle, time.monotonic(), handle.kinship.remote())

    def _abandon(self) -> None:
        """Replace the actors whose answers nobody waits for any more: after an error, or an iteration cut short."""
        for place, actor in enumerate(self._actors):
            if actor.task is not None:
                self._ray.kill(actor.handle)
                self._actors[place] = self._start()


class _Job:
    """One call of ``map``: tasks that wait, answers that are there, and how often each task was tried in vain."""

    def __init__(self, tasks: Sequence[Any]) -> None:
        self.waiting = deque(range(len(tasks)))
        self.answers: dict[int, Any] = {}
        self.attempts = [0] * len(tasks)
        self.sign = time.monotonic()


def _import_ray() -> Any:
    # Read when Ray is imported. Where something else than Ray listens, a try takes most of a minute, and it makes 20.
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError(
            f"--ray needs Ray, which is not installed ({error}): pip install 'wm-engine[ray]', on every node"
        ) from error
    return ray


def _connect(ray: Any, address: str) -> None:
    _log.info("ray: joining the cluster (%s)", address)
    try:
        if address != "auto":
            # Ray itself tries for long where nothing listens.
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), timeout=_SECONDS_TO_ANSWER).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise WMEngineError(
            f"--ray {address}: no cluster answers there ({reason}). `ray start --head` starts one on this machine, "
            "`ray start --address HOST:PORT` adds a machine to it."
        ) from error


def _nodes(ray: Any) -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _device(ray: Any, device: str) -> str:
    if device != "auto":
        return device
    return "cuda" if any(node.get("GPU", 0) for node in _nodes(ray)) else "cpu"


def _room(nodes: Sequence[dict[str, float]], settings: ClusterSettings, device: str) -> tuple[int, int]:
    """How many actors, and of how many CPUs each. WMEngineError where not one fits."""
    per_node = [(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in nodes]
    if device == "cuda":
        each = settings.cpus or max(1, min((cpus // gpus for cpus, gpus in per_node if gpus), default=1))
        fitting = sum(min(cpus // each, gpus) for cpus, gpus in per_node)
    else:
        each = settings.cpus or min((cpus for cpus, _ in per_node if cpus), default=1)
        fitting = sum(cpus // each for cpus, _ in per_node)
    wanted = settings.actors or fitting
    if not 1 <= wanted <= fitting:
        kind = "a GPU and " if device == "cuda" else ""
        raise WMEngineError(
            f"cluster.actors: {wanted or 'one'} with {kind}{each} CPUs wanted, but the cluster has room for {fitting}"
        )
    return wanted, each


def _resources(ray: Any) -> str:
    nodes = _nodes(ray)
    return f"the cluster has {len(nodes)} nodes with {sum(node.get('CPU', 0) for node in nodes):.0f} CPUs in all"
