"""The rollout store: real episodes on disk, in compressed chunks, append-only, read in bounded memory.

    FOLDER/index.jsonl                              a header line, then a line for every whole episode
    FOLDER/000/000123-0004.zst                      chunk 4 of episode 123: at most ``chunk_steps`` steps

A chunk is two zstandard frames with checksums, each a safetensors payload: actions and rewards, then observations, so
that the first can be read without the second. Each chunk is written under another name and renamed when it is whole,
and an episode counts from the moment its line stands in the index. What an interruption leaves behind is either whole
or ignored. Why not zarr: docs/decisions/0002-rollout-store.md.
"""

from __future__ import annotations

import bisect
import json
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import zstandard
from safetensors import SafetensorError

from wm_engine.checks import check_int
from wm_engine.errors import CorruptFileError, RunMismatchError
from wm_engine.files import atomic_write, storage_errors, write_text
from wm_engine.spaces import Codes, Discrete, Spaces

CHUNK_STEPS = 256
_FORMAT, _VERSION = "wm_engine rollouts", 2
_EPISODES_PER_FOLDER = 1000
_SUFFIX = ".zst"
# Level 3 writes 60 k frames/s a core, forty times what a core of EnvPool makes; level 9 saves 15 % and writes 12 k.
_LEVEL = 3


@dataclass(frozen=True)
class Episode:
    """One real episode of T steps, as it is stored.

    observations : uint8, float32 or int32 [T+1, ...], before each step and after the last
    actions : as the environment took them: float32 [T, A] of a box, int32 [T] of discrete ones
    rewards : float32 [T], the fatal step's included
    terminated : the environment ended it; truncated : a limit of frames did
    seed : of the environment; policy : who drove; round : of the loop
    frames : real frames that it took, at least T; 0 stands for T
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: bool
    truncated: bool
    seed: int
    policy: str
    round: int = 0
    frames: int = 0

    def __post_init__(self) -> None:
        _check_array("rewards", self.rewards, np.float32, (None,))
        steps = len(self.rewards)
        for name, array, length in (("actions", self.actions, steps), ("observations", self.observations, steps + 1)):
            if not isinstance(array, np.ndarray) or array.ndim == 0:
                raise TypeError(f"{name} must be a numpy array of {length} rows, but was {_described(array)}")
            if len(array) != length:
                raise ValueError(f"{name} must have {length} rows for {steps} rewards, but had {len(array)}")
        if self.frames == 0:
            object.__setattr__(self, "frames", steps)
        check_int("frames", self.frames, least=steps)


@dataclass(frozen=True, slots=True)
class EpisodeInfo:
    """The index's entry of an episode of ``steps`` steps; the other fields are those of :class:`Episode`."""

    steps: int
    frames: int
    seed: int
    terminated: bool
    truncated: bool
    total_reward: float
    policy: str
    round: int


@dataclass(frozen=True, slots=True)
class _Entry:
    info: EpisodeInfo
    chunk_steps: int

    def chunks(self) -> range:
        return range(math.ceil(self.info.steps / self.chunk_steps))

    def steps_of(self, chunk: int) -> int:
        return min(self.chunk_steps, self.info.steps - chunk * self.chunk_steps)

    def observations_of(self, chunk: int) -> int:
        # The observation after the last step stands in the last chunk.
        return self.steps_of(chunk) + (chunk == self.chunks()[-1])


