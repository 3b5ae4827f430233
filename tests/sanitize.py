"""Runs the coordinator's tests on a ThreadSanitizer and on an AddressSanitizer + UBSan build of _C.

    python tests/sanitize.py [thread|address ...]

The sanitized module stands in a package of its own (build/sanitize-MODE/pearl_rt), with the plain-Python
modules that the tests need and no torch: only our code is under test. Then programs with one wait missing are
run on the ThreadSanitizer build, each of which it must report, and random calls of all of _C on the other
one. CUDA lanes run on the fake driver, built for the sanitizer too; the owners of CUDA handles likewise, as a
program without Python.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests" / "fakes"))

import fake_cuda  # noqa: E402

MODULES = (
    "errors",
    "types/values",
    "scheduling/engine_lock",
    "strategy/program",
    "reference/noise",
    "reference/processors",
    "reference/judge",
    "reference/drafters/diffusion",
    "reference/round",
)
TESTS = (
    "coordinator",
    "batching",
    "windows",
    "block_pool",
    "block_admission",
    "core_set",
    "native_lanes",
    "cuda_lane",
    "cuda_lane_faults",
    "cuda_joins",
    "cuda_logprobs",
    "cuda_blocks",
)
LIBRARIES = {"thread": ("libtsan.so",), "address": ("libasan.so", "libubsan.so", "libstdc++.so")}
OPTIONS = {
    "thread": {"TSAN_OPTIONS": "exitcode=66 history_size=7"},
    "address": {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"},
}
NUM_CALLS = 24_000  # random ones, under the address sanitizer
# (strategy, the lane that does not wait, placement): "split" on CPU lanes, the others on a fake GPU, or two.
RACES = [
    (strategy, lane, placement)
    for placement in ("split", "shared", "devices")
    for strategy in ("sd", "pearl")
    for lane in ("target", "draft")
]


def tool(name: str) -> str:
    """The program of that name beside this interpreter, or on the PATH."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else shutil.which(name) or name


