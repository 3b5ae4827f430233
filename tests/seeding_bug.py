"""PEARL's published seeding bug, built into the coordinator: the tests of the law are seen to fail on it.

PEARL_SEEDING_BUG (csrc/cpu/noise.h) means one seed for two positions in a row and for all purposes. The build
lives in a process of its own, in place of pearl_rt._C: `python tests/seeding_bug.py MODULE.so JSON`.
"""

import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from law import Case

ROOT = Path(__file__).resolve().parent.parent
CPU_SOURCES = (
    "cpu_device",
    "cpu_lane",
    "cpu_steps",
    "scripted_executor",
    "bind_scripted",
    "sampling",
    "judge",
)
MODULE = """
#include <pybind11/pybind11.h>
namespace pearl { void bind_coordinator(pybind11::module_& m); }
PYBIND11_MODULE(_C, m) { pearl::bind_coordinator(m); }
"""
FLAGS = ("-std=c++20", "-O1", "-w", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-pthread")


def build() -> Path:
    """Compiles the coordinator with the bug -> the module. Kept until a source is newer."""
    import pybind11  # only needed to build

    home = ROOT / "build" / "seeding-bug"
    home.mkdir(parents=True, exist_ok=True)
    module = home / "_C.so"
    newest = max(p.stat().st_mtime for p in (*ROOT.glob("csrc/**/*.[ch]*"), Path(__file__)))
    if module.exists() and module.stat().st_mtime > newest:
        return module
    (home / "module.cpp").write_text(MODULE)
    sources = [home / "module.cpp", *sorted(ROOT.glob("csrc/coordinator/*.cpp"))]
    sources += [ROOT / "csrc" / "cpu" / f"{name}.cpp" for name in CPU_SOURCES]
    compiler = os.environ.get("CXX", "c++")
    folders = (ROOT / "csrc", pybind11.get_include(), sysconfig.get_path("include"))

    def compile_one(source: Path) -> Path:
        target = home / f"{source.stem}.o"
        define = ["-DPEARL_SEEDING_BUG", "-DPEARL_NO_CLONES"]
        includes = [f"-I{folder}" for folder in folders]
        subprocess.run([compiler, *FLAGS, *define, *includes, "-c", source, "-o", target], check=True)
        return target

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        objects = list(pool.map(compile_one, sources))
    subprocess.run([compiler, "-shared", "-pthread", *objects, "-o", module], check=True)
    return module


def counts(module: Path, case: "Case", **settings: Any) -> np.ndarray:
    """law.coordinator_counts by the module with the bug."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, module, json.dumps({"case": asdict(case), **settings})]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    return np.array(json.loads(done.stdout))


def main(module: str, work: dict[str, Any]) -> None:
    spec = importlib.util.spec_from_file_location("pearl_rt._C", module)
    assert spec is not None and spec.loader is not None
    native = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(native)
    sys.modules["pearl_rt._C"] = native
    from law import Case, coordinator_counts

    print(json.dumps(coordinator_counts(Case(**work.pop("case")), **work).tolist()))


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
