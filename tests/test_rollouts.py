import json
import os
import signal
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wm_engine import rollouts
from wm_engine.errors import CorruptFileError, StorageError
from wm_engine.rollouts import Episode, RolloutStore, split_episodes

FRAME_BYTES = 64 * 64 * 3
FIELDS = ("frames", "actions", "rewards")


def episode(steps, seed=0, terminated=True, actions=3):
    """Frames carry their number in their first pixels, so that one frame can be told from another."""
    rng = np.random.default_rng(seed)
    frames = np.repeat(rng.integers(0, 256, (steps + 1, 64, 1, 3), dtype=np.uint8), 64, axis=2)
    frames[:, 0, 0, :] = seed
    frames[:, 0, 1, 0] = np.arange(steps + 1) % 256
    frames[:, 0, 1, 1] = np.arange(steps + 1) // 256
    return Episode(
        frames,
        rng.random((steps, actions), dtype=np.float32),
        rng.random(steps, dtype=np.float32),
        terminated,
        not terminated,
        seed,
        "brownian",
    )


def filled(path, lengths, chunk_steps=16):
    store = RolloutStore.open(path, chunk_steps=chunk_steps)
    for seed, steps in enumerate(lengths):
        store.append(episode(steps, seed))
    return store


def assert_same(one, two):
    assert all(getattr(one, name).dtype == getattr(two, name).dtype for name in FIELDS)
    assert all(np.array_equal(getattr(one, name), getattr(two, name)) for name in FIELDS)
    rest = ("terminated", "truncated", "seed", "policy", "iteration")
    assert [getattr(one, name) for name in rest] == [getattr(two, name) for name in rest]


def chunk_files(path):
    return sorted(path.glob("*/*.zst"))


def tags(batches):
    """(episode, frame) of every frame of a list of batches."""
    return [(int(f[0, 0, 0]), int(f[0, 1, 0]) + 256 * int(f[0, 1, 1])) for batch in batches for f in batch]


# What goes in comes out


@pytest.mark.parametrize("steps", [1, 15, 16, 17, 32, 50])
def test_an_episode_comes_back_as_it_was(tmp_path, steps):
    original = episode(steps, seed=7, terminated=steps % 2 == 0)
    assert filled(tmp_path, [3]).append(original) == 1
    store = RolloutStore.open(tmp_path, create=False)
    assert len(store) == 2
    assert store.steps == 3 + steps
    assert_same(store.read(1), original)
    info = store.info(1)
    assert (info.steps, info.seed, info.policy, info.iteration) == (steps, 7, "brownian", 0)
    assert (info.terminated, info.truncated) == (original.terminated, original.truncated)
    assert info.total_reward == pytest.approx(float(original.rewards.sum(dtype=np.float64)), rel=1e-12)
    assert len(chunk_files(tmp_path)) == 1 + -(-steps // 16)


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_any_span_of_frames(tmp_path_factory, data):
    steps, chunk = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 45))
    store = filled(tmp_path_factory.mktemp("store"), [steps], chunk)
    start = data.draw(st.integers(0, steps))
    stop = data.draw(st.integers(start + 1, steps + 1))
    assert np.array_equal(store.frames(0, start, stop), episode(steps).frames[start:stop])


def test_a_writer_is_an_append_in_steps(tmp_path):
    whole = filled(tmp_path / "a", [40])
    stepwise = RolloutStore.open(tmp_path / "b", chunk_steps=16)
    source, frame = episode(40), np.empty((64, 64, 3), np.uint8)
    writer = stepwise.writer(0, "brownian")
    for step in range(40):
        frame[:] = source.frames[step]  # one buffer, used again: what was added must have been copied
        writer.add(frame, source.actions[step], float(source.rewards[step]))
    writer.finish(source.frames[40], terminated=True, truncated=False)
    assert_same(stepwise.read(0), whole.read(0))
    for one, two in zip(chunk_files(tmp_path / "a"), chunk_files(tmp_path / "b"), strict=True):
        assert one.read_bytes() == two.read_bytes()


