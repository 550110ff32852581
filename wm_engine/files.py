"""Files: atomic writes, the folder's lock, checkpoints, and hashes of contents.

Files are safetensors and text; nothing here executes anything on load. Every write goes to a temporary file beside its
target, is synced, and takes the target's name in one rename, so a reader never meets half a file.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from wm_engine.checks import check_int
from wm_engine.errors import CorruptFileError, RunBusyError, StorageError

_log = logging.getLogger(__name__)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, a missing permission or a read-only place into a StorageError that names ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StorageError(
                f"{path}: no space left to write it ({error.strerror}). Free some space or choose another --run "
                "folder, then run the same command again: finished work is kept."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST):
            raise StorageError(f"{path}: cannot be written ({error.strerror}). Choose another --run folder.") from error
        raise


@contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A binary file that takes the name ``path`` only when it has been written whole and synced.

    Raises StorageError where the disk is full or the place cannot be written; the earlier file is then still there.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    # The rename itself lives in the folder: without this, a power cut can undo it.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold ``folder`` for this process alone; RunBusyError where another process holds it.

    The lock belongs to the open file, so it goes with the process however that ends; the file ``.lock`` itself stays
    behind and means nothing.
    """
    path = folder / ".lock"
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+", encoding="ascii")  # noqa: SIM115 - closed below; "a+" keeps the holder's number readable
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip()
            raise RunBusyError(
                f"{folder}: process {holder or '(unknown)'} is working in this run folder. "
                "Wait for it to end, or choose another --run folder."
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def sweep_temporaries(folder: Path) -> None:
    """Delete what killed writes left behind. Only the holder of the folder's lock may do this."""
    for path in folder.rglob(".*.tmp*"):
        path.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_write(path) as file:
        file.write(text.encode())


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write ``value`` as JSON, atomically. JSON has no non-finite numbers: they become null."""
    write_text(path, json.dumps(finite_or_null(value), indent=1, sort_keys=True, allow_nan=False) + "\n")


def finite_or_null(value: Any) -> Any:
    """``value`` with None in the place of every float that is not finite, however deep in dicts, lists and tuples."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite_or_null(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_or_null(inner) for inner in value]
    return value


def read_json(path: str | os.PathLike[str], remedy: str = "Delete it to have it made again.") -> Any:
    """Read a JSON file; CorruptFileError names it, and the ``remedy``, where it does not parse."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, UnicodeDecodeError) as error:
        raise CorruptFileError(f"{path}: not valid JSON ({error}). {remedy}") from error


def as_tensor(value: Tensor | np.ndarray) -> Tensor:
    """A contiguous CPU tensor of ``value``."""
    tensor = torch.from_numpy(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value
    return tensor.detach().to("cpu").contiguous()


def save_tensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor | np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file atomically, with a SHA-256 of its tensors in the metadata."""
    plain = {name: as_tensor(value) for name, value in tensors.items()}
    header = dict(metadata or {}) | {"sha256": _digest(plain)}
    with atomic_write(path) as file:
        file.write(_in_order(serialize(plain, header)))


def _in_order(data: bytes) -> bytes:
    """The safetensors file ``data`` with its header's keys sorted.

    The library writes the metadata in the order of a randomly seeded hash table; a resumed run is compared with an
    uninterrupted one by bytes. The format: 8 bytes of header length (little endian), JSON padded with spaces, tensors.
    """
    end = 8 + int.from_bytes(data[:8], "little")
    text = json.dumps(json.loads(data[8:end]), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[end:]


def load_tensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file whole: its tensors by name, and its metadata.

    Raises CorruptFileError where the file is truncated, damaged or not safetensors; FileNotFoundError where it is not
    there.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError) as error:
        raise CorruptFileError(
            f"{path}: damaged or truncated ({error}). Delete it, and the stage that made it will make it again."
        ) from error
    digest = metadata.pop("sha256", None)
    if digest is not None and digest != _digest(tensors):
        raise CorruptFileError(
            f"{path}: its contents do not match their checksum. Delete it, and the stage that made it will make it "
            "again."
        )
    return tensors, metadata


def _digest(tensors: Mapping[str, Tensor]) -> str:
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        sha.update(f"{name}:{tensor.dtype}:{list(tensor.shape)};".encode())
        sha.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def file_fingerprint(path: str | os.PathLike[str]) -> str:
    """Hash a file's bytes, shortly."""
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            sha.update(block)
    return sha.hexdigest()[:16]


class Checkpoints:
    """A folder of ``STEP.safetensors`` files, each the whole state of a training at that step; the newest are kept.

    The JSON-able part of the state travels in the file's metadata, so that one rename commits everything. Each has a
    checksum.
    """

    def __init__(self, folder: str | os.PathLike[str], keep: int = 2) -> None:
        self.folder = Path(folder)
        self.keep = check_int("keep", keep, least=1)

    def save(self, step: int, tensors: Mapping[str, Tensor | np.ndarray], state: Mapping[str, Any]) -> None:
        """Write the checkpoint of ``step`` atomically, then delete all but the newest ``keep`` up to it.

        Who goes on from :meth:`latest` has found later ones damaged: kept, they would take the places of good ones.
        """
        text = json.dumps(dict(state), sort_keys=True)
        header = {"step": str(step), "state": text, "state_sha256": _state_digest(str(step), text)}
        save_tensors(self._path(step), tensors, header)
        paths = self._paths()
        kept = [path for path in paths if int(path.stem) <= step][-self.keep :]
        for path in set(paths).difference(kept):
            path.unlink(missing_ok=True)

    def latest(self) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
        """The newest checkpoint as (step, tensors, state); None where there is none.

        Damaged ones are passed over, and logged; what followed from them is done again. CorruptFileError where all are.
        """
        paths = self._paths()
        for path in reversed(paths):
            try:
                return self._read(path)
            except CorruptFileError as error:
                if path == paths[0]:
                    raise
                _log.warning("a checkpoint is passed over, for the one before it: %s", error)
        return None

    def load(self, step: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the checkpoint of ``step`` as (tensors, state); CorruptFileError where it is damaged or gone."""
        path = self._path(step)
        if not path.exists():
            raise CorruptFileError(f"{path}: missing, though a later checkpoint needs it.")
        _, tensors, state = self._read(path)
        return tensors, state

    def steps(self) -> list[int]:
        """List the steps that there are checkpoints of, oldest first."""
        return [int(path.stem) for path in self._paths()]

    def _read(self, path: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]]:
        tensors, metadata = load_tensors(path)
        try:
            step, text, digest = (metadata[name] for name in ("step", "state", "state_sha256"))
        except KeyError as error:
            raise CorruptFileError(f"{path}: not a checkpoint (no {error}). Delete it to begin without it.") from error
        if digest != _state_digest(step, text):
            raise CorruptFileError(f"{path}: its state does not match its checksum. Delete it to begin without it.")
        return int(step), tensors, json.loads(text)

    def clear(self) -> None:
        """Delete every checkpoint: the work they belonged to is done, or must begin anew."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, step: int) -> Path:
        return self.folder / f"{step:08d}.safetensors"

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.safetensors"))


def _state_digest(step: str, state: str) -> str:
    return hashlib.sha256(f"{step}:{state}".encode()).hexdigest()
