"""Builds the C++ core with CMake; everything else stands in pyproject.toml.

A machine without a C++ compiler gets a working installation without the core, and a loud warning. Either way
``wm_engine/_build_info.json`` records what happened, and ``wm-engine info`` says it. With ``WM_ENGINE_REQUIRE_CPP=1``
a failed build is an error. ``WM_ENGINE_CMAKE_ARGS`` is handed to CMake.
"""

import hashlib
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class BuildCore(build_ext):
    def run(self) -> None:
        extension = self.extensions[0]
        target = Path(self.get_ext_fullpath(extension.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.build_core(target)
        except (OSError, RuntimeError) as error:
            if os.environ.get("WM_ENGINE_REQUIRE_CPP", "0") not in ("", "0"):
                raise
            self.extensions = []
            target.unlink(missing_ok=True)
            self.record(target, built=False, reason=str(error))
            rule = "*" * 100
            self.warn(
                f"\n{rule}\nwm_engine is installed WITHOUT its C++ core: dreams on the CPU will be many times slower.\n"
                f"Reason: {error}\nInstall a C++17 compiler and Python's headers, and install again.\n{rule}"
            )
        else:
            self.record(target, built=True, reason="")

    def build_core(self, target: Path) -> None:
        cmake = shutil.which("cmake")
        if cmake is None:
            raise RuntimeError("cmake was not found")
        try:
            import pybind11
        except ImportError as error:
            raise RuntimeError("pybind11 was not found") from error
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        # pip builds in an environment that it deletes: a cache left by an earlier install names a ninja that is gone.
        (build / "CMakeCache.txt").unlink(missing_ok=True)
        generator = ["-G", "Ninja"] if shutil.which("ninja") else []
        self.call(
            [
                cmake,
                *generator,
                "-S",
                str(ROOT),
                "-B",
                str(build),
                f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
                f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={build / 'lib'}",
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
                *shlex.split(os.environ.get("WM_ENGINE_CMAKE_ARGS", "")),
            ],
            "configuring",
        )
        self.call([cmake, "--build", str(build), "--target", "_C"], "compiling")
        built = next((build / "lib").glob("_C.*"), None)
        if built is None:
            raise RuntimeError(f"the build left no _C in {build / 'lib'}")
        # Replaced, not overwritten: another process may have the old one mapped.
        staged = target.with_name(target.name + ".new")
        shutil.copy2(built, staged)
        staged.replace(target)

    def call(self, command: list[str], doing: str) -> None:
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        print(result.stdout, flush=True)
        if result.returncode:
            raise RuntimeError(f"{doing} the C++ core failed: {first_error(result.stdout)}")

    def record(self, target: Path, *, built: bool, reason: str) -> None:
        info = {"cpp": built, "reason": reason, "sources": sources_hash()}
        (target.parent / "_build_info.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")


def sources_hash() -> str:
    """Of what the core is built from: a cluster's machines compare it (``wm_engine/cluster/compatibility.py``)."""
    digest = hashlib.sha256()
    for path in sorted([ROOT / "CMakeLists.txt", *(ROOT / "csrc").glob("*")]):
        if path.is_file():
            digest.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:12]


def first_error(output: str) -> str:
    """The first complaint in the output of CMake or a compiler, on one line."""
    if "No CMAKE_CXX_COMPILER could be found" in output:
        return "no C++ compiler was found"
    lines = output.splitlines()
    for number, line in enumerate(lines):
        if line.startswith("CMake Error"):  # its message stands indented below
            message = itertools.takewhile(lambda text: text.startswith(" ") or not text, lines[number + 1 :])
            return " ".join(" ".join(message).split()).partition(" It fails with")[0][:300] or line
        if re.search(r"\berror\b", line, re.IGNORECASE):
            return line.strip()
    return lines[-1].strip() if lines else "no output"


setup(ext_modules=[Extension("wm_engine._C", sources=[])], cmdclass={"build_ext": BuildCore})