def test_writers_side_by_side_commit_in_their_order(tmp_path):
    store = RolloutStore.open(tmp_path, chunk_steps=4)
    episodes = [episode(9, seed) for seed in range(3)]
    writers = [store.writer(seed, "brownian") for seed in range(3)]
    for step in range(9):
        for source, writer in zip(episodes, writers, strict=True):
            writer.add(source.frames[step], source.actions[step], float(source.rewards[step]))
    for index, expected in ((2, 0), (0, 1), (1, 3)):
        writers[index].finish(episodes[index].frames[9], terminated=True, truncated=False)
        assert len(RolloutStore.open(tmp_path)) == expected
    for index in range(3):
        assert_same(RolloutStore.open(tmp_path).read(index), episodes[index])


def test_chunk_size_may_change_between_sessions(tmp_path):
    filled(tmp_path, [20], chunk_steps=16)
    store = RolloutStore.open(tmp_path, chunk_steps=5)
    store.append(episode(12, 1))
    assert_same(store.read(0), episode(20, 0))
    assert_same(store.read(1), episode(12, 1))


# Bad input


def test_bad_episodes_are_refused_before_anything_is_written(tmp_path):
    good = episode(4)
    for changes, error, words in (
        ({"frames": good.frames[:-1]}, ValueError, r"frames must have shape \[5, 64, 64, 3\]"),
        ({"frames": good.frames.astype(np.float32)}, TypeError, "frames must be a uint8"),
        ({"rewards": good.rewards[:-1]}, ValueError, "rewards must have shape"),
        ({"rewards": good.rewards * np.float32("nan")}, ValueError, "rewards must be finite"),
        ({"actions": good.actions.astype(np.float64)}, TypeError, "actions must be a float32"),
        ({"actions": good.actions[:, :0]}, ValueError, "actions must have shape"),
        ({"actions": [1.0]}, TypeError, "actions"),
    ):
        fields = {name: getattr(good, name) for name in FIELDS} | changes
        with pytest.raises(error, match=words):
            Episode(**fields, terminated=True, truncated=False, seed=0, policy="x")
    store = RolloutStore.open(tmp_path)
    with pytest.raises(ValueError, match="at least one step"):
        store.writer(0, "x").finish(good.frames[0], True, False)
    store.abandon()
    writer = store.writer(0, "x")
    writer.add(good.frames[0], good.actions[0], float("nan"))
    with pytest.raises(ValueError, match="rewards must be finite"):
        writer.finish(good.frames[1], True, False)


def test_what_is_not_there_is_an_index_error(tmp_path):
    store = filled(tmp_path, [4])
    for call in (
        lambda: store.read(1),
        lambda: store.info(-1),
        lambda: store.frames(0, 2, 6),
        lambda: store.frames(0, 3, 3),
    ):
        with pytest.raises(IndexError):
            call()
    with pytest.raises(FileNotFoundError, match="collect"):
        RolloutStore.open(tmp_path / "nowhere", create=False)


# Damage


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "extend", "missing", "swap"])
def test_a_damaged_chunk_is_named_and_never_returned(tmp_path, damage):
    store = filled(tmp_path, [40, 40])
    victim, other = chunk_files(tmp_path)[1], chunk_files(tmp_path)[4]
    content = victim.read_bytes()
    if damage == "flip":
        # A byte in the middle of the compressed data: only the checksum can tell.
        victim.write_bytes(
            content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 1]) + content[len(content) // 2 + 1 :]
        )
    elif damage == "truncate":
        victim.write_bytes(content[:-1])
    elif damage == "empty":
        victim.write_bytes(b"")
    elif damage == "extend":
        victim.write_bytes(content + b"more")
    elif damage == "missing":
        victim.unlink()
    else:
        victim.write_bytes(other.read_bytes())
    fresh = RolloutStore.open(tmp_path)
    for read in (
        lambda: fresh.read(0),
        lambda: fresh.frames(0, 20, 22),
        lambda: list(fresh.frame_batches([0, 1], 8, 0, 0)),
    ):
        with pytest.raises(CorruptFileError, match=rf"{victim.name}.*keep\(0\)"):
            read()
    assert_same(fresh.read(1), store.read(1))
    assert np.array_equal(fresh.frames(0, 0, 16), episode(40).frames[:16])


