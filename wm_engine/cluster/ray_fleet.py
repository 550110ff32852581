"""A fleet of Ray actors: lost ones are replaced, hung ones ended, and their tasks done again.

Ray keeps the processes and moves the bytes. Which task goes where, how long it may take and what a loss means is
decided here, because a training must end with a clear message and never wait for ever.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from pydantic import Field

import wm_engine.kernels as kernels
from wm_engine.cluster.compatibility import check_compatibility, machine_signature
from wm_engine.errors import MissingDependencyError, WMEngineError
from wm_engine.fleet import Recipe
from wm_engine.machine import use_threads
from wm_engine.settings import Section

_log = logging.getLogger(__name__)

# A task that so many workers were lost with, each on another node where there is one, is itself what ends them.
_MOST_ATTEMPTS = 3
# So many losses in one worker's place, with no task finished in between, are no accident: of all places, they end the
# run; of some, the replacements wait before they start.
_MOST_LOSSES = 3
_SECONDS_OF_REST = 60.0
_SECONDS_BETWEEN_REPORTS = 60.0
_SECONDS_TO_ANSWER = 10.0
# Tasks ahead of the oldest unanswered one, for each worker: answers wait for their turn in the driver's memory.
_TASKS_AHEAD = 2
_OPENMP_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
_LONGEST_REASON = 400  # characters of an error of Ray's that are shown, from its first and from its last line
_REMEDY = "Look at the nodes (`ray status`). The same command goes on where this one stopped, with --ray or without."


class ClusterSettings(Section):
    """Settings of how the work is spread with --ray. No result follows from these."""

    free: ClassVar[frozenset[str]] = frozenset({"actors", "cpus", "timeout", "start_timeout"})

    actors: int = Field(0, ge=0, description="workers; 0: as many as the cluster has room for")
    cpus: int = Field(0, ge=0, description="CPUs of each; 0: all of the smallest node, shared among its GPUs if any")
    timeout: float = Field(1800.0, gt=0.0, description="seconds until a shard counts as hung and is done elsewhere")
    start_timeout: float = Field(
        300.0, gt=0.0, description="seconds an actor may take to start; then another is tried, or the run ends"
    )


def _gpu() -> str | None:
    """Name the GPU that this process may use, and what its kernels are compiled with; None where there is none."""
    if not torch.cuda.is_available():
        return None
    triton = kernels.triton_version() if kernels.missing() is None else None
    return f"{torch.cuda.get_device_name()}, Triton {triton or 'none'}"


class _Worker:
    """Answers tasks inside an actor."""

    def __init__(self, cpus: int, threads: int) -> None:
        use_threads(threads)
        self._cpus, self._number = cpus, -1
        self._work: Callable[[Any], Any] | None = None

    def describe(self) -> dict[str, Any]:
        """Say what its machine's bits follow from, and the node that it is on."""
        import ray

        return {"signature": machine_signature(), "GPU": _gpu(), "node": ray.get_runtime_context().get_node_id()}

    def work(self, number: int, recipe: list[Any], task: Any) -> Any:
        """Answer ``task``. The recipe comes as a reference, in a list so that Ray does not fetch it at every call."""
        import ray

        if self._work is None or number != self._number:
            getattr(self._work, "close", lambda: None)()
            self._work, self._number = ray.get(recipe[0]).build(self._cpus), number
        return self._work(task)


