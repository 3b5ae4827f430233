"""The coordinator's C++ with the bugs of bugs.py put in, each caught by a check of processed.py or beside.py.

One build holds them all: every place reads `pearl_bug(NAME) ? wrong : right`, and PEARL_BUG in the
environment says which is on. It lives in a process of its own, in place of pearl_rt._C and _testing. That
process forks one more for every bug: `python tests/exactness/mutants.py MODULE.so < CASES`.
"""

import fcntl
import importlib.util
import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bugs

ROOT = Path(__file__).resolve().parents[2]
FAKES = ROOT / "tests" / "fakes"
NATIVE = FAKES / "native"
PYBIND = """
#include <pybind11/numpy.h>
#include <pybind11/stl.h>
"""
MODULE = """
#include "python/failures.h"
namespace pearl {
void bind_coordinator(pybind11::module_& m);
void bind_sampling(pybind11::module_& m);
void bind_scripted(pybind11::module_& m);
}
PYBIND11_MODULE(_C, m) {
  pearl::translate_failures();
  pearl::bind_coordinator(m);
  pearl::bind_sampling(m);
  pearl::bind_scripted(m);
}
"""
SWITCH = """
#include <cstdlib>
#include <cstring>
inline bool pearl_bug(const char* name) {
  static const char* const on = std::getenv("PEARL_BUG");
  return on != nullptr && std::strcmp(on, name) == 0;
}
"""
FLAGS = ("-std=c++20", "-w", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-pthread")


Case = tuple[str, str, dict[str, Any]]  # a bug, the name of a check of processed.py, the check's arguments


def includes(source: Path) -> set[str]:
    """Every header of csrc that it includes, and itself, below csrc."""
    csrc, found, todo = ROOT / "csrc", set(), [source]
    while todo:
        text = todo.pop().read_text()
        new = {name for name in re.findall(r'^#include "(.+)"', text, re.M) if (csrc / name).exists()} - found
        found |= new
        todo += [csrc / name for name in new]
    return found | {str(source.relative_to(csrc))}


def build() -> Path:
    """Compiles what the bugs change, and links it with the rest of csrc as the build made it -> the module.
    Kept until a source is newer.
    """
    import fake_cuda
    import pybind11  # only needed to build

    home = ROOT / "build" / "mutants"
    module = home / "_C.so"
    rest = fake_cuda.native_library()
    newest = max(
        p.stat().st_mtime
        for p in (*ROOT.glob("csrc/**/*.[ch]*"), *FAKES.glob("native/*"), Path(__file__), rest)
    )
    if module.exists() and module.stat().st_mtime > newest:
        return module
    changed = bugs.sources()
    bindings = {"pearl_bug.h": f"#pragma once{SWITCH}", "pybind.h": PYBIND, "module.cpp": MODULE}
    for place, text in (changed | bindings).items():
        path = home / "csrc" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    compiler = os.environ.get("CXX", "c++")
    folders = (home / "csrc", ROOT / "csrc", FAKES, pybind11.get_include(), sysconfig.get_path("include"))
    command = [compiler, *FLAGS, "-DPEARL_NO_CLONES", *(f"-I{folder}" for folder in folders)]
    header = home / "csrc" / "pybind.h"  # parsed once for all bindings
    subprocess.run([*command, "-O0", "-x", "c++-header", header, "-o", f"{header}.gch"], check=True)

    def compile_one(source: Path) -> Path:
        edited = home / source.relative_to(ROOT)
        target = home / f"{source.stem}.o"
        flags = ["-O0", "-include", header] if source in bound else ["-O1"]
        path = edited if edited.exists() else source
        subprocess.run([*command, *flags, "-c", path, "-o", target], check=True)
        return target

    rooms = [
        room for room in (ROOT / "csrc").iterdir() if room.is_dir() and room.name not in ("cuda", "python")
    ]
    candidates = sorted(path for room in rooms for path in room.rglob("*.cpp"))
    native = [path for path in candidates if includes(path) & changed.keys()]
    native.append(NATIVE / "scripted_executor.cpp")
    python = ROOT / "csrc" / "python"
    bound = [python / "bind_coordinator.cpp", python / "drafters" / "bind_drafters.cpp"]
    bound += [ROOT / "csrc" / "module.cpp"]
    bound += [NATIVE / "bind_sampling.cpp", NATIVE / "bind_scripted.cpp"]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        objects = list(pool.map(compile_one, [*bound, *native]))
    subprocess.run([compiler, "-shared", "-pthread", *objects, rest, "-o", module, "-ldl"], check=True)
    return module


@contextmanager
def alone() -> Iterator[None]:
    """Of the processes that run tests, one at a time builds and runs."""
    home = ROOT / "build" / "mutants"
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def said_of(cases: list[Case]) -> list[str]:
    """What `caught` says, found once for all processes of a run of tests."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    with alone():
        module = build()
        kept = module.with_name(f"said-{run}.json")
        if run and kept.exists():
            return json.loads(kept.read_text())
        found = caught(module, cases)
        for old in module.parent.glob("said-*.json"):
            old.unlink()
        if run:
            kept.write_text(json.dumps(found))
        return found


def caught(module: Path, cases: list[Case]) -> list[str]:
    """What each check says of the build with its bug on; "" if it finds nothing wrong."""
    paths = os.pathsep.join(
        map(str, (ROOT, *(ROOT / "tests" / folder for folder in ("fakes", "support", "exactness"))))
    )
    done = subprocess.run(
        [sys.executable, __file__, module],
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        timeout=560,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def forked(case: Case, write: int) -> int:
    """Runs a case in a child, which writes what its check says -> the child's id."""
    import beside
    import processed

    from pearl_rt.errors import PearlError

    child = os.fork()
    if child == 0:
        bug, check, arguments = case
        os.environ["PEARL_BUG"] = bug  # read once, when the module first asks
        try:
            getattr(processed if hasattr(processed, check) else beside, check)(**arguments)
        except (AssertionError, PearlError) as error:
            os.write(write, f"{type(error).__name__} {error}"[:300].encode())
        os._exit(0)
    os.close(write)
    return child


def main(module: str, cases: list[Case]) -> list[str]:
    spec = importlib.util.spec_from_file_location("pearl_rt._C", module)
    assert spec is not None and spec.loader is not None
    native = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(native)
    sys.modules["pearl_rt._C"] = sys.modules["pearl_rt._testing"] = native
    import processed

    assert processed._C is native
    said, running, todo = [""] * len(cases), {}, list(enumerate(cases))
    while todo or running:
        if todo and len(running) < len(os.sched_getaffinity(0)):
            number, case = todo.pop(0)
            read, write = os.pipe()
            running[forked(case, write)] = number, read
            continue
        child, status = os.wait()
        number, read = running.pop(child)
        assert status == 0, f"{cases[number]} ended with status {status}"
        with os.fdopen(read) as pipe:
            said[number] = pipe.read()
    return said


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], json.load(sys.stdin))))