def test_every_flipped_bit_of_a_chunk_is_noticed(tmp_path):
    filled(tmp_path, [2])
    (path,) = chunk_files(tmp_path)
    content = path.read_bytes()
    original = RolloutStore.open(tmp_path).read(0)
    for position in np.random.default_rng(0).choice(len(content), 60, replace=False):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :])
        try:
            read = RolloutStore.open(tmp_path).read(0)
        except CorruptFileError:
            continue
        assert_same(read, original)  # a bit without meaning, such as a reserved one


def test_episodes_before_the_damage_can_be_kept(tmp_path):
    store = filled(tmp_path, [20, 20, 20])
    chunk_files(tmp_path)[2].write_bytes(b"damaged")
    store.keep(1)
    again = RolloutStore.open(tmp_path)
    assert len(again) == len(store) == 1
    assert len(chunk_files(tmp_path)) == 2
    again.append(episode(20, 1))
    assert_same(RolloutStore.open(tmp_path).read(1), episode(20, 1))


def test_a_damaged_index_is_named(tmp_path):
    filled(tmp_path, [4, 4, 4])
    index = tmp_path / "index.jsonl"
    lines = index.read_text().splitlines(keepends=True)
    for broken in (
        [lines[0], "{nonsense}\n", *lines[2:]],
        [lines[0], *lines[2:]],
        ["{}\n", *lines[1:]],
        [],
        [lines[0], json.dumps(json.loads(lines[1]) | {"steps": 0}) + "\n"],
    ):
        index.write_text("".join(broken))
        with pytest.raises(CorruptFileError, match=r"index\.jsonl"):
            RolloutStore.open(tmp_path)


def test_chunks_without_an_index_are_not_taken_for_an_empty_store(tmp_path):
    filled(tmp_path, [4])
    (tmp_path / "index.jsonl").unlink()
    for create in (True, False):
        with pytest.raises(CorruptFileError, match=r"index\.jsonl: missing"):
            RolloutStore.open(tmp_path, create=create)
    assert len(chunk_files(tmp_path)) == 1


# Interruption


@pytest.mark.parametrize("cut", range(1, 30, 7))
def test_a_torn_last_line_of_the_index_is_an_episode_that_never_was(tmp_path, cut):
    filled(tmp_path, [20, 20])
    index = tmp_path / "index.jsonl"
    index.write_bytes(index.read_bytes()[:-cut])
    store = RolloutStore.open(tmp_path, chunk_steps=16)
    assert len(store) == 1
    store.append(episode(33, 5))
    again = RolloutStore.open(tmp_path)
    assert len(again) == 2
    assert_same(again.read(0), episode(20, 0))
    assert_same(again.read(1), episode(33, 5))
    assert len(chunk_files(tmp_path)) == 2 + 3


def interrupted(path, chunks):
    """Kill -9 a process that appends a third episode, when ``chunks`` of its five chunks are whole."""
    script = f"""
import os, signal, sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
import test_rollouts, wm_engine.rollouts as rollouts
from contextlib import contextmanager
whole, real = 0, rollouts.atomic_write
@contextmanager
def deadly(path):
    global whole
    with real(path) as file:
        yield file
        if whole == {chunks}:
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    whole += 1
rollouts.atomic_write = deadly
rollouts.RolloutStore.open({str(path)!r}, chunk_steps=16).append(test_rollouts.episode(70, 2))
"""
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr


