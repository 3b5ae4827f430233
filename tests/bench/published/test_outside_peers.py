"""Peers in processes of their own, with processes that answer as they do: settings, times, work, faults."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import fake_peers
import pytest

from bench.harness import measure as m
from bench.harness.peers import PeerGroup
from bench.outside import llama_cpp, open_vino, open_vino_worker, setup
from bench.outside.process import OutsideError

WORK = m.Workload([[1, 2, 3], [7, 8]], 6)
WORKER = Path(fake_peers.__file__)
FILE = Path("model.gguf")


@pytest.fixture
def llama(tmp_path: Path) -> Iterator[llama_cpp.LlamaCpp]:
    program = fake_peers.write_server(tmp_path / "llama-server")
    peer = llama_cpp.LlamaCpp(program, FILE, 2, [[1, 2]])
    yield peer
    peer.close()


def test_the_fastest_settings_of_llama_cpp_are_chosen(llama: llama_cpp.LlamaCpp) -> None:
    programs = llama.programs(4)
    assert [(p.strategy, p.placement) for p in programs] == [
        ("llama.cpp", "fa"),
        ("llama.cpp n-gram", "simple 4"),
    ]
    assert llama.version == "4242 (abcdef)" and len(llama.servers) == 2
    assert llama.programs(4) == programs, "they are chosen once"
    [plain] = llama(programs[0], WORK, 1)
    assert plain.token_ids == [9, 10, 11, 12, 13, 14] and plain.metrics is None
    assert (plain.ttft, plain.seconds) == (pytest.approx(0.005), pytest.approx(0.065))
    [fast] = llama(programs[1], WORK, 1)
    assert fast.tpot == pytest.approx(plain.tpot / 2)
    processes = [server.process for server in llama.servers.values()]
    llama.close()
    assert all(process.returncode is not None for process in processes)


def test_less_work_than_asked_is_refused(llama: llama_cpp.LlamaCpp) -> None:
    [program, _] = llama.programs(4)
    with pytest.raises(OutsideError, match="wrote 5 tokens where 6 were asked for"):
        llama(program, m.Workload([[13]], 6), 0)


def test_a_server_that_ends_or_answers_no_more_says_so(llama: llama_cpp.LlamaCpp, tmp_path: Path) -> None:
    with pytest.raises(OutsideError, match="ngram-mod ended with 1"):
        llama_cpp.LlamaServer(llama.program, FILE, ("--spec-type", "ngram-mod"), 1)
    [program, _] = llama.programs(4)
    llama.servers["llama.cpp"].close()
    with pytest.raises(OutsideError, match="does not answer"):
        llama(program, WORK, 0)


@pytest.fixture
def vino() -> Iterator[open_vino.OpenVino]:
    peer = open_vino.OpenVino(Path(sys.executable), FILE, 2, worker=WORKER)
    yield peer
    peer.close()


def test_openvino_answers_in_lines(vino: open_vino.OpenVino) -> None:
    plain, lookup = vino.programs(4)
    assert (plain.strategy, lookup.strategy, lookup.gamma) == ("openvino", "openvino lookup", 4)
    [slow], [fast] = vino(plain, WORK, 0), vino(lookup, WORK, 0)
    assert slow.token_ids == fast.token_ids == [4, 5, 6, 7, 8, 9]
    assert (slow.ttft, slow.seconds, slow.tpot) == (0.25, 2.75, pytest.approx(0.5))
    assert fast.tpot == pytest.approx(0.1)
    with pytest.raises(OutsideError, match="thirteen"):
        vino(plain, m.Workload([[13]], 2), 0)
    with pytest.raises(OutsideError, match="ended with 3"):
        vino(plain, m.Workload([[14]], 2), 0)
    processes = [worker.process for worker in vino.workers.values()]
    vino.close()
    assert all(process.returncode is not None for process in processes)


def test_what_cannot_run_is_said(tmp_path: Path) -> None:
    names = ["llama.cpp", "openvino"]
    found, absent = setup.outside_peers(names, None, 2, [[1]], tmp_path)
    assert not found and set(absent) == set(names) and "reads GGUF files" in absent["openvino"]
    found, absent = setup.outside_peers(names, FILE, 2, [[1]], tmp_path)
    assert not found and "no llama-server" in absent["llama.cpp"] and "make peers" in absent["openvino"]
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text("#!/bin/sh\nexit 7\n")
    (tmp_path / "bin" / "python").chmod(0o755)
    found, absent = setup.outside_peers(["openvino"], FILE, 2, [[1]], tmp_path)
    assert not found and absent["openvino"] == "does not start: its process ended with 7"


def test_a_group_leaves_out_what_fails(llama: llama_cpp.LlamaCpp, vino: open_vino.OpenVino) -> None:
    vino.workers["openvino"].close()
    group = PeerGroup({"llama.cpp": llama, "openvino": vino}, {"hf": "is not installed"})
    programs = group.programs(4)
    assert {p.strategy for p in programs} == {"llama.cpp", "llama.cpp n-gram"}
    assert set(group.absent) == {"hf", "openvino"} and "does not run" in group.absent["openvino"]
    assert group.versions == {"llama.cpp": "4242 (abcdef)"}
    [sample] = group(programs[1], WORK, 0)
    assert sample.token_ids[0] == 4
    group.close()
    assert not llama.servers


def test_the_worker_imports_nothing_of_ours() -> None:
    """It runs in another Python, and each library only once it is needed."""
    tree = ast.parse(Path(open_vino_worker.__file__).read_text())
    top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in top if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in top if isinstance(node, ast.ImportFrom) and node.module}
    assert names <= {"json", "os", "sys", "typing"}