class RolloutStore:
    """Episodes in a folder. One process may write at a time; any number may read.

    Memory: reading an episode takes that episode and a chunk, writing one takes a chunk. Only the index is held whole
    (0.4 KB an episode).
    """

    def __init__(self, path: Path, spaces: Spaces, entries: list[_Entry], committed: int, chunk_steps: int) -> None:
        self.path = path
        self.spaces = spaces
        self.chunk_steps = check_int("chunk_steps", chunk_steps, least=1)
        self._entries = entries
        self._committed = committed  # bytes of the index that stand for whole episodes
        self._next: int | None = None  # index of the next episode to be written; None before the first
        self._round = entries[-1].info.round if entries else 0  # of the newest writer
        self._finished: dict[int, _Entry] = {}

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        spaces: Spaces | None = None,
        create: bool = True,
        chunk_steps: int = CHUNK_STEPS,
    ) -> RolloutStore:
        """Open the store at ``path``; an empty one is made where there is none and ``create`` is set.

        ``spaces``: what its episodes show and take; needed to make one, and compared with those of one that is there
        where given. ``chunk_steps``: steps a chunk of episodes appended from now on. Raises FileNotFoundError where
        there is no store and none may be made, RunMismatchError for a store of other spaces or of another edition of
        wm_engine, CorruptFileError where its index is damaged (a last line cut short by a kill is not damage: that
        episode was never whole).
        """
        folder = Path(path)
        index = folder / "index.jsonl"
        if not index.exists():
            if any(folder.glob(f"*/*{_SUFFIX}")):
                # An empty index in its place would have the next write clear these chunks away.
                raise CorruptFileError(
                    f"{index}: missing, though there are chunks of episodes beside it. Restore it from a copy, or "
                    "begin a new run in another --run folder."
                )
            if not create:
                raise FileNotFoundError(f"{folder}: no rollouts there; `wm-engine train` makes them")
            if spaces is None:
                raise ValueError(f"spaces must be given to make a store, and there is none at {folder}")
            write_text(index, _header(spaces) + "\n")
        known, entries, committed = _read_index(index)
        if spaces is not None and spaces != known:
            raise RunMismatchError(
                f"{folder}: holds episodes of {known}, but these are of {spaces}. Choose another --run folder, or the "
                "task that this one was begun with."
            )
        return cls(folder, known, entries, committed, chunk_steps)

    def __len__(self) -> int:
        return len(self._entries)

    def episodes(self, upto_round: int | None = None) -> range:
        """The indices of the episodes of rounds up to ``upto_round``, that one included; None: of all."""
        if upto_round is None:
            return range(len(self))
        return range(bisect.bisect_right(self._entries, upto_round, key=lambda entry: entry.info.round))

    def total_steps(self, upto_round: int | None = None) -> int:
        """Steps (decisions) of all episodes of rounds up to ``upto_round`` together; None: of all."""
        return sum(self._entries[index].info.steps for index in self.episodes(upto_round))

    def total_frames(self, upto_round: int | None = None) -> int:
        """Real frames of all episodes of rounds up to ``upto_round`` together; None: of all."""
        return sum(self._entries[index].info.frames for index in self.episodes(upto_round))

    def info(self, index: int) -> EpisodeInfo:
        """Tell what is known of episode ``index`` without reading its chunks."""
        return self._entry(index).info

    def split(self, holdout: float) -> tuple[list[int], list[int]]:
        """Training and held-out episodes; see :func:`split_episodes`."""
        return split_episodes(len(self), holdout)

    # Writing

    def writer(self, seed: int, policy: str, round: int = 0) -> EpisodeWriter:
        """Write the next episode step by step. Several may be open; episodes stand in the order of their writers.

        ValueError for a ``round`` before that of the newest episode: rounds stand in their order.
        """
        self._round = check_int("round", round, least=self._round)
        if self._next is None:
            self._discard_unfinished()
            self._next = len(self)
        self._next += 1
        return EpisodeWriter(self, self._next - 1, seed, policy, round)

    def append(self, episode: Episode) -> int:
        """Write a whole episode; its index. StorageError where the disk is full: the store is then as it was."""
        try:
            writer = self.writer(episode.seed, episode.policy, episode.round)
            extra = episode.frames - len(episode.rewards)
            for observation, action, reward in zip(
                episode.observations, episode.actions, episode.rewards, strict=False
            ):
                writer.add_stored(observation, action, float(reward), frames=1 + extra)
                extra = 0  # the index knows the sum alone
            writer.finish(episode.observations[-1], episode.terminated, episode.truncated)
        except BaseException:
            self.abandon()
            raise
        return writer.index

    def abandon(self) -> None:
        """Give up the episodes that are being written; their numbers are given out anew."""
        self._next = None
        self._round = self._entries[-1].info.round if self._entries else 0
        self._finished.clear()

    def keep(self, count: int) -> None:
        """Keep the first ``count`` episodes and delete the others, as when a chunk of a later one is damaged."""
        check_int("count", count, least=0)
        dropped = self._entries[count:]
        if dropped:
            lines = [_header(self.spaces)]
            lines += [_line(index, entry) for index, entry in enumerate(self._entries[:count])]
            text = "\n".join(lines) + "\n"
            write_text(self._index, text)
            self._entries, self._committed = self._entries[:count], len(text.encode())
            self.abandon()
            self._discard_unfinished()

    def _commit(self, index: int, entry: _Entry) -> None:
        self._finished[index] = entry
        while len(self) in self._finished:
            line = (_line(len(self), self._finished[len(self)]) + "\n").encode()
            with storage_errors(self._index), open(self._index, "r+b") as file:
                # A torn line of an earlier, killed write is overwritten here.
                file.truncate(self._committed)
                file.seek(self._committed)
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
            self._committed += len(line)
            self._entries.append(self._finished.pop(len(self)))

    def _discard_unfinished(self) -> None:
        # Chunks of episodes that never came to stand in the index, and temporary files. Only folders from that of the
        # next episode on can hold any.
        first = len(self) // _EPISODES_PER_FOLDER
        with storage_errors(self.path):
            for folder in self.path.iterdir():
                if not folder.is_dir() or not folder.name.isdigit() or int(folder.name) < first:
                    continue
                for file in folder.glob(".*.tmp"):
                    file.unlink(missing_ok=True)
                for file in folder.glob(f"*-*{_SUFFIX}"):
                    if int(file.name.split("-")[0]) >= len(self):
                        file.unlink(missing_ok=True)

    # Reading

    def read(self, index: int) -> Episode:
        """Read episode ``index`` whole. CorruptFileError names the chunk that is damaged or missing."""
        entry = self._entry(index)
        info, steps = entry.info, entry.info.steps
        actions, rewards = self._empty_steps(steps)
        observations = self._empty_observations(steps + 1)
        for chunk in entry.chunks():
            chunk_file = self._chunk(index, chunk)
            start = chunk * entry.chunk_steps
            self._fill_steps(chunk_file, start, actions, rewards)
            part = chunk_file.observations()
            observations[start : start + len(part)] = part
        return Episode(
            observations,
            actions,
            rewards,
            terminated=info.terminated,
            truncated=info.truncated,
            seed=info.seed,
            policy=info.policy,
            round=info.round,
            frames=info.frames,
        )

    def observations(self, index: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Read observations ``start`` to ``stop`` (not included; None: all) of an episode, [stop-start, ...].

        An episode of T steps has T + 1 observations, in the dtype of ``spaces.observations``. IndexError for those that
        are not there, CorruptFileError for a chunk that is damaged or missing.
        """
        entry = self._entry(index)
        stop = entry.info.steps + 1 if stop is None else stop
        if not 0 <= start < stop <= entry.info.steps + 1:
            raise IndexError(
                f"observations of episode {index} must be within [0, {entry.info.steps + 1}), but were "
                f"[{start}, {stop})"
            )
        # The observation after the last step stands in the last chunk, even where its number would begin another.
        first, last = (min(place // entry.chunk_steps, entry.chunks()[-1]) for place in (start, stop - 1))
        whole = self._empty_observations(stop - start)
        for chunk in range(first, last + 1):
            part, begin = self._chunk(index, chunk).observations(), chunk * entry.chunk_steps
            part, begin = part[max(start - begin, 0) : stop - begin], max(begin, start)
            whole[begin - start : begin - start + len(part)] = part
        return whole

    def actions_and_rewards(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Read an episode's actions as M knows them, float32 [T, A], and its rewards, float32 [T].

        Observations are not decompressed: 1,000 steps take a millisecond. CorruptFileError as for :meth:`read`.
        """
        entry = self._entry(index)
        actions, rewards = self._empty_steps(entry.info.steps)
        for chunk in entry.chunks():
            self._fill_steps(self._chunk(index, chunk), chunk * entry.chunk_steps, actions, rewards)
        return self.spaces.actions.from_stored(actions), rewards

    def _empty_observations(self, count: int) -> np.ndarray:
        space = self.spaces.observations
        return np.empty((count, *space.shape), space.dtype)

    def _empty_steps(self, steps: int) -> tuple[np.ndarray, np.ndarray]:
        space = self.spaces.actions
        return np.empty((steps, *space.shape), space.dtype), np.empty(steps, np.float32)

    def _fill_steps(self, chunk: _ChunkFile, start: int, actions: np.ndarray, rewards: np.ndarray) -> None:
        part = chunk.steps()
        stop = start + len(part["rewards"])
        actions[start:stop], rewards[start:stop] = part["actions"], part["rewards"]

    def _entry(self, index: int) -> _Entry:
        if not 0 <= index < len(self):
            raise IndexError(f"episode must be in [0, {len(self)}), but was {index}")
        return self._entries[index]

    def _chunk(self, index: int, chunk: int) -> _ChunkFile:
        return _ChunkFile(self._chunk_path(index, chunk), self.spaces, self._entries[index], index, chunk)

    @property
    def _index(self) -> Path:
        return self.path / "index.jsonl"

    def _chunk_path(self, index: int, chunk: int) -> Path:
        return self.path / f"{index // _EPISODES_PER_FOLDER:03d}" / f"{index:06d}-{chunk:04d}{_SUFFIX}"


class EpisodeWriter:
    """Writes one episode as it is driven; at most one chunk of it is in memory.

    An exception, or simply never calling :meth:`finish`, leaves the store without the episode.
    """

    def __init__(self, store: RolloutStore, index: int, seed: int, policy: str, round: int) -> None:
        self.index = index
        self._store, self._chunk = store, 0
        self._seed, self._policy, self._round = check_int("seed", seed, least=0), policy, round
        self._steps, self._frames, self._total = 0, 0, 0.0
        self._observations: list[np.ndarray] = []
        self._actions: list[np.ndarray] = []
        self._rewards: list[float] = []

    def add(self, observation: np.ndarray, action: np.ndarray, reward: float, frames: int = 1) -> None:
        """Add one step; the arrays are copied.

        ``observation``: the one before the step, as ``store.spaces.observations``. ``action``: as M knows it, floating
        [A]. ``frames``: for how many frames the action was applied. TypeError and ValueError for what does not fit.
        """
        space = self._store.spaces.actions
        if not isinstance(action, np.ndarray) or action.dtype.kind != "f" or action.shape != (space.size,):
            raise ValueError(f"action must be a floating array of shape [{space.size}], but was {_described(action)}")
        self.add_stored(observation, space.to_stored(action), reward, frames)

    def add_stored(self, observation: np.ndarray, action: np.ndarray, reward: float, frames: int = 1) -> None:
        """Add one step as :meth:`add` does, its action as it is stored: float32 [A] of a box, int32 [] if discrete."""
        observations, actions = self._store.spaces.observations, self._store.spaces.actions
        _check_array("observation", observation, observations.dtype, observations.shape)
        _check_array("action", np.asarray(action), actions.dtype, actions.shape)
        if len(self._rewards) == self._store.chunk_steps:
            self._flush(None)
        self._observations.append(observation.copy())
        self._actions.append(np.array(action))
        self._rewards.append(reward)
        self._frames += check_int("frames", frames, least=1)

    def finish(self, observation: np.ndarray, terminated: bool, truncated: bool) -> None:
        """Add the observation after the last step, and why it was the last. Commits the episode, after those before."""
        if not self._rewards:
            raise ValueError("an episode must have at least one step before it is finished")
        space = self._store.spaces.observations
        _check_array("observation", observation, space.dtype, space.shape)
        self._flush(observation)
        info = EpisodeInfo(
            steps=self._steps,
            frames=self._frames,
            seed=self._seed,
            terminated=bool(terminated),
            truncated=bool(truncated),
            total_reward=self._total,
            policy=self._policy,
            round=self._round,
        )
        self._store._commit(self.index, _Entry(info, self._store.chunk_steps))

    def _flush(self, last: np.ndarray | None) -> None:
        spaces = self._store.spaces
        rewards = np.array(self._rewards, dtype=np.float32)
        actions = np.stack(self._actions)
        observations = np.stack(self._observations if last is None else [*self._observations, last])
        _check_values("rewards", rewards)
        _check_values("actions", actions, spaces.actions.count if isinstance(spaces.actions, Discrete) else None)
        seen = spaces.observations
        _check_values("observations", observations, seen.count if isinstance(seen, Codes) else None)
        place = np.array([self.index, self._chunk], dtype=np.int64)
        with atomic_write(self._store._chunk_path(self.index, self._chunk)) as file:
            file.write(_compressed({"actions": actions, "rewards": rewards, "place": place}))
            file.write(_compressed({"observations": observations, "place": place}))
        self._chunk += 1
        self._steps += len(rewards)
        self._total += float(rewards.sum(dtype=np.float64))
        self._observations, self._actions, self._rewards = [], [], []


class _ChunkFile:
    """A chunk that is being read; CorruptFileError where it is not what the index says."""

    def __init__(self, path: Path, spaces: Spaces, entry: _Entry, index: int, chunk: int) -> None:
        self._path, self._spaces, self._entry, self._index, self._number = path, spaces, entry, index, chunk
        self._rest: bytes | None = None  # what follows the first frame; None: nothing is read yet

    def steps(self) -> dict[str, np.ndarray]:
        """Actions as they are stored, and rewards."""
        try:
            content = self._path.read_bytes()
        except FileNotFoundError as error:
            raise CorruptFileError(f"{self._path}: missing. {self._remedy()}") from error
        length, space = self._entry.steps_of(self._number), self._spaces.actions
        with self._damage():
            # Stops at the frame's end, wherever that is, but is three times slower than decompress() on a large one.
            frame = zstandard.ZstdDecompressor().decompressobj()
            payload = frame.decompress(content)
            if not frame.eof:
                raise ValueError("it ends too early")
            self._rest = frame.unused_data
            return self._loaded(
                payload, {"actions": ((length, *space.shape), space.dtype), "rewards": ((length,), np.float32)}
            )

    def observations(self) -> np.ndarray:
        """The observations of its steps, in the last chunk with the one after them."""
        if self._rest is None:
            self.steps()
        length, space = self._entry.observations_of(self._number), self._spaces.observations
        with self._damage():
            payload = zstandard.ZstdDecompressor().decompress(self._rest or b"", allow_extra_data=False)
            return self._loaded(payload, {"observations": ((length, *space.shape), space.dtype)})["observations"]

    def _loaded(self, payload: bytes, wanted: dict[str, Any]) -> dict[str, np.ndarray]:
        part = safetensors.numpy.load(payload)
        if part.pop("place").tolist() != [self._index, self._number]:
            raise ValueError("it is another chunk than its name says")
        found = {name: (array.shape, array.dtype.type) for name, array in part.items()}
        if found != wanted:
            raise ValueError(f"it holds {found}, but should hold {wanted}")
        return part

    @contextmanager
    def _damage(self) -> Iterator[None]:
        try:
            yield
        except (zstandard.ZstdError, SafetensorError, KeyError, ValueError, MemoryError) as error:
            raise CorruptFileError(f"{self._path}: damaged or truncated ({error}). {self._remedy()}") from error

    def _remedy(self) -> str:
        store = str(self._path.parent.parent)
        return (
            "`wm-engine train` cannot go on without it: restore it from a copy, or begin a new run in another --run "
            f"folder. The episodes before it can be kept from Python: RolloutStore.open({store!r}).keep({self._index})."
        )


def split_episodes(count: int, holdout: float) -> tuple[list[int], list[int]]:
    """Split ``count`` episodes into those for training and those held out, about ``holdout`` of them.

    Which side an episode stands on follows from its index alone, so it never changes when more are appended: episode 1
    is held out, then every (1/holdout)-th. Episode 0 is for training; so both sides have one as soon as there are two.
    ValueError where ``holdout`` is not between 0 and 1.
    """
    if not 0.0 < holdout < 1.0:
        raise ValueError(f"holdout must be between 0 and 1, but was {holdout}")

    def held(index: int) -> bool:
        # Rounded, for 30 * 0.1 is a little less than 3 in binary.
        return index > 0 and math.floor(round((index - 1) * holdout, 9)) > math.floor(round((index - 2) * holdout, 9))

    sides: tuple[list[int], list[int]] = ([], [])
    for index in range(count):
        sides[held(index)].append(index)
    return sides


def _header(spaces: Spaces) -> str:
    sides = {"observations": spaces.observations, "actions": spaces.actions}
    arrays = {name: {"dtype": np.dtype(space.dtype).name, "shape": list(space.shape)} for name, space in sides.items()}
    arrays["rewards"] = {"dtype": "float32", "shape": []}
    return json.dumps({"format": _FORMAT, "version": _VERSION, "arrays": arrays, "spaces": spaces.to_json()})


def _line(index: int, entry: _Entry) -> str:
    return json.dumps({"episode": index} | asdict(entry.info) | {"chunk_steps": entry.chunk_steps})


def _read_index(path: Path) -> tuple[Spaces, list[_Entry], int]:
    """Read an index: its spaces, its episodes, and how many of its bytes stand for them."""
    content = path.read_bytes()
    lines = content.split(b"\n")
    torn = lines.pop()
    try:
        spaces = _read_header(path, json.loads(lines[0]))
        entries = [_parse(number, json.loads(line)) for number, line in enumerate(lines[1:])]
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(
            f"{path}: not the index of a rollout store, or damaged ({error}). Restore it from a copy, or begin a new "
            "run in another --run folder."
        ) from error
    return spaces, entries, len(content) - len(torn)


def _read_header(path: Path, header: Any) -> Spaces:
    if not isinstance(header, dict) or header.get("format") != _FORMAT:
        raise ValueError(f"its header is {header!r}")
    if header["version"] != _VERSION:
        edition = "the first edition" if header["version"] == 1 else "another edition"
        raise RunMismatchError(
            f"{path}: made by {edition} of wm_engine (version {header['version']} of the format, where this one reads "
            f"{_VERSION}), which this one cannot go on with. Choose another --run folder."
        )
    spaces = Spaces.from_json(header["spaces"])
    if header != json.loads(_header(spaces)):
        raise ValueError(f"its header does not fit together: {header!r}")
    return spaces


def _parse(number: int, row: dict[str, Any]) -> _Entry:
    chunk_steps = row.pop("chunk_steps")
    if row.pop("episode") != number:
        raise ValueError(f"line {number + 2} is not that of episode {number}")
    info = EpisodeInfo(**row | {"policy": sys.intern(row["policy"])})
    sizes = (info.steps, chunk_steps, info.frames, info.round)
    if not all(isinstance(size, int) for size in sizes) or not 0 < info.steps <= info.frames or chunk_steps < 1:
        raise ValueError(f"line {number + 2} has impossible sizes")
    return _Entry(info, chunk_steps)


def _compressed(arrays: dict[str, np.ndarray]) -> bytes:
    return zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(safetensors.numpy.save(arrays))


def _described(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__


def _check_array(name: str, value: Any, dtype: Any, shape: tuple[int | None, ...]) -> None:
    """Check a numpy array of this dtype and shape, None where any size of at least 1 will do."""
    if not isinstance(value, np.ndarray) or value.dtype != dtype:
        raise TypeError(f"{name} must be a {np.dtype(dtype)} numpy array, but was {_described(value)}")
    fits = value.ndim == len(shape) and all(
        size >= 1 if want is None else size == want for size, want in zip(value.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("T" if want is None else str(want) for want in shape)
        raise ValueError(f"{name} must have shape [{wanted}], but had {list(value.shape)}")


def _check_values(name: str, value: np.ndarray, count: int | None = None) -> None:
    """Check that floats are finite, and integers in [0, count)."""
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise ValueError(f"{name} must be finite, but {int((~np.isfinite(value)).sum())} of its entries were not")
    if count is not None and not 0 <= value.min() <= value.max() < count:
        raise ValueError(f"{name} must be in [0, {count}), but were from {value.min()} to {value.max()}")