@dataclass
class _Actor:
    """An actor and what it does: rests (no handle yet), starts (no task, a reference), is idle, or works at a task.

    node : where it is; None until it is ready
    losses : how many were lost in its place, one after another, since one of them last finished a task
    avoid : the node that the last of them was lost on
    """

    handle: Any
    since: float
    reference: Any
    task: int | None = None
    node: str | None = None
    losses: int = 0
    avoid: str | None = None

    @property
    def resting(self) -> bool:
        return self.handle is None

    @property
    def starting(self) -> bool:
        return self.reference is not None and self.task is None

    @property
    def idle(self) -> bool:
        return self.handle is not None and self.reference is None

    @property
    def ready(self) -> bool:
        return self.idle or self.task is not None


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
        nodes = _nodes(self._ray)
        self.workers, self._cpus = _room(list(nodes.values()), settings, self.device)
        self._recipe: Recipe | None = None  # the newest, with its number and its place in Ray's object store
        self._number, self._stored = -1, None
        self._gpus: set[str | None] = set()
        self._actors = [self._start() for _ in range(self.workers)]
        self._counted: float | None = None  # when it was last said how many are ready
        self._waited = True  # whether some were not, then
        _log.info("ray: %d actors of %s are asked for on %d nodes", self.workers, self._size(), len(nodes))

    def close(self) -> None:
        """End the actors, and leave the cluster if this fleet joined it."""
        for actor in self._actors:
            if not actor.resting:
                self._ray.kill(actor.handle)
        self._actors = []
        if self._mine and self._ray.is_initialized():
            self._ray.shutdown()

    def map(self, recipe: Recipe, tasks: Sequence[Any]) -> Iterator[Any]:
        """See :class:`wm_engine.fleet.Fleet`.

        Raises WMEngineError where actors are lost again and again, or none starts.
        """
        number, reference = self._shared(recipe)
        job = _Job(tasks)
        handed_out = 0
        try:
            while handed_out < len(tasks):
                self._wake()
                for actor in self._actors:
                    task = self._choose(actor, job, handed_out + _TASKS_AHEAD * self.workers) if actor.idle else None
                    if task is not None:
                        job.waiting.remove(task)
                        actor.task, actor.since = task, time.monotonic()
                        actor.reference = actor.handle.work.remote(number, [reference], tasks[task])
                self._await(job)
                while handed_out in job.answers:
                    yield job.answers.pop(handed_out)
                    handed_out += 1
        finally:
            self._abandon()

    def _shared(self, recipe: Recipe) -> tuple[int, Any]:
        """Put a recipe into Ray's object store, once; returns its number and its place there."""
        # Only the newest is kept: steps work one after another, and models can be large.
        if self._recipe is not recipe:
            self._recipe, self._number, self._stored = recipe, self._number + 1, self._ray.put(recipe)
        return self._number, self._stored

    def _choose(self, actor: _Actor, job: _Job, ahead: int) -> int | None:
        """Choose the first task below ``ahead`` that this actor may have; None where there is none."""
        for task in job.waiting:  # those that were tried in vain stand first
            if task < ahead and self._may_have(actor, job.losses.get(task)):
                return task
            if task not in job.losses:
                break
        return None

    def _may_have(self, actor: _Actor, losses: _Losses | None) -> bool:
        """Say whether this actor may have a task, or it is kept for one on a node where it was not lost yet."""
        if losses is None or actor.node not in losses.nodes:
            return True
        if self._ready_elsewhere(losses):
            return False
        # One more loss ends the run, so those that are about to start elsewhere are waited for.
        last = len(losses.nodes) >= _MOST_ATTEMPTS - 1 and set(_nodes(self._ray)) - set(losses.nodes)
        starting = any(other.starting for other in self._actors)
        return not (last and starting and time.monotonic() - losses.since < self._settings.start_timeout)

    def _ready_elsewhere(self, losses: _Losses) -> bool:
        return any(actor.ready and actor.node not in losses.nodes for actor in self._actors)

    def _await(self, job: _Job) -> None:
        """Wait until an actor answers, starts, is lost or runs out of time, and act on it."""
        engaged = [actor for actor in self._actors if actor.reference is not None]
        references = [actor.reference for actor in engaged]
        clocks = [actor for actor in self._actors if not actor.idle]
        patience = min([_SECONDS_BETWEEN_REPORTS, *(max(self._left(actor), 0.01) for actor in clocks)])
        self._ray.wait(references, num_returns=1, timeout=patience)
        done, _ = self._ray.wait(references, num_returns=len(references), timeout=0)
        for actor in engaged:
            if actor.reference in done:
                self._take(actor, job)
        now = time.monotonic()
        at_work = any(actor.ready for actor in self._actors)
        for actor in list(self._actors):
            if actor.task is not None and self._left(actor) <= 0:
                self._lose(actor, job, f"gave no answer for {now - actor.since:.0f} s (cluster.timeout)")
            elif actor.starting and self._left(actor) <= 0:
                if not at_work:
                    lost = sum(other.losses for other in self._actors)
                    raise WMEngineError(
                        f"ray: no actor of {self._size()} started within {self._settings.start_timeout:.0f} s "
                        f"(cluster.start_timeout){f', and {lost} were lost before' if lost else ''}; "
                        f"{_resources(self._ray)}. {_REMEDY}"
                    )
                # It hangs, or there is no room for it. While others are at work, no number of these ends the run.
                _log.warning(
                    "ray: an actor did not start within %.0f s (cluster.start_timeout); another is tried",
                    self._settings.start_timeout,
                )
                self._replace(actor, actor.losses)
        self._report(job, bool(done))

    def _report(self, job: _Job, moved: bool) -> None:
        """Log how many actors are ready, at first and each minute while some wait; in a minute's standstill, more."""
        now = time.monotonic()
        ready = sum(actor.ready for actor in self._actors)
        waiting = self.workers - ready
        due = self._counted is None or now - self._counted >= _SECONDS_BETWEEN_REPORTS
        if ready and (due if waiting else self._waited):
            self._counted, self._waited = now, waiting > 0
            _log.info("ray: %d actors of %s are ready, %d wait for room or are starting", ready, self._size(), waiting)
        if not moved and now - job.reported >= _SECONDS_BETWEEN_REPORTS:
            job.reported = now
            busy = sum(actor.task is not None for actor in self._actors)
            _log.info(
                "ray: %d shards are being worked on, %d wait; %d of %d actors are ready",
                busy,
                len(job.waiting),
                ready,
                self.workers,
            )

    def _size(self) -> str:
        """Describe an actor's size in words."""
        return f"{self._cpus} CPUs" + (" and a GPU" if self.device == "cuda" else "")

    def _left(self, actor: _Actor) -> float:
        limit = _SECONDS_OF_REST if actor.resting else self._settings.start_timeout
        return (self._settings.timeout if actor.task is not None else limit) - (time.monotonic() - actor.since)

    def _take(self, actor: _Actor, job: _Job) -> None:
        """Take what an actor came back with: that it is ready, an answer, an error of the work, or that it is lost."""
        errors = self._ray.exceptions
        try:
            answer = self._ray.get(actor.reference)
        except errors.RayTaskError as error:
            actor.reference, actor.task = None, None
            if isinstance(error.cause, WMEngineError):
                raise error.cause from None  # for a person, who has no use for the actor's traceback
            raise error.as_instanceof_cause() from None
        except errors.RayError as error:
            self._lose(actor, job, f"was lost ({_reason(error)})")
            return
        if actor.task is None:
            check_compatibility(answer["signature"], machine_signature(), self._precisions)
            self._check_gpu(answer["GPU"])
            actor.node = answer["node"]
        else:
            job.answers[actor.task] = answer
            actor.losses = 0
        actor.reference, actor.task = None, None

    def _check_gpu(self, gpu: str | None) -> None:
        """Hold all actors to one model of GPU: another gives other bits. The driver need not have any."""
        self._gpus.add(gpu)
        if len(self._gpus) > 1:
            raise WMEngineError(
                f"ray: the actors' GPUs would give different bits: {'; '.join(sorted(map(str, self._gpus)))}. Take "
                "nodes with one model of GPU and one version of Triton, or dream on CPUs (device=cpu)."
            )

    def _lose(self, actor: _Actor, job: _Job, how: str) -> None:
        """Replace an actor, and put its task first in line again."""
        what = "while it started" if actor.task is None else f"with shard {actor.task}"
        again = "" if actor.task is None else ", and the shard is done again"
        rest = f" in {_SECONDS_OF_REST:.0f} s" if actor.losses + 1 >= _MOST_LOSSES else ""
        _log.warning("ray: an actor %s %s; it is replaced%s%s", how, what, rest, again)
        self._replace(actor, actor.losses + 1)
        if actor.task is not None:
            losses = job.losses.setdefault(actor.task, _Losses())
            losses.nodes.append(actor.node)
            losses.since = time.monotonic()
            count, nodes = len(losses.nodes), len(set(losses.nodes))
            # On one bad node a shard may be lost often; the last bound is for nodes that come and go.
            spent = nodes >= _MOST_ATTEMPTS or not self._ready_elsewhere(losses) or count >= 2 * _MOST_ATTEMPTS
            if count >= _MOST_ATTEMPTS and spent:
                raise WMEngineError(
                    f"ray: shard {actor.task} of {job.count} took {count} actors with it, on {nodes} nodes; the last "
                    f"one {how}. {_REMEDY}"
                )
            job.waiting.appendleft(actor.task)
        if all(other.losses >= _MOST_LOSSES for other in self._actors):
            raise WMEngineError(
                f"ray: {sum(other.losses for other in self._actors)} actors were lost in a row, and none answered; the "
                f"last one {how}. {_REMEDY}"
            )

    def _replace(self, actor: _Actor, losses: int) -> None:
        """End an actor. Its replacement starts at once, on another node if there is room, or after a rest."""
        self._ray.kill(actor.handle)
        resting = _Actor(None, time.monotonic(), None, losses=losses, avoid=actor.node or actor.avoid)
        self._actors[self._actors.index(actor)] = resting if losses >= _MOST_LOSSES else self._start(resting)

    def _wake(self) -> None:
        """Start those that have rested; all, if there is nobody else."""
        alone = all(actor.resting for actor in self._actors)
        for place, actor in enumerate(self._actors):
            if actor.resting and (alone or self._left(actor) <= 0):
                self._actors[place] = self._start(actor)

    def _start(self, resting: _Actor | None = None) -> _Actor:
        """Start a new actor, or the replacement that has been ``resting``."""
        options: dict[str, Any] = {"num_gpus": 1 if self.device == "cuda" else 0}
        # Of the process, before it loads torch: its OpenMP reads them once.
        options["runtime_env"] = {"env_vars": _openmp_variables(os.environ)}
        losses, avoid = (resting.losses, resting.avoid) if resting is not None else (0, None)
        if avoid is not None:
            strategies = self._ray.util.scheduling_strategies
            # Soft: where no other node has room, the same one is better than none.
            other = {"ray.io/node-id": strategies.NotIn(avoid)}
            options["scheduling_strategy"] = strategies.NodeLabelSchedulingStrategy({}, soft=other)
        worker = self._ray.remote(_Worker).options(num_cpus=self._cpus, max_restarts=0, **options)
        handle = worker.remote(self._cpus, self._threads)
        reference = handle.describe.remote()
        return _Actor(handle, time.monotonic(), reference, losses=losses, avoid=avoid)

    def _abandon(self) -> None:
        """Replace the actors whose answers nobody waits for any more: after an error, or an iteration cut short."""
        for place, actor in enumerate(self._actors):
            if actor.task is not None:
                self._ray.kill(actor.handle)
                self._actors[place] = self._start(_Actor(None, 0.0, None, losses=actor.losses))


