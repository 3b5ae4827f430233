"""Builds pearl_rt._C with CMake and Ninja, and maps kernels/ to pearl_rt.kernels."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """`setup.py build_ext`: configure once, then let Ninja rebuild what changed."""

    def run(self) -> None:
        super().run()
        if self.inplace:
            self.link_kernels()

    def build_extension(self, ext: Extension) -> None:
        output_dir = Path(self.get_ext_fullpath(ext.name)).resolve().parent
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
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={output_dir}",
            *os.environ.get("CMAKE_ARGS", "").split(),
        ]
        subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
        subprocess.run([self.tool("cmake"), "--build", str(build_dir)], check=True)

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
    packages=["pearl_rt", "pearl_rt.models", "pearl_rt.train", "pearl_rt.kernels"],
    package_dir={"pearl_rt.kernels": "kernels"},
    ext_modules=[Extension("pearl_rt._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
