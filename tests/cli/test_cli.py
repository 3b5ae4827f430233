"""The command line: text on stdout and nothing else, one line on stderr, and exit codes."""

import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_pairs import Pair

from pearl_rt import Engine, SamplingParams
from pearl_rt.cli.commands import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """`--target DIR --draft DIR` of a tiny pair."""
    target, draft = Pair.make("half-right").save(tmp_path_factory.mktemp("pair"))
    return ["--target", str(target), "--draft", str(draft), "--max-model-len", "4096"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ("auto", "ar", "sd", "pearl"))
def test_streams_the_text(pair: list[str], strategy: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--prompt", "héllo", "--max-tokens", "20", "--strategy", strategy, "--gamma", "3"]
    assert main(["generate", *pair, *arguments]) == 0
    printed = capsys.readouterr()
    with Engine.from_pretrained(pair[1], max_model_len=64) as engine:
        [expected] = engine.generate("héllo", SamplingParams(max_tokens=20))
    assert printed.out == expected.text + "\n"
    assert printed.err.startswith("[20 tokens, length; ")
    assert printed.err.count("\n") == 1


def test_stats_are_json_on_stderr(pair: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", *pair, "--prompt", "a", "--max-tokens", "8", "--stats"]) == 0
    stats = json.loads(capsys.readouterr().err.split("]\n", 1)[1])
    assert stats["chosen"]["strategy"] in ("ar", "sd", "pearl")
    assert stats["candidates"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--prompt", ""], "empty"),
        (["--prompt", "a", "--max-tokens", "0"], "max_tokens 0"),
        (["--prompt", "a", "--temperature", "nan"], "temperature nan"),
        (["--prompt", "a", "--gamma", "0"], "gamma 0"),
        (["--prompt", "a", "--seed", "-2"], "seed -2"),
        (["--prompt", "a", "--strategy", "magic"], "strategy 'magic'"),
        (["--prompt", "a", "--device", "cuda"], "device 'cuda'"),
        (["--prompt", "a", "--threads", "4096"], "num_threads 4096"),
        (["--prompt", "a", "--kv-cache-tokens", "4"], "kv_cache_tokens 4"),
        (["--prompt", "a", "--target", "nowhere"], "nowhere"),
    ],
    ids=lambda value: " ".join(value[2:]) if isinstance(value, list) else "",
)
def test_errors_are_one_line_and_exit_code_2(
    pair: list[str], arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", *pair, *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("pearl_rt: ")
    assert named in printed.err
    assert printed.err.count("\n") == 1


def test_no_more_memory_is_one_line(
    pair: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("pearl_rt.cli.commands.open_engine", fails)
    assert main(["generate", *pair, "--prompt", "a"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("pearl_rt: the process may have no more memory or threads ([Errno 12] Cannot")
    assert told.count("\n") == 1


def test_a_missing_target_names_the_way_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--prompt", "a"]) == 2
    assert "--target" in capsys.readouterr().err


def test_info_names_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info"]) == 0
    printed = capsys.readouterr().out
    for named in ("instruction sets", "cores", "GB/s"):
        assert named in printed


def start(arguments: list[str]) -> "subprocess.Popen[bytes]":
    """A generation whose output is bytes, unbuffered, so that nothing that was read is lost or translated."""
    command = [sys.executable, "-m", "pearl_rt", "generate", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "utf-8"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, bufsize=0
    )


def interrupted(arguments: list[str]) -> tuple[int, bytes, bytes]:
    """(return code, stdout, stderr) of a generation that gets Ctrl-C behind its first byte."""
    process = start(arguments)
    assert process.stdout is not None
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert b"Traceback" not in err
    return process.returncode, first + out, err


@pytest.mark.slow
def test_ctrl_c_prints_what_was_verified(pair: list[str]) -> None:
    """Where the answer was complete before the signal came, once more: five times at most."""
    arguments = [*pair, "--prompt", "a", "--max-tokens", "4000", "--ignore-eos", "--strategy", "ar"]
    for _ in range(5):
        code, out, err = interrupted(arguments)
        if code != 0:
            break
    assert code == 130
    counted = re.match(rb"\[(\d+) tokens, abort; ar; ", err)
    assert counted, err
    with Engine.from_pretrained(pair[1]) as engine:
        params = SamplingParams(max_tokens=int(counted[1]), ignore_eos=True)
        assert out.decode() == engine.generate("a", params)[0].text + "\n"


def test_ctrl_c_behind_a_write_prints_nothing_twice(pair: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is followed by the signal, before it can be counted."""

    class Output(io.StringIO):
        def write(self, text: str) -> int:
            is_first = text.strip("\ufffd") != "" and not self.getvalue().strip("\ufffd")
            written = super().write(text)
            if is_first:
                signal.raise_signal(signal.SIGINT)
            return written

    out = Output()
    monkeypatch.setattr(sys, "stdout", out)
    before = signal.getsignal(signal.SIGINT)
    assert main(["generate", *pair, "--prompt", "a", "--max-tokens", "400", "--ignore-eos"]) == 130
    assert signal.getsignal(signal.SIGINT) is before
    with Engine.from_pretrained(pair[1]) as engine:
        whole = engine.generate("a", SamplingParams(max_tokens=400, ignore_eos=True))[0].text
    printed = out.getvalue().rstrip("\n").rstrip("\ufffd")  # a character may have been cut
    assert printed and whole.startswith(printed)


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_error(pair: list[str]) -> None:
    process = start([*pair, "--prompt", "a", "--max-tokens", "4000", "--ignore-eos"])
    assert process.stdout is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr is not None
    err = process.stderr.read()
    assert process.wait(timeout=120) in (0, 141)
    assert b"Traceback" not in err


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, pearl_rt, pearl_rt.cli.commands; pearl_rt.SamplingParams(); pearl_rt.RequestHandle;"
        "heavy = {'torch', 'jinja2', 'starlette', 'uvicorn', 'prometheus_client'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


@pytest.mark.parametrize("mebibytes", [256, 400])
def test_where_nothing_can_be_loaded(pair: list[str], mebibytes: int) -> None:
    """As under `ulimit -v`: less than the libraries that are imported take is told in one line."""
    most = mebibytes << 20
    done = subprocess.run(
        [sys.executable, "-m", "pearl_rt", "generate", *pair, "--prompt", "a"],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (most, most)),
    )
    assert done.returncode == 2 and done.stdout == "", done.stderr
    assert re.fullmatch(r"pearl_rt: the process may have no more memory or threads \(.*\n", done.stderr)