@dataclass
class _Losses:
    """The losses with one task: the nodes that actors were lost on, one each, and when the last one was."""

    nodes: list[str | None] = field(default_factory=list)
    since: float = 0.0


class _Job:
    """One call of ``map``: tasks that wait, answers that are there, and the tasks that were tried in vain."""

    def __init__(self, tasks: Sequence[Any]) -> None:
        self.count = len(tasks)
        self.waiting = deque(range(len(tasks)))
        self.answers: dict[int, Any] = {}
        self.losses: dict[int, _Losses] = {}
        self.reported = time.monotonic()


def _openmp_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Say how OpenMP's threads wait for each other in a worker: as the driver's environment says, or asleep.

    By default they spin, and take the cores that other workers and the environments' processes need.
    """
    said = {name: environment[name] for name in _OPENMP_WAITING if name in environment}
    return said or {"OMP_WAIT_POLICY": "PASSIVE"}


def _import_ray() -> Any:
    # Read when Ray is imported. Where something else than Ray listens, a try takes most of a minute, and it makes 20.
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise MissingDependencyError(
            f"--ray needs Ray, which is not installed ({error}): pip install 'wm-engine[ray]', on every node"
        ) from error
    return ray


def _reason(error: BaseException) -> str:
    """Shorten an error to its first and last line, without colours: Ray puts what an actor died of last."""
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", str(error)).splitlines() if line.strip()]
    ends = [lines[0], lines[-1]] if len(lines) > 1 else lines or [type(error).__name__]
    return " ... ".join(line if len(line) <= _LONGEST_REASON else f"{line[:_LONGEST_REASON]}..." for line in ends)


def _connect(ray: Any, address: str) -> None:
    # Ray takes this variable where the address is "auto".
    variable = os.environ.get("RAY_ADDRESS", "") if address == "auto" else ""
    named = f"--ray auto (RAY_ADDRESS={variable})" if variable else f"--ray {address}"
    where = variable or address
    _log.info("ray: joining the cluster (%s)", where)
    try:
        if where != "auto":
            # Ray itself tries for long where nothing listens.
            socket.create_connection(_host_and_port(named, where), timeout=_SECONDS_TO_ANSWER).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        raise WMEngineError(
            f"{named}: no cluster answers there ({_reason(error)}). `ray start --head` starts one on this machine, "
            "`ray start --address HOST:PORT` adds a machine to it."
        ) from error


def _host_and_port(named: str, address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if (
        not re.fullmatch(r"[\w.-]+|\[[\da-fA-F:.%\w]+\]", host)
        or not re.fullmatch(r"\d{1,5}", port)
        or int(port) > 65535
    ):
        raise WMEngineError(
            f"{named}: the address was {address!r}, but should be HOST:PORT (127.0.0.1:6379 for one), or auto for the "
            "cluster that this machine belongs to."
        )
    return host.strip("[]"), int(port)


def _nodes(ray: Any) -> dict[str, dict[str, float]]:
    """Ask for the resources of each node that is alive, by its id."""
    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


def _device(ray: Any, device: str) -> str:
    if device != "auto":
        return device
    return "cuda" if any(node.get("GPU", 0) for node in _nodes(ray).values()) else "cpu"


def _room(nodes: Sequence[dict[str, float]], settings: ClusterSettings, device: str) -> tuple[int, int]:
    """Decide how many actors there are, and of how many CPUs each. WMEngineError where not one fits."""
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
    nodes, free = _nodes(ray).values(), ray.available_resources()
    kinds = [kind for kind in ("CPU", "GPU") if kind == "CPU" or any(node.get(kind, 0) for node in nodes)]
    counts = [f"{free.get(kind, 0):.0f} of {sum(node.get(kind, 0) for node in nodes):.0f} {kind}s" for kind in kinds]
    return f"the cluster has {len(nodes)} nodes, and {' and '.join(counts)} are free"
