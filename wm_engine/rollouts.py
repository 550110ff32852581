"""The rollout store: real episodes on disk, in compressed chunks, append-only, read in bounded memory.

    FOLDER/index.jsonl                              a header line, then a line for every whole episode
    FOLDER/000/000123-0004.safetensors.zst          chunk 4 of episode 123: at most ``chunk_steps`` steps

A chunk is a safetensors payload (frames, actions, rewards) in one zstandard frame with a checksum. Each is written
under another name and renamed when it is whole, and an episode counts from the moment its line stands in the index.
What an interruption leaves behind is either whole or ignored. Why not zarr: docs/decisions/0002-rollout-store.md.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import zstandard
from safetensors import SafetensorError

from wm_engine.checks import check_int
from wm_engine.envs.frames import FRAME_SHAPE
from wm_engine.errors import CorruptFileError
from wm_engine.runs import atomic_write, storage_errors, write_text

CHUNK_STEPS = 256
BUFFER_BYTES = 256 * 2**20
_FRAME_BYTES = math.prod(FRAME_SHAPE)
_HEADER = {"format": "wm_engine rollouts", "version": 1}
_EPISODES_PER_FOLDER = 1000
_SUFFIX = ".safetensors.zst"
# Level 3 writes 60 k frames/s a core, forty times what a core of EnvPool makes; level 9 saves 15 % and writes 12 k.
_LEVEL = 3


@dataclass(frozen=True)
class Episode:
    """One real episode of T steps.

    frames : uint8 [T+1, 64, 64, 3], before each step and after the last
    actions : float32 [T, A], as the environment took them
    rewards : float32 [T], the fatal step's included
    terminated : the environment ended it; truncated : a step limit did
    seed : of the environment; policy : who drove; iteration : the pipeline's round
    """

    frames: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    terminated: bool
    truncated: bool
    seed: int
    policy: str
    iteration: int = 0

    def __post_init__(self) -> None:
        _check_array("actions", self.actions, np.float32, ("T", "A"))
        steps = len(self.actions)
        _check_array("rewards", self.rewards, np.float32, (steps,))
        _check_array("frames", self.frames, np.uint8, (steps + 1, *FRAME_SHAPE))


@dataclass(frozen=True)
class EpisodeInfo:
    """What the index knows of an episode; the fields are those of :class:`Episode`."""

    steps: int
    seed: int
    terminated: bool
    truncated: bool
    total_reward: float
    policy: str
    iteration: int


@dataclass(frozen=True)
class _Entry:
    info: EpisodeInfo
    chunk_steps: int

    def chunks(self) -> range:
        return range(math.ceil(self.info.steps / self.chunk_steps))

    def steps_of(self, chunk: int) -> int:
        return min(self.chunk_steps, self.info.steps - chunk * self.chunk_steps)

    def frames_of(self, chunk: int) -> int:
        # The frame after the last step stands in the last chunk.
        return self.steps_of(chunk) + (chunk == self.chunks()[-1])


class RolloutStore:
    """Episodes in a folder. One process may write at a time; any number may read.

    Memory: reading an episode takes that episode, reading frames takes their chunks, :meth:`frame_batches` takes its
    buffer. Only the index is held whole (0.5 KB an episode).
    """

    def __init__(self, path: Path, entries: list[_Entry], committed: int, chunk_steps: int) -> None:
        self.path = path
        self.chunk_steps = check_int("chunk_steps", chunk_steps, least=1)
        self._entries = entries
        self._committed = committed  # bytes of the index that stand for whole episodes
        self._next: int | None = None  # index of the next episode to be written; None before the first
        self._finished: dict[int, _Entry] = {}

    @classmethod
    def open(cls, path: str | os.PathLike[str], create: bool = True, chunk_steps: int = CHUNK_STEPS) -> RolloutStore:
        """The store at ``path``; an empty one is made where there is none and ``create`` is set.

        ``chunk_steps``: steps a chunk of episodes appended from now on. Raises FileNotFoundError where there is no
        store, CorruptFileError where its index is damaged (a last line cut short by a kill is not damage: that episode
        was never whole).
        """
        folder = Path(path)
        index = folder / "index.jsonl"
        if not index.exists():
            if any(folder.glob(f"*/*{_SUFFIX}")):
                # An empty index in its place would have the next write clear these chunks away.
                raise CorruptFileError(
                    f"{index}: missing, though there are chunks of episodes beside it. Restore it from a copy, or "
                    f"delete {folder} to have the episodes collected again."
                )
            if not create:
                raise FileNotFoundError(f"{folder}: no rollouts there; run the collect stage first")
            write_text(index, json.dumps(_HEADER) + "\n")
        entries, committed = _read_index(index)
        return cls(folder, entries, committed, chunk_steps)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def steps(self) -> int:
        """Steps of all episodes together."""
        return sum(entry.info.steps for entry in self._entries)

    def info(self, index: int) -> EpisodeInfo:
        """What is known of episode ``index`` without reading its chunks."""
        return self._entry(index).info

    def split(self, holdout: float) -> tuple[list[int], list[int]]:
        """Training and held-out episodes; see :func:`split_episodes`."""
        return split_episodes(len(self), holdout)

    # Writing

    def writer(self, seed: int, policy: str, iteration: int = 0) -> EpisodeWriter:
        """Write the next episode step by step. Several may be open; episodes stand in the order of their writers."""
        if self._next is None:
            self._discard_unfinished()
            self._next = len(self)
        self._next += 1
        return EpisodeWriter(self, self._next - 1, seed, policy, iteration)

    def append(self, episode: Episode) -> int:
        """Write a whole episode; its index. StorageError where the disk is full: the store is then as it was."""
        try:
            writer = self.writer(episode.seed, episode.policy, episode.iteration)
            for frame, action, reward in zip(episode.frames, episode.actions, episode.rewards, strict=False):
                writer.add(frame, action, float(reward))
            writer.finish(episode.frames[-1], episode.terminated, episode.truncated)
        except BaseException:
            self.abandon()
            raise
        return writer.index

    def abandon(self) -> None:
        """Give up the episodes that are being written; their numbers are given out anew."""
        self._next = None
        self._finished.clear()

    def keep(self, count: int) -> None:
        """Keep the first ``count`` episodes and delete the others, as when a chunk of a later one is damaged."""
        check_int("count", count, least=0)
        dropped = self._entries[count:]
        if not dropped:
            return
        lines = [json.dumps(_HEADER), *(_line(index, entry) for index, entry in enumerate(self._entries[:count]))]
        text = "\n".join(lines) + "\n"
        write_text(self._index, text)
        self._entries, self._committed = self._entries[:count], len(text.encode())
        self.abandon()
        self._discard_unfinished()

    def salvage(self) -> int | None:
        """Commit what an interrupted write left of the next episode: its whole chunks, as an episode cut short there.

        Where the last chunk is lost, so is the frame after the last whole one's last step, and that step with it; the
        episode is then marked as truncated. Returns its index, None where nothing is left. A collection that resumes
        does not want this: it drives that episode again.
        """
        if self._next is not None:
            raise ValueError("salvage must come before the first write, which deletes what an interrupted one left")
        index, parts = len(self), list[dict[str, np.ndarray]]()
        while (path := self._chunk_path(index, len(parts))).exists():
            parts.append(_decode(path, index, len(parts)))
        steps = sum(len(part["rewards"]) for part in parts)
        frames = sum(len(part["frames"]) for part in parts)
        steps = min(steps, frames - 1)
        if steps < 1:
            return None
        note = {"terminated": False, "truncated": True} | json.loads(parts[-1]["note"].tobytes())
        joined = {name: np.concatenate([part[name] for part in parts]) for name in ("frames", "actions", "rewards")}
        return self.append(
            Episode(joined["frames"][: steps + 1], joined["actions"][:steps], joined["rewards"][:steps], **note)
        )

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
        # Chunks of episodes that never came to stand in the index, and temporary files.
        with storage_errors(self.path):
            for file in self.path.glob("*/.*.tmp"):
                file.unlink(missing_ok=True)
            for file in self.path.glob(f"*/*-*{_SUFFIX}"):
                if int(file.name.split("-")[0]) >= len(self):
                    file.unlink(missing_ok=True)

    # Reading

    def read(self, index: int) -> Episode:
        """Episode ``index`` whole. CorruptFileError names the chunk that is damaged or missing."""
        entry = self._entry(index)
        parts = [self._chunk(index, chunk) for chunk in entry.chunks()]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in ("frames", "actions", "rewards")}
        info = entry.info
        return Episode(
            **joined,
            terminated=info.terminated,
            truncated=info.truncated,
            seed=info.seed,
            policy=info.policy,
            iteration=info.iteration,
        )

    def frames(self, index: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Frames ``start`` to ``stop`` (not included; None: all) of an episode, uint8 [stop-start, 64, 64, 3].

        An episode of T steps has T + 1 frames. IndexError for frames that are not there.
        """
        entry = self._entry(index)
        stop = entry.info.steps + 1 if stop is None else stop
        if not 0 <= start < stop <= entry.info.steps + 1:
            raise IndexError(
                f"frames of episode {index} must be within [0, {entry.info.steps + 1}), but were [{start}, {stop})"
            )
        # The frame after the last step stands in the last chunk, even where its number would begin another.
        first, last = (min(frame // entry.chunk_steps, entry.chunks()[-1]) for frame in (start, stop - 1))
        parts = [self._chunk(index, chunk)["frames"] for chunk in range(first, last + 1)]
        offset = first * entry.chunk_steps
        return np.concatenate(parts)[start - offset : stop - offset]

    def frame_batches(
        self,
        episodes: Sequence[int],
        batch_size: int,
        seed: int,
        epoch: int,
        skip: int = 0,
        buffer_bytes: int = BUFFER_BYTES,
    ) -> Iterator[np.ndarray]:
        """Every frame of ``episodes`` once, shuffled: uint8 [batch_size, 64, 64, 3], the last batch perhaps smaller.

        Chunks come in a random order, as many at a time as fit ``buffer_bytes``, and the frames of these are shuffled
        together. The order follows from (episodes, batch_size, seed, epoch, buffer_bytes) alone. ``skip``: leave out so
        many batches, at no cost for those whose chunks are not needed.
        """
        check_int("batch_size", batch_size, least=1)
        skip = check_int("skip", skip, least=0)
        places = [(index, chunk) for index in episodes for chunk in self._entry(index).chunks()]
        rng = np.random.default_rng([check_int("seed", seed, least=0), check_int("epoch", epoch, least=0)])
        places = [places[place] for place in rng.permutation(len(places))]
        ends = np.cumsum([self._entries[index].frames_of(chunk) for index, chunk in places], dtype=np.int64)
        return self._shuffled(places, ends, batch_size, rng, skip, check_int("buffer_bytes", buffer_bytes, least=1))

    def _shuffled(
        self,
        places: list[tuple[int, int]],
        ends: np.ndarray,
        batch_size: int,
        rng: np.random.Generator,
        skip: int,
        buffer_bytes: int,
    ) -> Iterator[np.ndarray]:
        # Frames are numbered in the order of ``places``; ``ends`` are the chunks' ends in that numbering. ``waiting``
        # are those of earlier groups that did not fill a batch, ``held`` their pixels (None: not read, being skipped).
        total = int(ends[-1]) if len(ends) else 0
        capacity = min(buffer_bytes // _FRAME_BYTES, total)
        buffer: np.ndarray | None = None
        waiting, held = np.zeros(0, dtype=np.int64), None
        begin, first = 0, 0
        while first < len(places):
            stop = int(np.searchsorted(ends, begin + capacity - len(waiting), side="right"))
            stop = max(stop, first + 1)  # a buffer smaller than a chunk holds one chunk all the same
            end = int(ends[stop - 1])
            numbers = np.concatenate([waiting, np.arange(begin, end)])
            order = rng.permutation(len(numbers))
            batches = math.ceil(len(order) / batch_size) if end == total else len(order) // batch_size
            rest = order[batches * batch_size :]
            if skip >= batches:
                skip, held = skip - batches, None
            else:
                if buffer is None or len(buffer) < len(numbers):
                    buffer = np.empty((max(capacity, len(numbers)), *FRAME_SHAPE), dtype=np.uint8)
                buffer[: len(waiting)] = self._numbered(places, ends, waiting) if held is None else held
                row = len(waiting)
                for index, chunk in places[first:stop]:
                    frames = self._chunk(index, chunk)["frames"]
                    buffer[row : row + len(frames)] = frames
                    row += len(frames)
                for batch in range(skip, batches):
                    yield buffer[order[batch * batch_size : (batch + 1) * batch_size]]
                skip, held = 0, buffer[rest]
            waiting, begin, first = numbers[rest], end, stop

    def _numbered(self, places: list[tuple[int, int]], ends: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        frames = np.empty((len(numbers), *FRAME_SHAPE), dtype=np.uint8)
        owners = np.searchsorted(ends, numbers, side="right")
        for owner in np.unique(owners):
            index, chunk = places[owner]
            pixels = self._chunk(index, chunk)["frames"]
            mine = owners == owner
            frames[mine] = pixels[numbers[mine] - (ends[owner] - len(pixels))]
        return frames

    def _entry(self, index: int) -> _Entry:
        if not 0 <= index < len(self):
            raise IndexError(f"episode must be in [0, {len(self)}), but was {index}")
        return self._entries[index]

    def _chunk(self, index: int, chunk: int) -> dict[str, np.ndarray]:
        entry, path = self._entries[index], self._chunk_path(index, chunk)
        part = _decode(path, index, chunk)
        if len(part["rewards"]) != entry.steps_of(chunk) or len(part["frames"]) != entry.frames_of(chunk):
            raise CorruptFileError(
                f"{path}: holds {len(part['rewards'])} steps, not those the index names. {_remedy(path, index)}"
            )
        return part

    @property
    def _index(self) -> Path:
        return self.path / "index.jsonl"

    def _chunk_path(self, index: int, chunk: int) -> Path:
        return self.path / f"{index // _EPISODES_PER_FOLDER:03d}" / f"{index:06d}-{chunk:04d}{_SUFFIX}"


class EpisodeWriter:
    """Writes one episode as it is driven; at most one chunk of it is in memory.

    An exception, or simply never calling :meth:`finish`, leaves the store without the episode.
    """

    def __init__(self, store: RolloutStore, index: int, seed: int, policy: str, iteration: int) -> None:
        self.index = index
        self._store, self._chunk, self._total, self._steps = store, 0, 0.0, 0
        self._note: dict[str, Any] = {
            "seed": check_int("seed", seed, least=0),
            "policy": policy,
            "iteration": iteration,
        }
        self._frames: list[np.ndarray] = []
        self._actions: list[np.ndarray] = []
        self._rewards: list[float] = []

    def add(self, frame: np.ndarray, action: np.ndarray, reward: float) -> None:
        """One step: the frame uint8 [64, 64, 3] before it, the action float32 [A], the reward. All are copied."""
        if len(self._rewards) == self._store.chunk_steps:
            self._flush(None)
        self._frames.append(frame.copy())
        self._actions.append(action.copy())
        self._rewards.append(reward)

    def finish(self, frame: np.ndarray, terminated: bool, truncated: bool) -> None:
        """The frame after the last step, and why it was the last. Commits the episode, after those before it."""
        if not self._rewards:
            raise ValueError("an episode must have at least one step before it is finished")
        self._note |= {"terminated": bool(terminated), "truncated": bool(truncated)}
        self._flush(frame)
        info = EpisodeInfo(steps=self._steps, total_reward=self._total, **self._note)
        self._store._commit(self.index, _Entry(info, self._store.chunk_steps))

    def _flush(self, last: np.ndarray | None) -> None:
        rewards = np.array(self._rewards, dtype=np.float32)
        frames = np.stack(self._frames if last is None else [*self._frames, last])
        actions = np.stack(self._actions)
        _check_array("frames", frames, np.uint8, (len(frames), *FRAME_SHAPE))
        _check_array("actions", actions, np.float32, (len(rewards), "A"))
        _check_array("rewards", rewards, np.float32, (len(rewards),))
        part = {
            "frames": frames,
            "actions": actions,
            "rewards": rewards,
            "place": np.array([self.index, self._chunk], dtype=np.int64),
            "note": np.frombuffer(json.dumps(self._note).encode(), dtype=np.uint8),
        }
        payload = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(safetensors.numpy.save(part))
        with atomic_write(self._store._chunk_path(self.index, self._chunk)) as file:
            file.write(payload)
        self._chunk += 1
        self._steps += len(rewards)
        self._total += float(rewards.sum(dtype=np.float64))
        self._frames, self._actions, self._rewards = [], [], []


def split_episodes(count: int, holdout: float) -> tuple[list[int], list[int]]:
    """The training and the held-out ones of ``count`` episodes, about ``holdout`` of them held out.

    Which side an episode stands on follows from its index alone, so it never changes when more are appended: episode 1
    is held out, then every (1/holdout)-th. Episode 0 is for training; so both sides have one as soon as there are two.
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


def _line(index: int, entry: _Entry) -> str:
    return json.dumps({"episode": index} | asdict(entry.info) | {"chunk_steps": entry.chunk_steps})


def _read_index(path: Path) -> tuple[list[_Entry], int]:
    """The episodes of an index, and how many of its bytes stand for them."""
    content = path.read_bytes()
    lines = content.split(b"\n")
    torn = lines.pop()
    try:
        header = json.loads(lines[0])
        if header != _HEADER:
            raise ValueError(f"its header is {header!r}")
        entries = [_parse(number, json.loads(line)) for number, line in enumerate(lines[1:])]
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(
            f"{path}: not the index of a rollout store, or damaged ({error}). Restore it from a copy, or delete "
            f"{path.parent} to have the episodes collected again."
        ) from error
    return entries, len(content) - len(torn)


def _parse(number: int, row: dict[str, Any]) -> _Entry:
    chunk_steps = row.pop("chunk_steps")
    if row.pop("episode") != number:
        raise ValueError(f"line {number + 2} is not that of episode {number}")
    info = EpisodeInfo(**row)
    if not (isinstance(info.steps, int) and isinstance(chunk_steps, int) and info.steps > 0 and chunk_steps > 0):
        raise ValueError(f"line {number + 2} has impossible sizes")
    return _Entry(info, chunk_steps)


def _decode(path: Path, index: int, chunk: int) -> dict[str, np.ndarray]:
    try:
        payload = zstandard.ZstdDecompressor().decompress(path.read_bytes(), allow_extra_data=False)
        part = safetensors.numpy.load(payload)
        if part["place"].tolist() != [index, chunk] or not {"frames", "actions", "rewards", "note"} <= part.keys():
            raise ValueError("it is another chunk than its name says")
    except FileNotFoundError as error:
        raise CorruptFileError(f"{path}: missing. {_remedy(path, index)}") from error
    except (zstandard.ZstdError, SafetensorError, KeyError, ValueError, MemoryError) as error:
        raise CorruptFileError(f"{path}: damaged or truncated ({error}). {_remedy(path, index)}") from error
    return part


def _remedy(path: Path, index: int) -> str:
    store = path.parent.parent
    return (
        f"Restore it from a copy; or have it and the episodes after it collected again: wm-engine collect --run "
        f"{store.parent} --keep {index} (for a store without a run: RolloutStore.open({str(store)!r}).keep({index}))."
    )


def _check_array(name: str, value: Any, dtype: Any, shape: tuple[int | str, ...]) -> None:
    """``shape`` holds a number where the size is fixed, and a letter where any size of at least 1 will do."""
    if not isinstance(value, np.ndarray) or value.dtype != dtype:
        raise TypeError(
            f"{name} must be a {np.dtype(dtype)} numpy array, but was {getattr(value, 'dtype', type(value))}"
        )
    fits = value.ndim == len(shape) and all(
        size >= 1 if isinstance(want, str) else size == want for size, want in zip(value.shape, shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name} must have shape [{', '.join(map(str, shape))}], but had {list(value.shape)}")
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise ValueError(f"{name} must be finite, but {int((~np.isfinite(value)).sum())} of its entries were not")
