"""Files: nothing half-written is ever read, damage is named, one process holds it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from wm_engine.errors import CorruptFileError, RunBusyError, StorageError
from wm_engine.files import (
    Checkpoints,
    atomic_write,
    file_fingerprint,
    load_tensors,
    lock_folder,
    read_json,
    save_tensors,
    sweep_temporaries,
    write_json,
    write_text,
)


def tensors() -> dict[str, torch.Tensor]:
    return {"a": torch.arange(6.0).reshape(2, 3), "empty": torch.zeros(0, 4), "scalar": torch.tensor(7)}


def test_tensors_come_back_as_they_were(tmp_path):
    path = tmp_path / "new" / "x.safetensors"
    save_tensors(path, tensors() | {"f64": np.array([1.5, np.nan])}, {"kind": "test"})
    loaded, metadata = load_tensors(path)
    assert metadata == {"kind": "test"}
    assert loaded.keys() == {"a", "empty", "scalar", "f64"}
    for name, tensor in tensors().items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)
    assert loaded["f64"].dtype == torch.float64
    assert torch.isnan(loaded["f64"][1])


def test_a_view_is_saved_by_its_values(tmp_path):
    wide = torch.arange(12.0).reshape(3, 4)
    save_tensors(tmp_path / "x.safetensors", {"t": wide.T, "column": wide[:, 1]})
    loaded, _ = load_tensors(tmp_path / "x.safetensors")
    assert torch.equal(loaded["t"], wide.T)
    assert torch.equal(loaded["column"], wide[:, 1])


def test_equal_contents_make_equal_files(tmp_path):
    save_tensors(tmp_path / "1", tensors(), {"kind": "test", "b": "2"})
    save_tensors(tmp_path / "2", dict(reversed(tensors().items())), {"b": "2", "kind": "test"})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    assert file_fingerprint(tmp_path / "1") == file_fingerprint(tmp_path / "2")


@pytest.mark.parametrize("keep", [0, 5, 50, -1])
def test_a_truncated_file_is_named(tmp_path, keep):
    path = tmp_path / "x.safetensors"
    save_tensors(path, tensors())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CorruptFileError, match=r"x\.safetensors"):
        load_tensors(path)


def test_one_flipped_bit_is_found(tmp_path):
    path = tmp_path / "x.safetensors"
    save_tensors(path, tensors())
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptFileError, match=r"x\.safetensors.*checksum"):
        load_tensors(path)


def test_a_missing_file_is_not_a_damaged_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_tensors(tmp_path / "nowhere")


def test_a_failed_write_keeps_the_earlier_file_and_leaves_nothing(tmp_path):
    path = tmp_path / "x.txt"
    write_text(path, "first")
    with pytest.raises(TypeError), atomic_write(path) as file:
        file.writelines([b"second, ", None])
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_a_storage_error_that_names_the_file(tmp_path):
    path = tmp_path / "x.txt"
    write_text(path, "first")
    with pytest.raises(StorageError, match=r"x\.txt.*space"), atomic_write(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert path.read_text() == "first"


def test_a_place_that_cannot_be_written_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="below"):
        write_text(tmp_path / "file" / "below", "text")


def test_a_killed_write_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "x.txt"
    write_text(path, "first")
    program = (
        "import os, signal, sys\n"
        "from wm_engine.files import atomic_write\n"
        "with atomic_write(sys.argv[1]) as file:\n"
        "    file.write(b'second, cut'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode == -signal.SIGKILL
    assert path.read_text() == "first"
    assert len(list(tmp_path.iterdir())) == 2
    sweep_temporaries(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_json_round_trip_and_damage(tmp_path):
    value = {"b": [1, 2.5, None], "a": "ä"}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
    (tmp_path / "x.json").write_text('{"b": [1,')
    with pytest.raises(CorruptFileError, match=r"x\.json"):
        read_json(tmp_path / "x.json")


def test_json_holds_no_number_that_json_does_not_have(tmp_path):
    write_json(tmp_path / "x.json", {"a": [float("nan"), (1.0, float("inf"))], "b": {"c": -float("inf")}})
    text = (tmp_path / "x.json").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert read_json(tmp_path / "x.json") == {"a": [None, [1.0, None]], "b": {"c": None}}


def test_checkpoints_give_back_the_newest_and_keep_few(tmp_path):
    checkpoints = Checkpoints(tmp_path / "vision", keep=2)
    assert checkpoints.latest() is None
    for step in (5, 10, 100):
        checkpoints.save(step, {"w": torch.full((2,), float(step))}, {"epoch": step // 5})
    step, loaded, state = checkpoints.latest()
    assert step == 100
    assert torch.equal(loaded["w"], torch.full((2,), 100.0))
    assert state == {"epoch": 20}
    assert len(list((tmp_path / "vision").iterdir())) == 2
    checkpoints.clear()
    assert checkpoints.latest() is None


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_checkpoint_takes_no_good_ones_place(tmp_path, keep):
    checkpoints = Checkpoints(tmp_path, keep=keep)
    (tmp_path / "00000050.safetensors").write_bytes(b"damaged")
    for step in (11, 12, 13):
        checkpoints.save(step, {"w": torch.zeros(1)}, {})
    assert [int(path.stem) for path in sorted(tmp_path.iterdir())] == [12, 13][-keep:]


def test_checkpoints_that_keep_none_are_refused(tmp_path):
    with pytest.raises(ValueError, match="keep must be at least 1, but was 0"):
        Checkpoints(tmp_path, keep=0)


def test_a_damaged_checkpoint_is_named(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, {"w": torch.zeros(8)}, {})
    path = next(tmp_path.iterdir())
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CorruptFileError, match=path.name):
        checkpoints.latest()


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, caplog):
    checkpoints = Checkpoints(tmp_path)
    for step in (3, 4):
        checkpoints.save(step, {"w": torch.full((8,), float(step))}, {"sigma": step})
    path = tmp_path / "00000004.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    step, loaded, state = checkpoints.latest()
    assert (step, state) == (3, {"sigma": 3})
    assert torch.equal(loaded["w"], torch.full((8,), 3.0))
    assert "00000004.safetensors" in caplog.text


def test_no_flipped_bit_of_a_checkpoint_goes_unseen(tmp_path):
    """In the tensors, in the state, and in what names them: it is found, or it changes nothing."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(3, {"w": torch.arange(3.0)}, {"sigma": 0.25, "generation": 7})
    path = tmp_path / "00000003.safetensors"
    whole = path.read_bytes()
    passed = 0
    for place in range(len(whole)):
        for bit in (0, 3, 5):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                step, loaded, state = checkpoints.latest()
            except CorruptFileError:
                continue
            passed += 1
            assert (step, state) == (3, {"sigma": 0.25, "generation": 7})
            assert loaded.keys() == {"w"}
            assert torch.equal(loaded["w"], torch.arange(3.0))
    assert passed < len(whole) // 4