def build(mode: str) -> Path:
    """Builds _C for the mode -> the folder to put on the Python path."""
    home = ROOT / "build" / f"sanitize-{mode}"
    package = home / "pearl_rt"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text("")
    for name in MODULES:
        target = package / f"{name}.py"
        target.parent.mkdir(parents=True, exist_ok=True)
        (target.parent / "__init__.py").touch()
        shutil.copy(ROOT / "pearl_rt" / f"{name}.py", target)
    configure = [tool("cmake"), "-S", ROOT, "-B", home / "cmake", "-G", "Ninja"]
    configure += [f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}", f"-DPython_EXECUTABLE={sys.executable}"]
    configure += [f"-Dpybind11_DIR={pybind11.get_cmake_dir()}", f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={package}"]
    configure += [f"-DPEARL_SANITIZE={mode}"]
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    subprocess.run([tool("cmake"), "--build", home / "cmake"], check=True)
    return home


def environment(mode: str, home: Path) -> dict[str, str]:
    """The runtime libraries go in front: Python itself is not instrumented."""
    compiler = os.environ.get("CXX", "g++")
    found = [
        subprocess.run(
            [compiler, f"-print-file-name={name}"], check=True, capture_output=True, text=True
        ).stdout
        for name in LIBRARIES[mode]
    ]
    path = {
        "PYTHONPATH": os.pathsep.join(
            map(str, (home, ROOT / "tests", ROOT / "tests" / "fakes", ROOT / "tests" / "support"))
        ),
        "PYTHONSAFEPATH": "1",
        "LD_PRELOAD": " ".join(p.strip() for p in found),
    }
    return {**os.environ, **OPTIONS[mode], **path, "PEARL_SANITIZE": mode}


def race(strategy: str, lane: str, placement: str) -> None:
    """Runs a program whose `lane` does not wait for the other. In a process of its own: it ends badly."""
    from scripted import Bench
    from scripted_cuda import CudaBench

    from pearl_rt import _C
    from pearl_rt.errors import PearlError
    from pearl_rt.strategy.program import LANES, LaneProgram, Program, program

    base = program(strategy, placement)
    lanes = list(base.lanes)
    at = LANES.index(lane)
    body = tuple(op for op in lanes[at].body if op.kind != "wait")
    lanes[at] = LaneProgram(lanes[at].prologue, body)
    target, draft = {"rule": 1}, {"rule": 1, "divergence": 0.4}
    for seed in range(20):
        if placement == "split":
            delays = {"delay_us": (0, 20), "delay_seed": seed}
            bench = Bench.build("split", target={**target, **delays}, draft={**draft, **delays})
        else:
            fake_cuda.load().reset(seed=seed, max_delay_us=20)
            bench = CudaBench.build(placement, target=target, draft=draft, gammas=[4])
        try:
            request = _C.Request([1], gamma=4, max_tokens=60)
            bench.run(Program("racy", tuple(lanes)), request, is_ordered=False)
        except PearlError as error:  # what a race may lead to
            print(error)


def handles(mode: str) -> None:
    """tests/fakes/cuda_handles.cpp: clean, but for what it leaves out on purpose."""
    command = fake_cuda.program("cuda_handles.cpp", mode)
    env = {**os.environ, **OPTIONS[mode]}
    for scenario in fake_cuda.SCENARIOS + (fake_cuda.RACES if mode == "thread" else ()):
        for seed in range(1 if scenario in fake_cuda.RACES else 10):
            result = subprocess.run([*command, scenario, str(seed)], env=env, capture_output=True, text=True)
            is_race = result.returncode == 66 and "WARNING: ThreadSanitizer: data race" in result.stderr
            if is_race != (scenario in fake_cuda.RACES) or (not is_race and result.returncode):
                sys.exit(
                    f"{mode}: cuda_handles '{scenario}', seed {seed}: {result.returncode}\n{result.stderr}"
                )
    print(f"{mode}: the owners of CUDA handles are clean")


def calls(env: dict[str, str], home: Path) -> None:
    """tests/fakes/native_calls.py at length: no call may end the process."""
    log = home / "last-call"
    for seed in range(NUM_CALLS // 6000):
        command = [sys.executable, ROOT / "tests" / "fakes" / "native_calls.py", str(seed), "6000", log]
        result = subprocess.run(command, env=env, cwd=home, capture_output=True, text=True)
        if result.returncode:
            sys.exit(
                f"address: seed {seed} ended with {result.returncode} in {log.read_text()}\n{result.stderr}"
            )
    print(f"address: {NUM_CALLS} random calls are clean")


def main(modes: list[str]) -> None:
    """Stops at the first mode that fails, with its status."""
    for mode in modes:
        home = build(mode)
        handles(mode)
        fake_cuda.build_scripted(mode)  # here: the tests' own compiler would run under the sanitizer
        env = environment(mode, home)
        tests = [path for name in TESTS for path in (ROOT / "tests").rglob(f"test_{name}.py")]
        command = [sys.executable, "-m", "pytest", *tests, "-q", "-p", "no:cacheprovider", "--schedules=40"]
        status = subprocess.run(command, env=env, cwd=home).returncode
        if status:
            sys.exit(f"{mode}: the tests failed with status {status}")
        if mode == "address":
            calls(env, home)
        for strategy, lane, placement in RACES if mode == "thread" else []:
            name = f"{strategy}/{placement}"
            command = [sys.executable, __file__, "race", strategy, lane, placement]
            result = subprocess.run(command, env=env, cwd=home, capture_output=True, text=True)
            if result.returncode != 66 or "WARNING: ThreadSanitizer: data race" not in result.stderr:
                sys.exit(f"{mode}: {name} without the {lane}'s wait passed for clean:\n{result.stderr}")
            print(f"{mode}: {name} without the {lane}'s wait is reported, as it must be")
        print(f"{mode}: clean")


if __name__ == "__main__":
    if sys.argv[1:2] == ["race"]:
        race(*sys.argv[2:5])
    else:
        modes = sys.argv[1:] or list(LIBRARIES)
        if unknown := [mode for mode in modes if mode not in LIBRARIES]:
            print(
                f"{unknown[0]} is no mode: pass {', '.join(LIBRARIES)}, or nothing for both", file=sys.stderr
            )
            sys.exit(2)
        main(modes)
