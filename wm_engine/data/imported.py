"""Episodes of one's own, read from .npz files and videos: checked array by array, every message naming file and array.

A file holds E episodes of T steps together, one after the other:

    actions   whole numbers [T], or real ones [T, A]
    rewards   [T]
    ends      [T]: 0; 1 where the environment ended the episode for good; 2 where it was cut. The last step may be 0: it
              counts as cut. The array may be left out where there is one episode.
    frames    uint8 [T + E, height, width, 3], one before each step and one after the last of each episode; or a video
              NAME.mp4 (.avi, .mkv, .mov, .webm) beside NAME.npz in their place
    observations  real numbers [T + E, size], where vectors are seen
"""

from __future__ import annotations

import subprocess
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wm_engine.data.store import Episode
from wm_engine.envs.frames import preprocess
from wm_engine.errors import CorruptFileError
from wm_engine.spaces import Actions, Box, Discrete, Observations, Pixels, Spaces, Vector

VIDEOS = (".mp4", ".avi", ".mkv", ".mov", ".webm")
_GOES_ON, _ENDED, _CUT = 0, 1, 2
_PREPROCESSED_AT_ONCE = 512


@dataclass(frozen=True)
class RecordedFile:
    """The arrays of one file, checked: seen uint8 [T+E, 64, 64, 3] or float32 [T+E, size]; actions int32 [T] or float32
    [T, A]; rewards float32 [T]; ends int64 [T], the last one not 0."""

    path: Path
    seen: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    ends: np.ndarray

    def episodes(self, spaces: Spaces) -> Iterator[Episode]:
        """Cut the file into its episodes, as a store of these spaces takes them; the policy is the file's name."""
        lasts = np.flatnonzero(self.ends)
        for number, (first, last) in enumerate(zip([0, *(lasts[:-1] + 1)], lasts, strict=True)):
            ended = bool(self.ends[last] == _ENDED)
            yield Episode(
                self.seen[first + number : last + number + 2],
                self.actions[first : last + 1].astype(spaces.actions.dtype),
                self.rewards[first : last + 1],
                terminated=ended,
                truncated=not ended,
                seed=number,
                policy=self.path.name,
            )


def read_file(path: Path) -> RecordedFile:
    """Read a .npz, or a video with the .npz beside it that holds all but its pictures.

    Raises CorruptFileError that names the file, the array, its shape and what it should be.
    """
    video = path if path.suffix.lower() in VIDEOS else None
    if video is None and path.suffix.lower() != ".npz":
        raise CorruptFileError(f"{path}: must be a .npz file or a video ({', '.join(VIDEOS)})")
    if video is not None and not path.with_suffix(".npz").exists():
        raise CorruptFileError(
            f"{path}: a video needs its actions: {path.with_suffix('.npz').name} beside it, with actions [T] and "
            "rewards [T] for T + 1 pictures"
        )
    arrays = _Arrays(path.with_suffix(".npz"))
    actions, rewards = _actions(arrays), arrays.numbers("rewards", 1)
    steps = len(actions)
    if not steps:
        raise arrays.wrong("actions", "a row for each step, at least one")
    arrays.check_length("rewards", rewards, steps, f"for {steps} actions")
    ends = _ends(arrays, steps)
    seen = _video(video) if video is not None else _seen(arrays)
    episodes = int((ends != _GOES_ON).sum())
    if len(seen) != steps + episodes:
        name = video.name if video is not None else "frames" if "frames" in arrays.names else "observations"
        raise CorruptFileError(
            f"{video or arrays.path}: {name} has {len(seen)} rows, but should have {steps + episodes}: for {steps} "
            f"actions in {episodes} episode{'s' * (episodes != 1)}, one before each step and one after each episode's "
            "last"
        )
    return RecordedFile(video or path, seen, actions, rewards, ends)


def spaces_of(files: Sequence[RecordedFile], count: int | None = None) -> Spaces:
    """Find the spaces that all files share; ``count`` discrete actions, None: as many as occur.

    Boxes reach as far as the actions that occur. CorruptFileError where files do not agree.
    """
    first = files[0]
    for file in files[1:]:
        for name in ("seen", "actions"):
            ours, theirs = getattr(first, name), getattr(file, name)
            if ours.shape[1:] != theirs.shape[1:] or ours.dtype != theirs.dtype:
                what = "observations" if name == "seen" else name
                raise CorruptFileError(
                    f"{file.path}: {what} are {theirs.dtype} [N{_rest(theirs)}], but should be {ours.dtype} "
                    f"[N{_rest(ours)}], as in {first.path}"
                )
    seen: Observations = Pixels() if first.seen.dtype == np.uint8 else Vector(first.seen.shape[1])
    actions = np.concatenate([file.actions for file in files])
    return Spaces(seen, _action_space(files, actions, count))


def _action_space(files: Sequence[RecordedFile], actions: np.ndarray, count: int | None) -> Actions:
    if actions.ndim > 1:
        low, high = actions.min(0), actions.max(0)
        high = np.where(high > low, high, low + 1.0)
        return Box(tuple(low.astype(float).tolist()), tuple(high.astype(float).tolist()))
    most = int(actions.max()) + 1
    for file in files:
        if count is not None and int(file.actions.max()) >= count:
            raise CorruptFileError(
                f"{file.path}: actions must be in [0, {count}), as --actions says, but went up to "
                f"{int(file.actions.max())}"
            )
    return Discrete(max(2, most if count is None else count))


