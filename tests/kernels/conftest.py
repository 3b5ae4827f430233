"""What kernel tests share: Python where kernels are compiled, and the report, made while others run."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def compiling_environment() -> dict[str, str]:
    """Kernels are compiled in it: tests themselves may run in the interpreter."""
    return {n: v for n, v in os.environ.items() if n != "TRITON_INTERPRET"} | {"PYTHONPATH": str(ROOT)}


# Imports what costs seconds; then runs each program that it is given, in a fork that has run nothing else.
FORKS = """
import json, os, sys, traceback
import pearl_rt.kernels.tools.report
for line in sys.stdin:
    program, out = json.loads(line)
    child = os.fork()
    if child == 0:
        sys.stdout = sys.stderr = open(out, "w")
        status = 0
        try:
            exec(program, {"__name__": "__main__"})
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
            print(end.code if isinstance(end.code, str) else "", end="")
        except BaseException:
            traceback.print_exc()
            status = 1
        sys.stdout.flush()
        os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def compiled_python(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[str], CompletedProcess[str]]]:
    """Runs a program where kernels are compiled; its stdout and stderr are both in stdout."""
    out = tmp_path_factory.mktemp("compiled") / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", FORKS],
        cwd=ROOT,
        env=compiling_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    asks, answers = process.stdin, process.stdout

    def run(program: str) -> CompletedProcess[str]:
        asks.write(json.dumps([program, str(out)]) + "\n")
        asks.flush()
        return CompletedProcess(program, int(answers.readline()), out.read_text())

    yield run
    asks.close()
    answers.close()
    assert process.wait() == 0


@pytest.fixture
def trials(pytestconfig: pytest.Config) -> Callable[[int], int]:
    """Of a law: as many as are asked for, or an eighth on compiled kernels (--ptx), which take long. Their
    bits are those of the definition: other tests hold them to that.
    """
    return lambda most: most // 8 if pytestconfig.getoption("--ptx") else most


def reads_report(item: pytest.Item) -> bool:
    return "kernel_report" in getattr(item, "fixturenames", ())


def reads_whole_report(item: pytest.Item) -> bool:
    return reads_report(item) and item.get_closest_marker("long") is not None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that read the report come last of the kernels' tests."""
    places = [at for at, item in enumerate(items) if HERE in item.path.parents]
    ours = sorted((items[at] for at in places), key=reads_report)
    for at, item in zip(places, ours, strict=True):
        items[at] = item


@pytest.fixture(scope="session", autouse=True)
def report_in_background(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], CompletedProcess[str]] | None]:
    """The report: minutes of compiling, at low priority, while the interpreter uses one core. Begins with the
    first of the kernels' tests, if one will read it; what it yields waits for the end. Test processes side by
    side share one report: the process that makes its folder begins it."""
    if not any(map(reads_report, request.session.items)):
        yield None
        return
    side_by_side = "PYTEST_XDIST_WORKER" in os.environ
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if side_by_side else base) / "report"
    command = ["nice", "-n", "5", sys.executable, "-m", "pearl_rt.kernels.tools.report"]
    if not any(map(reads_whole_report, request.session.items)):
        command.append("--in-turns")

    def read() -> CompletedProcess[str]:
        while not (folder / "status").exists():
            time.sleep(0.1)
        status, out, error = ((folder / name).read_text() for name in ("status", "out", "error"))
        return CompletedProcess(command, int(status), out, error)

    try:
        folder.mkdir()
    except FileExistsError:
        yield read
        return
    script = '"$@" >out 2>error; echo $? >status.part; mv status.part status'
    process = subprocess.Popen(
        ["sh", "-c", f"cd {shlex.quote(str(folder))}; {script}", "sh", *command],
        env=compiling_environment(),
        start_new_session=True,
    )
    try:
        yield read
        if side_by_side:
            process.wait()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def kernel_report(report_in_background: Callable[[], CompletedProcess[str]]) -> CompletedProcess[str]:
    """The report, once it is there."""
    return report_in_background()
