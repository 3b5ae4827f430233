"""Noise inside kernels against pearl_rt/reference/noise.py, bit for bit, and what the compiler makes of
it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

import pearl_rt
from pearl_rt.kernels.sampling import noise
from pearl_rt.reference import noise as definition

EDGES = np.unique(
    np.concatenate(
        [
            np.arange(300, dtype=np.uint32),
            np.arange(2**32 - 600, 2**32, dtype=np.uint64).astype(np.uint32),
            np.array([max(0, 2**k + d) for k in range(32) for d in (-2, -1, 0, 1, 2)], dtype=np.uint32),
        ]
    )
)
WORDS = np.concatenate([EDGES, np.random.default_rng(1).integers(0, 2**32, 2**16, dtype=np.uint32)])


@triton.jit
def _words_kernel(
    seed_ptr, position_ptr, purpose_ptr, out_ptr, first, ROWS: tl.constexpr, TILE: tl.constexpr
):
    row = tl.arange(0, ROWS)
    words = noise.noise_tile(
        tl.load(seed_ptr + row), tl.load(position_ptr + row), tl.load(purpose_ptr + row), first, TILE
    )
    place = row[:, None] * TILE + tl.arange(0, TILE)[None, :]
    tl.store(out_ptr + place, words.to(tl.int32, bitcast=True))


@triton.jit
def _variates_kernel(in_ptr, out_ptr, N, WHICH: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(in_ptr + at, mask=at < N, other=0)
    if WHICH == "uniform":
        y = noise.uniform(x.to(tl.uint32, bitcast=True))
    elif WHICH == "exponential":
        y = noise.exponential(noise.uniform(x.to(tl.uint32, bitcast=True)))
    elif WHICH == "gumbel":
        y = noise.gumbel(noise.uniform(x.to(tl.uint32, bitcast=True)))
    elif WHICH == "log":
        y = noise.log(x)
    elif WHICH == "exp":
        y = noise.exp(x)
    else:
        y = noise.inverse_temperature(x)
    tl.store(out_ptr + at, y, mask=at < N)


def run(which: str, x: np.ndarray, device: torch.device) -> np.ndarray:
    source = torch.from_numpy(x).to(device)
    out = torch.full((len(x) + 64,), float("nan"), device=device)
    block = 65536 if device.type == "cpu" else 1024
    _variates_kernel[(triton.cdiv(len(x), block),)](source, out, len(x), which, block, **noise.EXACT)
    assert out[len(x) :].isnan().all()
    return out[: len(x)].cpu().numpy()


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a.view(np.uint32), b.astype(np.float32).view(np.uint32))


@pytest.mark.parametrize("first", [0, 4, 4096])
def test_words_are_the_definitions(first: int, device: torch.device) -> None:
    places = [
        (seed, position, purpose)
        for seed in (0, 1, 2**32, -1, 0x0123456789ABCDEF, -(2**62))
        for position in (0, 1, 2**31, 2**32 + 5, 2**62)
        for purpose in definition.Purpose
    ]
    places += [(7, 8, 0)] * (-len(places) % 256)
    seed, position, purpose = (
        torch.tensor([p[i] for p in places], dtype=dtype, device=device)
        for i, dtype in enumerate((torch.int64, torch.int64, torch.int32))
    )
    out = torch.zeros(len(places), 16, dtype=torch.int32, device=device)
    _words_kernel[(1,)](seed, position, purpose, out, first, len(places), 16, **noise.EXACT)
    got = out.cpu().numpy().view(np.uint32)
    for row, place in enumerate(places):
        assert np.array_equal(got[row], definition.words(*place, first + 16)[first:]), place


@pytest.mark.parametrize("which", ["uniform", "exponential", "gumbel"])
def test_variates_are_the_definitions(which: str, device: torch.device) -> None:
    u = definition.uniform(WORDS)
    want = u if which == "uniform" else getattr(definition, which)(u)
    assert same_bits(run(which, WORDS.view(np.int32), device), want)


def test_log_and_exp_are_the_definitions(device: torch.device) -> None:
    rng = np.random.default_rng(2)
    x = np.concatenate([np.abs(rng.normal(0, 1e3, 2**15)) + 1e-30, [np.inf, 1e-37, 3e38]]).astype(np.float32)
    assert same_bits(run("log", x, device), definition.log(x))
    z = -np.concatenate([rng.exponential(20, 2**15), [0, 86.999, 87, 87.001, 1e30, np.inf]]).astype(
        np.float32
    )
    assert same_bits(run("exp", z, device), definition.exp(z))


def test_temperatures_at_their_ends(device: torch.device) -> None:
    t = np.array([1.0, 0.7, 1e-5, 1e5, 1e-45, 1e-39, 3e38, np.inf, 0.0, -1.0, np.nan], dtype=np.float32)
    with np.errstate(all="ignore"):
        want = np.clip(np.float32(1) / t, np.finfo(np.float32).tiny, np.finfo(np.float32).max)
    want[8:] = 1.0  # greedy
    assert same_bits(run("inverse", t, device), want)


PROBE = """
import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from pearl_rt.kernels.sampling import noise

@triton.jit
def probe(x_ptr, y_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    word = tl.load(x_ptr + at).to(tl.uint32, bitcast=True)
    e = noise.exponential(noise.uniform(word))
    tl.store(y_ptr + at, tl.div_rn(noise.exp(-e), e) - noise.log(e))

source = ASTSource(probe, {"x_ptr": "*i32", "y_ptr": "*fp32", "BLOCK": "constexpr"}, {"BLOCK": 128})
for options in (noise.EXACT, {"enable_fp_fusion": True}):
    text = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    print(text.count("fma.rn"), text.count("div.rn.f32"), text.count(".ftz"), text.count("div.full"))
"""


@pytest.mark.slow
def test_compiled_noise_is_not_fused_and_divides_exactly(tmp_path: Path) -> None:
    """The same probe with fusion on is fused, so that the check can fail."""
    probe = tmp_path / "probe.py"
    probe.write_text(PROBE)
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(Path(pearl_rt.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, str(probe)], env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    exact, fused = (list(map(int, line.split())) for line in done.stdout.splitlines())
    assert exact[0] == 0 and exact[1] == 3 and exact[2] == exact[3] == 0, done.stdout
    assert fused[0] > 0
