"""A process that ends, or forks, while an engine is at work: its exit status and its files are its own."""

import subprocess
import sys
from pathlib import Path

import pytest

SUPPORT = Path(__file__).resolve().parents[1] / "support"
BEGIN = """
import atexit, gc, os, signal, sys, threading
from tiny_pairs import Pair
from pearl_rt import EngineClosedError, SamplingParams
handle, home = None, os.getpid()
def ended():  # registered ahead of the engine's: called behind it
    if handle and not handle.done and os.getpid() == home:
        os._exit(9)
atexit.register(ended)
engine = Pair.make("half-right", max_position_embeddings=32768).engine(
    device="cpu", max_model_len=32768, max_num_seqs=2, num_threads=1)
ENDLESS = SamplingParams(max_tokens=32000, ignore_eos=True)
text = open(sys.argv[1], "w")
text.write("kept")
"""
IN_FLIGHT = {
    "submit": "handle = engine.submit([7], ENDLESS); next(iter(handle))",
    "a dropped engine": "handle = engine.submit([7], ENDLESS); next(iter(handle)); del engine",
    "a thread in generate": """
poll, begun = engine._batch.poll, threading.Event()
def told(*args):
    begun.set()
    return poll(*args)
engine._batch.poll = told
threading.Thread(target=lambda: engine.generate([[7]] * 9, ENDLESS), daemon=True).start()
begun.wait()""",
    "a thread in a native call": """
from pearl_rt import _C
device = _C.CoreSet([0])
begun = threading.Event()
def measure():
    begun.set()
    _C.measure_bandwidth(device, 1 << 20, 1.0)
threading.Thread(target=measure, daemon=True).start()
begun.wait()""",
    "a stream": "stream = engine.stream([7], ENDLESS); next(stream)",
    "waiting": "handles = [engine.submit([7], ENDLESS) for _ in range(9)]",
}
ENDS = {
    "by its end": ("", 0),
    "by sys.exit": ("sys.exit(3)", 3),
    "by an error": ("raise ValueError('its own')", 1),
    "by Ctrl-C": ("signal.raise_signal(signal.SIGINT)", -2),
}


def run(path: Path, *parts: str) -> tuple[int, str]:
    """-> exit status, and what it wrote to stderr. path: of a file that it writes to, and does not flush."""
    done = subprocess.run(
        [sys.executable, "-c", "\n".join((BEGIN, *parts)), str(path)],
        cwd=SUPPORT.parents[1],
        env={"PYTHONPATH": f"{SUPPORT.parents[1]}:{SUPPORT}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=250,
    )
    return done.returncode, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("end", ENDS)
def test_a_script_that_ends_while_a_request_runs_keeps_its_exit_status_and_its_files(
    tmp_path: Path, end: str
) -> None:
    ending, status = ENDS[end]
    handle_ctrl_c = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    found, said = run(tmp_path / "text", handle_ctrl_c, IN_FLIGHT["submit"], ending)
    assert found == status, said
    assert (tmp_path / "text").read_text() == "kept"


@pytest.mark.slow
@pytest.mark.parametrize("in_flight", sorted(IN_FLIGHT.keys() - {"submit"}))
def test_whatever_is_in_flight_the_exit_status_is_the_scripts(tmp_path: Path, in_flight: str) -> None:
    found, said = run(tmp_path / "text", IN_FLIGHT[in_flight], "sys.exit(3)")
    assert found == 3, said
    # Beside any daemon thread that lives on, Python itself does not flush what a script has left open.
    assert "thread" in in_flight or (tmp_path / "text").read_text() == "kept"


FORK = """
def refused(call):
    try:
        call()
    except EngineClosedError as error:
        assert "fork" in str(error), error
    else:
        raise AssertionError("no error in the child")
for end in (
    "engine.close(); sys.exit(3)",
    "with engine: sys.exit(3)",
    "engine = handle = stream = None; gc.collect(); sys.exit(3)",
    "handle and handle.cancel(); sys.exit(3)",
):
    {begin}
    process = os.fork()
    if not process:
        signal.alarm(200)
        text = None
        for call in (
            lambda: engine.generate([7]), lambda: engine.submit([7]), lambda: next(engine.stream([7])),
            engine.stats, lambda: engine.round("ar"), engine.check_open, {child}
        ):
            refused(call)
        exec(end)
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 3, (end, status)
    {parent}
[output] = engine.generate([7], SamplingParams(max_tokens=5, ignore_eos=True))
assert len(output.token_ids) == 5
engine.close()
"""
FORKS = {
    "nothing": ("pass", "pass", ""),
    "submit": (
        "handle = engine.submit([7], ENDLESS); next(iter(handle))",
        "handle.cancel(); handle.result(200)",
        "handle.result, lambda: list(handle)",
    ),
    "a stream": (
        "stream = engine.stream([7], ENDLESS); next(stream)",
        "next(stream); stream.close()",
        "lambda: next(stream)",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("forked", FORKS)
def test_in_the_child_of_a_fork_an_engine_says_so_and_is_harmless(tmp_path: Path, forked: str) -> None:
    begin, parent, child = FORKS[forked]
    found, said = run(tmp_path / "text", FORK.format(begin=begin, parent=parent, child=child))
    assert found == 0, said


@pytest.mark.slow
def test_closing_from_anywhere(tmp_path: Path) -> None:
    """In the scheduler's thread, as a finalizer may, in a handler of a signal, in several threads at once."""
    in_the_scheduler = """
import _thread
def closing(*_):
    closed.append(_thread.get_ident())
    engine.close()
closed, bell = [], None
handle = engine.submit([7], ENDLESS)
next(iter(handle))
scheduler = engine._scheduler._thread
with handle._news.heard(closing):
    try:
        handle.result(200)
    except EngineClosedError:
        pass
assert closed == [scheduler], closed
"""
    in_a_handler = """
poll = engine._batch.poll
def alarmed(*args):
    signal.raise_signal(signal.SIGALRM)
    return poll(*args)
signal.signal(signal.SIGALRM, lambda *_: engine.close())
engine._batch.poll = alarmed
[output] = engine.generate([7], ENDLESS)
assert output.finish_reason == "abort"
"""
    in_two_threads = """
handles = [engine.submit([7], ENDLESS) for _ in range(9)]
threads = [threading.Thread(target=engine.close) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
for handle in handles:
    try:
        handle.result(0)
    except EngineClosedError:
        pass
"""
    for part in (in_the_scheduler, in_a_handler, in_two_threads):
        found, said = run(tmp_path / "text", part)
        assert (found, said) == (0, "")
