"""Builds pearl_rt._C with CMake and Ninja, and maps kernels/ to pearl_rt.kernels.

`build_ext --inplace` builds pearl_rt._testing and pearl_rt._ptx too, which tests import and no release has.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """`setup.py build_ext`: configure once, then let Ninja rebuild what changed."""

    def finalize_options(self) -> None:
        if self.inplace and (ROOT / "tests").is_dir():
            for name in ("_testing", "_ptx"):
                self.distribution.ext_modules.append(Extension(f"pearl_rt.{name}", sources=[]))
        super().finalize_options()

    def run(self) -> None:
        if self.inplace:
            self.link_kernels()  # first: kernels need no C++
        super().run()

    def build_extensions(self) -> None:
        output_dir = Path(self.get_ext_fullpath(self.extensions[0].name)).resolve().parent
        build_dir = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        build_dir.mkdir(parents=True, exist_ok=True)
        configure = [
            self.tool("cmake"),
            "-S",
            str(ROOT),
            "-B",
            str(build_dir),
            "-G",
            "Ninja",
            f"-DCMAKE_MAKE_PROGRAM={self.tool('ninja')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            *self.pybind11_headers(),
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={output_dir}",
            *os.environ.get("CMAKE_ARGS", "").split(),
        ]
        subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
        targets = [ext.name.rpartition(".")[2] for ext in self.extensions]
        subprocess.run([self.tool("cmake"), "--build", str(build_dir), "--target", *targets], check=True)

    @staticmethod
    def pybind11_headers() -> list[str]:
        """Where CMake finds pybind11: its own package, or else the headers that every torch carries."""
        if find_spec("pybind11"):
            import pybind11

            return [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", "-DPYBIND11_HEADERS="]
        torch = find_spec("torch")
        include = Path(torch.origin).parent / "include" if torch and torch.origin else None
        if include is None or not (include / "pybind11" / "pybind11.h").exists():
            raise SystemExit(
                "pearl_rt needs pybind11's headers to build its C++ extension: pip install pybind11"
            )
        return [f"-DPYBIND11_HEADERS={include}"]

    @staticmethod
    def tool(name: str) -> str:
        """The program of that name beside this interpreter, or on the PATH."""
        beside = Path(sys.executable).parent / name
        found = str(beside) if beside.exists() else shutil.which(name)
        if found is None:
            raise SystemExit(
                f"pearl_rt needs {name} to build its C++ extension: install it (pip install {name})"
            )
        return found

    @staticmethod
    def link_kernels() -> None:
        """A checkout has no package_dir mapping: show kernels/ as pearl_rt/kernels there too."""
        link = ROOT / "pearl_rt" / "kernels"
        if not link.exists():
            link.symlink_to(Path("..") / "kernels", target_is_directory=True)


setup(
    packages=[
        *find_packages(include=["pearl_rt", "pearl_rt.*"], exclude=["pearl_rt.kernels*"]),
        *("pearl_rt.kernels", *(f"pearl_rt.kernels.{name}" for name in find_packages("kernels"))),
    ],
    package_dir={"pearl_rt.kernels": "kernels"},
    ext_modules=[Extension("pearl_rt._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