@pytest.mark.parametrize("chunks", [0, 3])
def test_a_killed_append_loses_at_most_the_chunk_being_written(tmp_path, chunks):
    filled(tmp_path, [20, 40])
    interrupted(tmp_path, chunks)
    store = RolloutStore.open(tmp_path, chunk_steps=16)
    assert len(store) == 2
    for index, steps in enumerate((20, 40)):
        assert_same(store.read(index), episode(steps, index))

    source = episode(70, 2)
    if chunks == 0:
        assert store.salvage() is None
    else:
        assert store.salvage() == 2
        saved, steps = store.read(2), 16 * chunks - 1
        assert np.array_equal(saved.frames, source.frames[: 16 * chunks])
        assert np.array_equal(saved.rewards, source.rewards[:steps])
        assert (saved.seed, saved.terminated, saved.truncated) == (2, False, True)


def test_a_killed_append_can_be_made_again(tmp_path):
    filled(tmp_path / "killed", [20, 40])
    interrupted(tmp_path / "killed", 2)
    RolloutStore.open(tmp_path / "killed", chunk_steps=16).append(episode(70, 2))
    reference = filled(tmp_path / "whole", [20, 40])
    reference.append(episode(70, 2))
    names = [sorted(p.relative_to(root) for p in root.rglob("*")) for root in (tmp_path / "killed", tmp_path / "whole")]
    assert names[0] == names[1]
    for name in names[0]:
        if (tmp_path / "whole" / name).is_file():
            assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_salvage_of_an_episode_that_lacked_only_its_line(tmp_path):
    store = filled(tmp_path, [20, 33])
    index = tmp_path / "index.jsonl"
    index.write_bytes(index.read_bytes()[:-5])
    store = RolloutStore.open(tmp_path, chunk_steps=16)
    assert store.salvage() == 1
    assert_same(store.read(1), episode(33, 1))


def test_salvage_after_a_write_is_refused(tmp_path):
    with pytest.raises(ValueError, match="before the first write"):
        filled(tmp_path, [4]).salvage()


def test_a_full_disk_is_a_storage_error_and_loses_nothing(tmp_path, monkeypatch):
    store = filled(tmp_path, [20])
    calls, real = [], os.fsync

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) >= 3:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="no space left"):
        store.append(episode(60, 1))
    monkeypatch.undo()
    assert len(store) == len(RolloutStore.open(tmp_path)) == 1
    assert store.append(episode(60, 1)) == 1
    assert_same(RolloutStore.open(tmp_path).read(1), episode(60, 1))


def test_a_full_disk_at_the_index(tmp_path, monkeypatch):
    store = filled(tmp_path, [20])

    def full(self, index, entry):
        with rollouts.storage_errors(self._index), open(self._index, "ab") as file:
            file.write(b'{"episode": 1, "st')
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(RolloutStore, "_commit", full)
        with pytest.raises(StorageError):
            store.append(episode(20, 1))
    assert store.append(episode(20, 1)) == 1
    assert_same(RolloutStore.open(tmp_path).read(1), episode(20, 1))


# Batches


