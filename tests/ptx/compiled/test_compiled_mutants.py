"""Compiled kernels with one thing wrong: the executor's checks say what, whatever the values are.

Each kind of mistake is made in each place of a kernel's PTX where it can be, one at a time. A check finds it
and names it where it matters. A barrier or a wait that is missing is found, or no bit of the result depends
on it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
from triton.runtime.driver import driver as triton_driver

from pearl_rt.kernels.forward.attention import attention
from pearl_rt.kernels.forward.attention import workspace_size as attention_workspace
from pearl_rt.kernels.forward.attention_tile import PagedBatch
from pearl_rt.kernels.forward.gate_up_silu import gate_up_silu
from pearl_rt.kernels.forward.gate_up_silu import workspace_size as gate_up_workspace
from pearl_rt.kernels.forward.linear import linear
from pearl_rt.kernels.forward.linear import workspace_size as linear_workspace
from pearl_rt.kernels.forward.rms_norm import rms_norm
from pearl_rt.kernels.sampling import sample as sampling
from pearl_rt.kernels.verify.rollback import rollback
from ptx.driver import PtxDriver
from ptx.faults import KernelFault

BF16 = torch.bfloat16
BARRIER = re.compile(r"^\s*bar\.sync\s+0;\n", re.M)
WAIT = re.compile(r"^\s*cp\.async\.wait_group\s+\d+;\n", re.M)
STORE = re.compile(r"^(\s*(?:@%p\d+ )?st\.global\.\S+ \[ %rd\d+ \+ )0( \])", re.M)
LOAD = re.compile(r"^(\s*(?:@%p\d+ )?ld\.global\.\S+ \{[^}]*\}, \[ %rd\d+ \+ )0( \])", re.M)
GUARDED_LOAD = re.compile(r"^(\s*)@%p\d+ (ld\.global\S* )", re.M)
GUARDED_STORE = re.compile(r"^(\s*)@%p\d+ (st\.global\S* )", re.M)
COPY_SIZE = re.compile(r"^(\s*selp\.b32\s+%r\d+, (16|8|4), )0(, %p\d+;)", re.M)
FENCE = re.compile(r"^\s*fence\.proxy\.async\S*;\n", re.M)
WGMMA_WAIT = re.compile(r"^\s*wgmma\.wait_group\S*\s+\d+;\n", re.M)


def made(*shape: int, dtype: torch.dtype = BF16, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def run_linear() -> torch.Tensor:
    T, N, K = 5, 40, 208  # of which no tile is full, and whose rows are copied 16 bytes at a time
    out = torch.zeros(T, N, dtype=BF16)
    space = torch.zeros(linear_workspace(T, N, K), dtype=torch.uint8)
    linear(made(T, K), made(N, K, seed=1), out, None, None, space)
    return out


def run_gate_up() -> torch.Tensor:
    T, I, K = 3, 40, 144  # noqa: E741
    out = torch.zeros(T, I, dtype=BF16)
    space = torch.zeros(gate_up_workspace(T, I, K), dtype=torch.uint8)
    gate_up_silu(made(T, K), made(2 * I, K, seed=1), out, space)
    return out


def run_rms_norm() -> torch.Tensor:
    out = torch.zeros(3, 1000, dtype=BF16)
    rms_norm(made(3, 1000), made(1000, seed=1), 1e-5, out, None)
    return out


def run_attention(q_len: int, context: int = 150) -> torch.Tensor:
    heads, size, block = 2, 64, 16
    blocks = -(-context // block)
    q, out = made(q_len, heads, size), torch.zeros(q_len, heads, size, dtype=BF16)
    k, v = (made(blocks, block, 1, size, seed=seed) for seed in (1, 2))
    table = torch.randperm(blocks, generator=torch.Generator().manual_seed(3)).int()[None]
    lengths = torch.tensor([context], dtype=torch.int32), torch.tensor([0, q_len], dtype=torch.int32)
    space = torch.zeros(attention_workspace(q_len, heads, size, blocks * block, q_len), dtype=torch.uint8)
    attention(PagedBatch(q, k, v, table, *lengths, out), size**-0.5, q_len, space)
    return out


def run_sample() -> torch.Tensor:
    logits, out = made(3, 5000, dtype=torch.float32), torch.zeros(3, dtype=torch.int32)
    numbers = torch.tensor([0.0, 0.7, 1.0]), torch.arange(3), torch.arange(3)
    space = torch.zeros(sampling.workspace_size(3, 5000), dtype=torch.uint8)
    sampling.sample(logits, *numbers, 0, out, None, space)
    return out


def run_rollback() -> torch.Tensor:
    table, freed = torch.arange(300).int()[None].clone(), torch.zeros(1, 300, dtype=torch.int32)
    blocks, lengths, num_freed = (torch.tensor([n], dtype=torch.int32) for n in (290, 1000, 0))
    rollback(table, blocks, lengths, freed, num_freed, 16, 5)
    return torch.cat([table[0], freed[0], blocks, num_freed])


RUNS: dict[str, Callable[[], torch.Tensor]] = {
    "linear": run_linear,
    "gate_up_silu": run_gate_up,
    "rms_norm": run_rms_norm,
    "attention": lambda: run_attention(3),
    "prefill": lambda: run_attention(70),
    "sample": run_sample,
    "rollback": run_rollback,
}


STATES = ("rollback",)  # warps pass values on in tensors: races are looked for there too


@cache
def right(name: str) -> tuple[torch.Tensor, dict[str, str]]:
    """What an operator gives, and the PTX of its kernels by name."""
    kernels: dict[str, str] = {}
    with driver().edited(lambda kernel, ptx: kernels.setdefault(kernel, ptx), name in STATES):
        result = RUNS[name]()
    return result, kernels


def driver() -> PtxDriver:
    active: Any = triton_driver.active
    assert isinstance(active, PtxDriver)
    return active


def mutants(ptx: str, pattern: re.Pattern[str], replacement: str) -> list[str]:
    """The text with one place changed, for each place."""
    return [
        ptx[: place.start()] + place.expand(replacement) + ptx[place.end() :]
        for place in pattern.finditer(ptx)
    ]


def replaced(kernel: str, mutant: str, name: str, ptx: str) -> str:
    return mutant if name == kernel else ptx


def verdicts(name: str, pattern: re.Pattern[str], replacement: str) -> list[str]:
    """Of each mutant of each kernel: what the check said, or "same bits", or "WRONG"."""
    expected, kernels = right(name)
    said = []
    for kernel, ptx in kernels.items():
        for mutant in mutants(ptx, pattern, replacement):
            with driver().edited(partial(replaced, kernel, mutant), name in STATES):
                try:
                    found = RUNS[name]()
                except KernelFault as fault:
                    said.append(str(fault))
                    assert str(fault).startswith(f"{kernel}, program (")
                else:
                    said.append("same bits" if torch.equal(found, expected) else "WRONG")
    return said


RACE = r"without a barrier between|was not waited for"
OUTSIDE = r"are in none of its tensors: the nearest is \w+|is not a multiple of"
MISTAKES: dict[str, tuple[re.Pattern[str], str, str, tuple[str, ...]]] = {
    "a barrier removed": (
        BARRIER,
        "",
        RACE,
        ("linear", "gate_up_silu", "rms_norm", "attention", "sample", "rollback"),
    ),
    "a wait removed": (
        WAIT,
        "",
        "a cp.async of .* was not waited for",
        ("linear", "gate_up_silu", "attention"),
    ),
    "a store one too far": (STORE, r"\g<1>2\g<2>", OUTSIDE, ("linear", "rms_norm", "sample")),
    "a load far too far": (LOAD, r"\g<1>1048576\g<2>", OUTSIDE, ("rms_norm", "sample")),
    "a load without its mask": (GUARDED_LOAD, r"\1\2", OUTSIDE, ("rms_norm", "sample")),
    "a store without its mask": (GUARDED_STORE, r"\1\2", OUTSIDE, ("linear", "gate_up_silu", "rms_norm")),
    "a copy without its mask": (COPY_SIZE, r"\1\2\3", OUTSIDE, ("linear", "gate_up_silu")),
}


@pytest.mark.parametrize(
    ("mistake", "name"), [(mistake, name) for mistake, (*_, names) in MISTAKES.items() for name in names]
)
def test_a_mistake_is_found_by_a_check(mistake: str, name: str) -> None:
    pattern, replacement, message, _ = MISTAKES[mistake]
    said = verdicts(name, pattern, replacement)
    assert any(re.search(message, text) for text in said), said
    if pattern in (BARRIER, WAIT):  # what is behind masks and offsets may lie in another tensor's rows
        assert "WRONG" not in said, said


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (FENCE, "a wgmma reads .* with no fence.proxy.async between"),
        (WGMMA_WAIT, "a register of a wgmma is used before wgmma.wait_group"),
        (BARRIER, RACE),
        (WAIT, "a cp.async of .* was not waited for"),
    ],
    ids=["fence", "wgmma-wait", "barrier", "copy-wait"],
)
def test_what_guards_the_products_of_prefill(pattern: re.Pattern[str], message: str) -> None:
    said = verdicts("prefill", pattern, "")
    if not said and driver().architecture == "sm_80":
        pytest.skip("there is no wgmma on sm_80")
    assert any(re.search(message, text) for text in said) and "WRONG" not in said, said
