"""Programmatic dependent launch in compiled steps: each kernel waits, and a wait left out is found."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from tiny_pairs import Pair
from triton.runtime.driver import driver as triton_driver

from pearl_rt import Engine, SamplingParams
from pearl_rt.device.gpu import check_dependent_launches
from pearl_rt.device.host_gpu import HostGpu
from pearl_rt.errors import ConfigError
from pearl_rt.kernels.base.dependent import dependent
from ptx.driver import PtxDriver
from ptx.faults import KernelFault

PROMPT = list(range(3, 23))  # crosses a prefill chunk
SAMPLED = SamplingParams(max_tokens=5, temperature=0.8, seed=5)
SHAPED = SamplingParams(
    max_tokens=4, temperature=1.1, seed=3, top_k=20, top_p=0.9, min_p=0.02, repetition_penalty=1.3, logprobs=2
)
QUICK = replace(SHAPED, max_tokens=2)
WAIT = re.compile(r"^\s*griddepcontrol\.wait;.*\n", re.M)
FIRST_STORE = re.compile(r"^\s*(?:@!?%p\d+ )?(?:st\.global|atom\.global|cp\.async\.c[ag])", re.M)
OPTIONS: dict[str, Any] = {"strategy": "pearl", "gamma": 3}
FOUND = r"before griddepcontrol\.wait|without griddepcontrol\.wait"


def driver() -> PtxDriver:
    active: Any = triton_driver.active
    assert isinstance(active, PtxDriver)
    return active


def made(pdl: bool) -> Engine:
    pair = Pair.make("half-right", torch_dtype="bfloat16", max_position_embeddings=64, num_hidden_layers=1)
    return pair.engine(device="interpret", judge="rejection", placement="shared", pdl=pdl)


@pytest.fixture(scope="module")
def engines() -> Iterator[tuple[Engine, Engine]]:
    if driver().architecture == "sm_80":
        pytest.skip("sm_80 has no dependent launches: they are refused by name")
    with made(False) as plain, made(True) as dependent:
        yield plain, dependent


def test_refused_by_name() -> None:
    if driver().architecture == "sm_90":
        check_dependent_launches(HostGpu())
        return
    with pytest.raises(ConfigError, match=r"pdl .* needs compute capability 9\.0, and the host has 8\.0"):
        made(True)
    with pytest.raises(ValueError, match=r"sample: pdl .* needs .* 9\.0, and this GPU has 8\.0"):
        dependent("sample", True)
    assert dependent("sample", False) == {"PDL": False}


@pytest.mark.parametrize("params", [SAMPLED, SHAPED], ids=["sampled", "shaped"])
def test_the_same_tokens_and_every_launch_is_dependent(
    engines: tuple[Engine, Engine], params: SamplingParams
) -> None:
    """The checks of tests/ptx/unit/test_dependent_launches.py hold for all kernels of both lanes."""
    plain, dependent = engines
    [expected] = plain.generate(PROMPT, params, **OPTIONS)
    before = driver().work.launches - driver().work.dependent
    with driver().step() as step:
        [output] = dependent.generate(PROMPT, params, **OPTIONS)
    assert output.token_ids == expected.token_ids and output.logprobs == expected.logprobs
    assert driver().work.launches - driver().work.dependent == before, "all that was launched is dependent"
    assert len(step.stored) > 10


def without_wait(ptx: str) -> str:
    return WAIT.sub("", ptx)


def with_a_late_wait(ptx: str) -> str:
    """Behind the first loads: in front of the first store."""
    [wait] = WAIT.findall(ptx)
    ptx = WAIT.sub("", ptx)
    place = FIRST_STORE.search(ptx)
    assert place is not None
    return ptx[: place.start()] + wait + ptx[place.start() :]


@pytest.mark.parametrize("mutate", [without_wait, with_a_late_wait])
def test_a_wait_that_is_left_out_or_late_is_found(engines: tuple[Engine, Engine], mutate: Any) -> None:
    """In each kernel of a step, one at a time."""
    _, engine = engines
    names: set[str] = set()

    def seen(name: str, ptx: str) -> str:
        names.add(name)
        return ptx

    with driver().edited(seen), driver().step():
        engine.generate(PROMPT[:3], QUICK, **OPTIONS)
    assert len(names) >= 20, names
    for mutated in sorted(names):

        def edit(name: str, ptx: str, mutated: str = mutated) -> str:
            return mutate(ptx) if name == mutated else ptx

        with driver().edited(edit), driver().step(), pytest.raises(KernelFault, match=FOUND) as error:
            engine.generate(PROMPT[:3], QUICK, **OPTIONS)
        assert str(error.value).startswith(f"{mutated}, program (")