class _Arrays:
    """The arrays of a .npz; nothing in it is executed (no pickles)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with np.load(path, allow_pickle=False) as found:
                self._found: dict[str, np.ndarray] = dict(found)
        except FileNotFoundError:
            raise CorruptFileError(f"{path}: there is no such file") from None
        except (OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
            raise CorruptFileError(f"{path}: not a .npz file of plain arrays ({error})") from error
        self.names = frozenset(self._found)

    def get(self, name: str) -> np.ndarray:
        if name not in self._found:
            raise CorruptFileError(
                f"{self.path}: lacks {name!r}; it holds {', '.join(sorted(self.names)) or 'nothing'}"
            )
        return self._found[name]

    def numbers(self, name: str, dimensions: int) -> np.ndarray:
        """Finite real numbers, float32, of so many dimensions."""
        value = self.get(name)
        if value.dtype.kind not in "fiub" or value.ndim != dimensions:
            raise self.wrong(name, f"real numbers of {dimensions} dimension{'s' * (dimensions != 1)}")
        if not np.isfinite(value).all():
            raise self.wrong(name, f"finite, but {int((~np.isfinite(value)).sum())} of its entries are not")
        return value.astype(np.float32)

    def check_length(self, name: str, value: np.ndarray, length: int, why: str) -> None:
        if len(value) != length:
            raise self.wrong(name, f"of {length} rows, {why}")

    def wrong(self, name: str, wanted: str) -> CorruptFileError:
        """Say what an array is, and what it should be."""
        value = self.get(name)
        return CorruptFileError(f"{self.path}: {name} is {value.dtype} {list(value.shape)}, but should be {wanted}")


def _actions(arrays: _Arrays) -> np.ndarray:
    value = arrays.get("actions")
    if value.ndim == 1 and value.dtype.kind in "iu":
        if len(value) and value.min() < 0:
            raise arrays.wrong("actions", f"whole numbers from 0, but the least is {value.min()}")
        return value.astype(np.int32)
    if value.ndim != 2 or value.dtype.kind != "f":
        raise arrays.wrong("actions", "whole numbers [T] for discrete actions, or real numbers [T, A]")
    return arrays.numbers("actions", 2)


def _ends(arrays: _Arrays, steps: int) -> np.ndarray:
    if "ends" not in arrays.names:
        ends = np.zeros(steps, np.int64)
    else:
        value = arrays.get("ends")
        if value.ndim != 1 or value.dtype.kind not in "iub" or not np.isin(value, (_GOES_ON, _ENDED, _CUT)).all():
            raise arrays.wrong("ends", "[T] of 0, 1 (ended for good) or 2 (cut)")
        arrays.check_length("ends", value, steps, f"for {steps} actions")
        ends = value.astype(np.int64)
    if ends[-1] == _GOES_ON:
        ends[-1] = _CUT
    return ends


def _seen(arrays: _Arrays) -> np.ndarray:
    if "frames" not in arrays.names:
        if "observations" not in arrays.names:
            raise CorruptFileError(f"{arrays.path}: lacks both 'frames' and 'observations': one of them is needed")
        return arrays.numbers("observations", 2)
    value = arrays.get("frames")
    if value.dtype != np.uint8 or value.ndim != 4 or value.shape[3] != 3 or 0 in value.shape:
        raise arrays.wrong("frames", "uint8 [N, height, width, 3]")
    parts = [value[first : first + _PREPROCESSED_AT_ONCE] for first in range(0, len(value), _PREPROCESSED_AT_ONCE)]
    return np.concatenate([preprocess(part) for part in parts])


def _video(path: Path) -> np.ndarray:
    """Read a video's pictures as V sees them, uint8 [N, 64, 64, 3]; one picture at a time is held at full size."""
    from imageio_ffmpeg import get_ffmpeg_exe  # here: the import looks for a program, and only videos need it

    # As PPM, whose every picture says how large it is; passed through, or pictures would be doubled to keep the time.
    how = ["-fps_mode", "passthrough", "-f", "image2pipe", "-c:v", "ppm", "-"]
    command = [get_ffmpeg_exe(), "-v", "error", "-nostdin", "-i", str(path), *how]
    pictures = []
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as decoder:
        assert decoder.stdout is not None
        while decoder.stdout.readline() == b"P6\n":
            width, height = map(int, decoder.stdout.readline().split())
            decoder.stdout.readline()  # the largest level, 255
            raw = decoder.stdout.read(3 * width * height)
            if len(raw) == 3 * width * height:
                pictures.append(preprocess(np.frombuffer(raw, np.uint8).reshape(1, height, width, 3)))
    if decoder.returncode or not pictures:
        raise CorruptFileError(f"{path}: cannot be read as a video, or holds no pictures")
    return np.concatenate(pictures)


def _rest(array: np.ndarray) -> str:
    return "".join(f", {size}" for size in array.shape[1:])
