import json
import os
import signal
import subprocess
import sys
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from wm_engine.data import store as stores
from wm_engine.data.store import Episode, RolloutStore, split_episodes
from wm_engine.errors import CorruptFileError, RunMismatchError, StorageError
from wm_engine.spaces import Box, Codes, Discrete, Pixels, Spaces, Vector

CAR = Spaces(Pixels(), Box((-1.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
KINDS = {
    "pixels, box": CAR,
    "vector, discrete": Spaces(Vector(4), Discrete(2)),
    "codes, box": Spaces(Codes((3, 5), 512), Box((-2.0,), (2.0,))),
    "small pixels, discrete": Spaces(Pixels((8, 6, 3)), Discrete(5)),
}
ARRAYS = ("observations", "actions", "rewards")


def episode(steps, seed=0, terminated=True, spaces=CAR, round=0, frames=0):
    rng = np.random.default_rng(seed)
    seen, acted = spaces.observations, spaces.actions
    most = {Pixels: 256, Codes: getattr(seen, "count", 0)}.get(type(seen))
    shape = (steps + 1, *seen.shape)
    observations = rng.random(shape, np.float32) if most is None else rng.integers(0, most, shape).astype(seen.dtype)
    if isinstance(seen, Pixels):  # as smooth as pictures are
        observations[:, :, 1:] = observations[:, :, :1]
    actions = rng.uniform(*acted.bounds, (steps, acted.size)).astype(np.float32)
    rewards = rng.random(steps, dtype=np.float32)
    stored = acted.to_stored(actions)
    return Episode(observations, stored, rewards, terminated, not terminated, seed, "random", round, frames)


def filled(path, lengths, chunk_steps=16, spaces=CAR):
    store = RolloutStore.open(path, spaces, chunk_steps=chunk_steps)
    for seed, steps in enumerate(lengths):
        store.append(episode(steps, seed, spaces=spaces))
    return store


def assert_same(one, two):
    assert all(getattr(one, name).dtype == getattr(two, name).dtype for name in ARRAYS)
    assert all(np.array_equal(getattr(one, name), getattr(two, name)) for name in ARRAYS)
    rest = ("terminated", "truncated", "seed", "policy", "round", "frames")
    assert [getattr(one, name) for name in rest] == [getattr(two, name) for name in rest]


def chunk_files(path):
    return sorted(path.glob("*/*.zst"))


# What goes in comes out


@pytest.mark.parametrize("spaces", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("steps", [1, 15, 16, 17, 32, 50])
def test_an_episode_comes_back_as_it_was(tmp_path, steps, spaces):
    original = episode(steps, 7, steps % 2 == 0, spaces, round=3, frames=4 * steps - 1 if steps > 1 else 1)
    assert filled(tmp_path, [3], spaces=spaces).append(original) == 1
    store = RolloutStore.open(tmp_path, create=False)
    assert store.spaces == spaces
    assert len(store) == 2
    assert store.total_steps() == 3 + steps
    assert store.total_frames() == 3 + original.frames
    assert_same(store.read(1), original)
    info = store.info(1)
    assert (info.steps, info.frames, info.seed, info.policy, info.round) == (steps, original.frames, 7, "random", 3)
    assert (info.terminated, info.truncated) == (original.terminated, original.truncated)
    assert info.total_reward == pytest.approx(float(original.rewards.sum(dtype=np.float64)), rel=1e-12)
    assert len(chunk_files(tmp_path)) == 1 + -(-steps // 16)


@pytest.mark.parametrize("spaces", KINDS.values(), ids=KINDS)
def test_actions_come_as_the_model_knows_them(tmp_path, spaces):
    store = filled(tmp_path, [40], spaces=spaces)
    actions, rewards = store.actions_and_rewards(0)
    original = episode(40, spaces=spaces)
    assert (actions.shape, actions.dtype) == ((40, spaces.actions.size), np.float32)
    assert np.array_equal(actions, spaces.actions.from_stored(original.actions))
    assert np.array_equal(rewards, original.rewards)


def test_actions_are_read_without_the_observations(tmp_path, monkeypatch):
    store = filled(tmp_path, [40])
    monkeypatch.setattr(stores._ChunkFile, "observations", lambda self: pytest.fail("read the observations"))
    assert len(store.actions_and_rewards(0)[1]) == 40


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_any_span_of_observations(tmp_path_factory, data):
    steps, chunk = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 45))
    store = filled(tmp_path_factory.mktemp("store"), [steps], chunk)
    start = data.draw(st.integers(0, steps))
    stop = data.draw(st.integers(start + 1, steps + 1))
    assert np.array_equal(store.observations(0, start, stop), episode(steps).observations[start:stop])


@pytest.mark.parametrize("spaces", KINDS.values(), ids=KINDS)
def test_a_writer_is_an_append_in_steps(tmp_path, spaces):
    whole = RolloutStore.open(tmp_path / "a", spaces, chunk_steps=16)
    source = episode(40, spaces=spaces, frames=160)
    whole.append(source)
    stepwise = RolloutStore.open(tmp_path / "b", spaces, chunk_steps=16)
    actions = spaces.actions.from_stored(source.actions)
    shown = np.empty(spaces.observations.shape, spaces.observations.dtype)
    writer = stepwise.writer(0, "random")
    for step in range(40):
        shown[:] = source.observations[step]  # one buffer, used again: what was added must have been copied
        writer.add(shown, actions[step], float(source.rewards[step]), frames=4)
    writer.finish(source.observations[40], terminated=True, truncated=False)
    assert_same(stepwise.read(0), whole.read(0))
    for one, two in zip(chunk_files(tmp_path / "a"), chunk_files(tmp_path / "b"), strict=True):
        assert one.read_bytes() == two.read_bytes()
    assert (tmp_path / "a/index.jsonl").read_bytes() == (tmp_path / "b/index.jsonl").read_bytes()


def test_writers_side_by_side_commit_in_their_order(tmp_path):
    store = RolloutStore.open(tmp_path, CAR, chunk_steps=4)
    episodes = [episode(9, seed) for seed in range(3)]
    writers = [store.writer(seed, "random") for seed in range(3)]
    for step in range(9):
        for source, writer in zip(episodes, writers, strict=True):
            writer.add(source.observations[step], source.actions[step], float(source.rewards[step]))
    for index, expected in ((2, 0), (0, 1), (1, 3)):
        writers[index].finish(episodes[index].observations[9], terminated=True, truncated=False)
        assert len(RolloutStore.open(tmp_path)) == expected
    for index in range(3):
        assert_same(RolloutStore.open(tmp_path).read(index), episodes[index])


def test_chunk_size_may_change_between_sessions(tmp_path):
    filled(tmp_path, [20], chunk_steps=16)
    store = RolloutStore.open(tmp_path, chunk_steps=5)
    store.append(episode(12, 1))
    assert_same(store.read(0), episode(20, 0))
    assert_same(store.read(1), episode(12, 1))


def test_rounds_stand_in_their_order(tmp_path):
    store = RolloutStore.open(tmp_path, CAR)
    for seed, round in enumerate([0, 0, 1, 4, 4]):
        store.append(episode(3, seed, round=round, frames=10 + seed))
    for opened in (store, RolloutStore.open(tmp_path)):
        assert [opened.episodes(upto) for upto in (None, -1, 0, 1, 3, 4, 9)] == [
            range(stop) for stop in (5, 0, 2, 3, 3, 5, 5)
        ]
        assert [opened.total_frames(upto) for upto in (None, 0, 1, 3)] == [60, 21, 33, 33]
        assert [opened.total_steps(upto) for upto in (None, 0, 1)] == [15, 6, 9]
        with pytest.raises(ValueError, match="round must be at least 4, but was 3"):
            opened.writer(0, "x", round=3)
    store.keep(2)
    store.append(episode(3, 7, round=1))
    assert store.info(2).round == 1


def test_the_header_says_what_is_stored(tmp_path):
    filled(tmp_path, [2], spaces=KINDS["codes, box"])
    header = json.loads((tmp_path / "index.jsonl").read_text().splitlines()[0])
    assert header == {
        "format": "wm_engine rollouts",
        "version": 2,
        "arrays": {
            "observations": {"dtype": "int32", "shape": [3, 5]},
            "actions": {"dtype": "float32", "shape": [1]},
            "rewards": {"dtype": "float32", "shape": []},
        },
        "spaces": {
            "observations": {"kind": "Codes", "shape": [3, 5], "count": 512},
            "actions": {"kind": "Box", "low": [-2.0], "high": [2.0]},
        },
    }


# Bad input


def test_bad_episodes_are_refused(tmp_path):
    good = episode(4)
    for changes, error, words in (
        (
            {"observations": good.observations[:-1]},
            ValueError,
            "observations must have 5 rows for 4 rewards, but had 4",
        ),
        ({"rewards": good.rewards[:-1]}, ValueError, "actions must have 3 rows"),
        (
            {"rewards": good.rewards.astype(np.float64)},
            TypeError,
            "rewards must be a float32 numpy array, but was float",
        ),
        ({"rewards": good.rewards[:0]}, ValueError, r"rewards must have shape \[T\], but had \[0\]"),
        ({"actions": [1.0]}, TypeError, "actions must be a numpy array of 4 rows, but was list"),
        ({"frames": 3}, ValueError, "frames must be at least 4, but was 3"),
    ):
        with pytest.raises(error, match=words):
            replace(good, **changes)
    store = RolloutStore.open(tmp_path, CAR)
    for changes, error, words in (
        ({"observations": good.observations.astype(np.float32)}, TypeError, "observation must be a uint8"),
        ({"observations": good.observations[:, 1:]}, ValueError, r"observation must have shape \[64, 64, 3\], but had"),
        ({"actions": good.actions.astype(np.float64)}, TypeError, "action must be a float32"),
        ({"actions": good.actions[:, 1:]}, ValueError, r"action must have shape \[3\], but had \[2\]"),
        ({"rewards": good.rewards * np.float32("nan")}, ValueError, "rewards must be finite, but 4"),
        ({"actions": good.actions * np.float32("inf")}, ValueError, "actions must be finite"),
    ):
        with pytest.raises(error, match=words):
            store.append(replace(good, **changes))
    assert chunk_files(tmp_path) == []
    assert len(store) == 0


@pytest.mark.parametrize("bad", [-1, 5])
def test_numbers_outside_their_space_are_refused(tmp_path, bad):
    for place, spaces in enumerate((Spaces(Codes((2,), 5), Box((0.0,), (1.0,))), Spaces(Vector(1), Discrete(5)))):
        name = ("observations", "actions")[place]
        wrong = episode(3, spaces=spaces)
        getattr(wrong, name)[1] = bad
        with pytest.raises(ValueError, match=rf"{name} must be in \[0, 5\), but were from"):
            RolloutStore.open(tmp_path / name, spaces).append(wrong)


def test_a_bad_step_is_named(tmp_path):
    store, good = RolloutStore.open(tmp_path, CAR), episode(4)
    with pytest.raises(ValueError, match="at least one step"):
        store.writer(0, "x").finish(good.observations[0], True, False)
    store.abandon()
    writer = store.writer(0, "x")
    for arguments, error, words in (
        ((good.observations[0], np.zeros(2, np.float32), 0.0), ValueError, r"shape \[3\], but was float32 \[2\]"),
        ((good.observations[0], 1, 0.0), ValueError, "action must be a floating array .* but was int"),
        ((good.observations[0], good.actions[0], 0.0, 0), ValueError, "frames must be at least 1"),
        ((good.observations[0] * 1.0, good.actions[0], 0.0), TypeError, "observation must be a uint8"),
    ):
        with pytest.raises(error, match=words):
            writer.add(*arguments)
    writer = store.writer(0, "x")
    writer.add(good.observations[0], good.actions[0], float("nan"))
    with pytest.raises(ValueError, match="rewards must be finite"):
        writer.finish(good.observations[1], True, False)


def test_what_is_not_there_is_an_index_error(tmp_path):
    store = filled(tmp_path, [4])
    for call in (
        lambda: store.read(1),
        lambda: store.info(-1),
        lambda: store.actions_and_rewards(1),
        lambda: store.observations(0, 2, 6),
        lambda: store.observations(0, 3, 3),
    ):
        with pytest.raises(IndexError):
            call()
    with pytest.raises(FileNotFoundError, match="wm-engine train"):
        RolloutStore.open(tmp_path / "nowhere", create=False)
    with pytest.raises(ValueError, match="spaces must be given to make a store"):
        RolloutStore.open(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_a_store_of_other_spaces_is_refused(tmp_path):
    filled(tmp_path, [4])
    assert len(RolloutStore.open(tmp_path, CAR)) == 1
    for other in (Spaces(Vector(3), CAR.actions), Spaces(Pixels(), Box((0.0,) * 3, (1.0,) * 3))):
        with pytest.raises(RunMismatchError, match=r"holds episodes of Spaces.*Pixels.*but these are of Spaces"):
            RolloutStore.open(tmp_path, other)


def test_a_store_of_the_first_edition_is_refused(tmp_path):
    row = {"episode": 0, "steps": 5, "seed": 1, "terminated": True, "truncated": False, "total_reward": 1.0}
    row |= {"policy": "brownian", "iteration": 0, "chunk_steps": 256}
    header = {"format": "wm_engine rollouts", "version": 1}
    (tmp_path / "index.jsonl").write_text(json.dumps(header) + "\n" + json.dumps(row) + "\n")
    (tmp_path / "000").mkdir()
    (tmp_path / "000" / "000000-0000.safetensors.zst").write_bytes(b"")
    for spaces in (None, CAR):
        with pytest.raises(RunMismatchError, match=r"first edition of wm_engine .*Choose another --run folder"):
            RolloutStore.open(tmp_path, spaces)
    (tmp_path / "index.jsonl").write_text(json.dumps(header | {"version": 3}) + "\n")
    with pytest.raises(RunMismatchError, match="another edition of wm_engine"):
        RolloutStore.open(tmp_path)


# Damage


def first_frame(content):
    frame = zstandard.ZstdDecompressor().decompressobj()
    frame.decompress(content)
    return len(content) - len(frame.unused_data)


@pytest.mark.parametrize("damage", ["flip", "truncate", "halve", "empty", "extend", "missing", "swap"])
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
    elif damage == "halve":
        victim.write_bytes(content[: first_frame(content)])
    elif damage == "missing":
        victim.unlink()
    else:
        victim.write_bytes(other.read_bytes())
    fresh = RolloutStore.open(tmp_path)
    for read in (
        lambda: fresh.read(0),
        lambda: fresh.observations(0, 20, 22),
    ):
        with pytest.raises(CorruptFileError, match=rf"{victim.name}.*keep\(0\)"):
            read()
    assert_same(fresh.read(1), store.read(1))
    assert np.array_equal(fresh.observations(0, 0, 16), episode(40).observations[:16])


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
        [lines[0], json.dumps(json.loads(lines[1]) | {"frames": 3}) + "\n"],
        [lines[0].replace("uint8", "int32"), *lines[1:]],
        [lines[0].replace("Pixels", "Pictures"), *lines[1:]],
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
import test_store, wm_engine.data.store as rollouts
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
rollouts.RolloutStore.open({str(path)!r}, chunk_steps=16).append(test_store.episode(70, 2))
"""
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert process.returncode == -signal.SIGKILL, process.stderr


@pytest.mark.parametrize("chunks", [0, 3])
def test_a_killed_append_leaves_the_store_as_it_was(tmp_path, chunks):
    filled(tmp_path, [20, 40])
    interrupted(tmp_path, chunks)
    store = RolloutStore.open(tmp_path, chunk_steps=16)
    assert len(store) == 2
    for index, steps in enumerate((20, 40)):
        assert_same(store.read(index), episode(steps, index))


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
        with stores.storage_errors(self._index), open(self._index, "ab") as file:
            file.write(b'{"episode": 1, "st')
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(RolloutStore, "_commit", full)
        with pytest.raises(StorageError):
            store.append(episode(20, 1))
    assert store.append(episode(20, 1)) == 1
    assert_same(RolloutStore.open(tmp_path).read(1), episode(20, 1))


# Memory and time


def peak(call):
    tracemalloc.start()
    call()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most


def test_reading_takes_the_episode_and_a_chunk(tmp_path):
    store = RolloutStore.open(tmp_path, CAR, chunk_steps=16)
    for seed in range(4):
        store.append(episode(400, seed))
    row = 64 * 64 * 3
    whole, chunk = 401 * row, 17 * row
    assert whole < peak(lambda: [store.read(index) for index in range(4)][:0]) < 4 * whole + 4 * chunk + 2**18
    assert peak(lambda: store.observations(0, 100, 110)) < 10 * row + 4 * chunk + 2**18
    assert peak(lambda: store.actions_and_rewards(0)) < 2 * chunk + 2**18  # a chunk compressed, and what it gives

    def write():
        writer, shown, action = store.writer(9, "random"), np.zeros(CAR.observations.shape, np.uint8), np.zeros(3)
        for _ in range(400):
            writer.add(shown, action, 0.0)
        writer.finish(shown, True, False)

    assert peak(write) < 6 * chunk + 2**19


def test_the_index_of_many_episodes_is_small(tmp_path):
    store = filled(tmp_path, [4])
    header, line = (tmp_path / "index.jsonl").read_text().splitlines()
    rows = [json.dumps(json.loads(line) | {"episode": index, "seed": 10**6 + index}) for index in range(5000)]
    (tmp_path / "index.jsonl").write_text("\n".join([header, *rows]) + "\n")
    del store
    tracemalloc.start()
    store = RolloutStore.open(tmp_path)
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(store) == 5000
    assert size / 5000 < 500  # bytes an episode: a million frames of CartPole at random are 45,000 episodes


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