def test_a_file_that_is_no_checkpoint_is_named(tmp_path):
    save_tensors(tmp_path / "00000003.safetensors", {"w": torch.zeros(8)})
    with pytest.raises(CorruptFileError, match="not a checkpoint"):
        Checkpoints(tmp_path).latest()


HOLDER = """
import sys, time
from pathlib import Path
from wm_engine.files import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_one_process_holds_a_folder_until_it_dies(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunBusyError, match=f"process {holder.pid}"), lock_folder(tmp_path):
            pass
        holder.kill()
        holder.wait()
    with lock_folder(tmp_path):
        pass
    with lock_folder(tmp_path):
        pass


def test_a_checkpoint_is_found_by_its_step(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=3)
    assert checkpoints.steps() == []
    for step in (5, 10, 100, 101):
        checkpoints.save(step, {"w": torch.full((2,), float(step))}, {"round": step})
    assert checkpoints.steps() == [10, 100, 101]
    tensors, state = checkpoints.load(100)
    assert torch.equal(tensors["w"], torch.full((2,), 100.0))
    assert state == {"round": 100}
    with pytest.raises(CorruptFileError, match=r"00000005\.safetensors: missing, though a later checkpoint needs it"):
        checkpoints.load(5)
    path = tmp_path / "00000010.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CorruptFileError, match=path.name):
        checkpoints.load(10)


def test_going_on_from_an_earlier_checkpoint_drops_the_later_ones(tmp_path):
    """They were found damaged: kept, they would take the places of good ones."""
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2):
        checkpoints.save(step, {"w": torch.zeros(1)}, {})
    (tmp_path / "00000009.safetensors").write_bytes(b"damaged")
    checkpoints.save(3, {"w": torch.zeros(1)}, {})
    assert checkpoints.steps() == [2, 3]


def test_a_checkpoint_cut_by_a_kill_leaves_the_one_before(tmp_path, monkeypatch):
    """Before its rename it has no name; after it, it is whole."""

    class Killed(BaseException):
        """Stands for kill -9: nothing catches it."""

    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, {"w": torch.zeros(1)}, {})

    def dying(source, target):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dying)
        with pytest.raises(Killed):
            checkpoints.save(2, {"w": torch.ones(1)}, {})
    assert checkpoints.latest()[0] == 1
    checkpoints.keep = 1
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda path, missing_ok: dying(path, path))
        with pytest.raises(Killed):
            checkpoints.save(2, {"w": torch.ones(1)}, {})
    assert checkpoints.latest()[0] == 2