def test_every_frame_once_in_full_batches(tmp_path):
    lengths = [40, 1, 16, 33, 64]
    store = filled(tmp_path, lengths)
    batches = list(store.frame_batches([0, 2, 3, 4], 10, seed=1, epoch=0, buffer_bytes=40 * FRAME_BYTES))
    expected = [(index, frame) for index in (0, 2, 3, 4) for frame in range(lengths[index] + 1)]
    assert sorted(tags(batches)) == sorted(expected)
    assert [len(batch) for batch in batches] == [10] * (len(expected) // 10) + [len(expected) % 10]
    assert tags(batches) != expected


def test_batches_follow_from_seed_and_epoch_alone(tmp_path):
    store = filled(tmp_path, [40, 30, 50])

    def order(seed, epoch):
        return tags(store.frame_batches([0, 1, 2], 8, seed, epoch, buffer_bytes=50 * FRAME_BYTES))

    assert order(3, 0) == order(3, 0)
    assert order(3, 0) != order(3, 1)
    assert order(3, 0) != order(4, 0)


def test_batches_mix_episodes(tmp_path):
    store = filled(tmp_path, [64] * 8)
    first = next(iter(store.frame_batches(range(8), 64, 0, 0, buffer_bytes=260 * FRAME_BYTES)))
    assert len({index for index, _ in tags([first])}) >= 4


@pytest.mark.parametrize("buffer_frames", [1, 20, 47, 100, 10_000])
def test_skipping_is_the_same_as_throwing_away(tmp_path, buffer_frames):
    store = filled(tmp_path, [40, 1, 16, 33, 64])
    arguments = {"seed": 5, "epoch": 2, "buffer_bytes": buffer_frames * FRAME_BYTES}
    batches = list(store.frame_batches(range(5), 9, **arguments))
    assert sorted(tags(batches)) == sorted(tags([store.frames(i) for i in range(5)]))
    for skip in range(len(batches) + 2):
        rest = list(store.frame_batches(range(5), 9, skip=skip, **arguments))
        assert tags(rest) == tags(batches[skip:])
        assert all(np.array_equal(one, two) for one, two in zip(rest, batches[skip:], strict=True))


def test_skipping_reads_no_more_than_it_needs(tmp_path, monkeypatch):
    store = filled(tmp_path, [64] * 8)
    read, real = [], rollouts._decode
    monkeypatch.setattr(rollouts, "_decode", lambda *place: read.append(place) or real(*place))
    next(iter(store.frame_batches(range(8), 8, 0, 0, skip=60, buffer_bytes=80 * FRAME_BYTES)))
    assert len(read) <= 12  # the last groups' chunks, and those of the few frames carried over, of 32


def test_bad_arguments_of_batches(tmp_path):
    store = filled(tmp_path, [4])
    for arguments in ({"batch_size": 0}, {"seed": -1}, {"epoch": -1}, {"skip": -1}, {"buffer_bytes": 0}):
        with pytest.raises(ValueError, match=next(iter(arguments))):
            store.frame_batches([0], **({"batch_size": 4, "seed": 0, "epoch": 0} | arguments))
    with pytest.raises(IndexError):
        store.frame_batches([1], 4, 0, 0)
    assert list(store.frame_batches([], 4, 0, 0)) == []


def test_memory_stays_within_the_buffer(tmp_path):
    store = RolloutStore.open(tmp_path, chunk_steps=64)
    for seed in range(6):
        store.append(episode(400, seed))
    raw = 6 * 401 * FRAME_BYTES  # 30 MB

    def peak(buffer_bytes):
        tracemalloc.start()
        frames = sum(len(batch) for batch in store.frame_batches(range(6), 50, 0, 0, buffer_bytes=buffer_bytes))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert frames == 6 * 401
        return most

    buffer = 4 * 2**20
    # Beside the buffer: two batches, the frames carried over, and a chunk compressed, decompressed and taken apart.
    assert peak(buffer) <= buffer + 3 * 50 * FRAME_BYTES + 3 * 65 * FRAME_BYTES < raw / 3
    assert peak(4 * buffer) > 4 * buffer  # so it is the buffer that is measured


# The split


@given(st.integers(2, 400), st.integers(1, 400), st.floats(0.01, 0.99))
def test_an_episode_never_changes_sides(count, more, holdout):
    training, held = split_episodes(count, holdout)
    assert sorted(training + held) == list(range(count))
    assert training
    assert held
    later = split_episodes(count + more, holdout)
    assert set(training) <= set(later[0])
    assert set(held) <= set(later[1])


@pytest.mark.parametrize("holdout", [0.05, 0.1, 0.25, 0.5])
def test_the_share_held_out(holdout):
    assert len(split_episodes(1000, holdout)[1]) == pytest.approx(1000 * holdout, abs=1)


def test_bad_shares():
    for holdout in (0.0, 1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="holdout"):
            split_episodes(10, holdout)


def test_split_of_a_store(tmp_path):
    store = filled(tmp_path, [2, 2, 2])
    assert store.split(0.1) == ([0, 2], [1])
