"""Several windows of a sequence on the kernels, in the interpreter: rounds are those of the CPU executor with
as many windows, and the text is plain decoding's.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_eager_batches import LONG, ONE, PROCESSED, alone, finish, round_of
from tiny_pairs import SMALL, Pair

from pearl_rt import Engine, RequestError, SamplingParams
from pearl_rt.backends.cuda_lanes import CudaLanes
from pearl_rt.backends.interpret import InterpretBackend
from pearl_rt.device.drafts.windows_beside import pages_beside, pages_of_window
from pearl_rt.device.host_gpu import HostStream
from pearl_rt.device.kv_pool import KvPool
from pearl_rt.device.model import DeviceModel
from pearl_rt.types.request import Request

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled in this process")
MAX_LEN = 40  # windows of 4 lie over the edge of a page, twice
PAIR = Pair.make("half-right", **SMALL | {"max_position_embeddings": MAX_LEN})
WHOLE = Request(ONE, gamma=4, max_tokens=10**6)  # to the end of what there is room for


@pytest.fixture(scope="module", params=[2, 3])
def candidates(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def executor(candidates: int) -> Iterator[Engine]:
    options: dict[str, Any] = {"max_model_len": MAX_LEN, "placement": "shared", "num_threads": 1}
    with PAIR.engine(device="cpu", candidates=candidates, **options) as engine:
        yield engine


def lanes_of(candidates: int) -> CudaLanes:
    """With NaN in all pages: what is read was written."""
    models = [
        DeviceModel.pack(PAIR.config, tensors, device=torch.device("cpu"), name=name)
        for name, tensors in (("target", PAIR.target), ("draft", PAIR.draft))
    ]
    lanes = InterpretBackend(2, candidates=candidates).lanes("shared", *models, KvPool(16, 6, MAX_LEN))
    assert lanes.draft_steps is not None
    for cache in (lanes.target_steps.model.kv_cache, lanes.draft_steps.model.kv_cache):
        for pages in (*cache.keys, *cache.values):
            pages.fill_(float("nan"))
    return lanes


def run(lanes: CudaLanes, judge: str, *requests: Request) -> list[list[Any]]:
    with HostStream.steps:  # no step runs before all are there
        numbers = lanes.start_all("sd", requests[:2], judge)
        numbers += [lanes.submit(request) for request in requests[2:]]
    found = finish(lanes)
    return [found[number] for number in numbers]


def check(executor: Engine, found: list[list[Any]], requests: tuple[Request, ...], judge: str) -> None:
    for one, request in zip(found, requests, strict=True):
        expected = alone(executor, request, "sd", judge)
        assert list(map(round_of, one)) == list(map(round_of, expected))
        plain = alone(executor, request, "ar", judge)
        tokens = [[token for each in rounds for token in each.token_ids] for rounds in (one, plain)]
        assert tokens[0] == tokens[1]


def test_rounds_are_the_executors(executor: Engine, candidates: int) -> None:
    """Two at once, greedy and sampled, to the end of what there is room for."""
    requests = WHOLE, replace(WHOLE, prompt_ids=LONG, temperature=0.8, seed=2)
    found = run(lanes_of(candidates), "coupled", *requests)
    check(executor, found, requests, "coupled")
    alone_found = [one.accept_len for rounds in run(lanes_of(1), "coupled", *requests) for one in rounds]
    assert len(alone_found) > sum(map(len, found))  # windows beside the first were taken


def test_a_request_that_joins(executor: Engine, candidates: int) -> None:
    """In the slot of one that has ended, with windows of another length; greedy under judge rejection."""
    requests = replace(WHOLE, gamma=3, max_tokens=5), replace(WHOLE, prompt_ids=LONG), replace(WHOLE, gamma=1)
    found = run(lanes_of(candidates), "rejection", *requests)
    check(executor, found, requests, "rejection")


def test_an_engine_whose_target_drafts_for_itself() -> None:
    """Without one of its layers, at a temperature, beside plain decoding on the same kernels."""
    params = SamplingParams(max_tokens=12, temperature=0.8, seed=3)
    options: dict[str, Any] = {"drafter": "self", "skip_layers": [0]}
    pair = Pair.make("half-right", **SMALL | {"num_hidden_layers": 2})
    options |= {"max_model_len": 24, "judge": "coupled", "device": "interpret", "candidates": 3}
    with Engine(pair.config, pair.target, **options) as engine:
        texts = [
            engine.generate([3], params, strategy=strategy, gamma=gamma)[0].token_ids
            for strategy, gamma in (("ar", None), ("sd", 2))
        ]
    assert texts[0] == texts[1] and len(texts[0]) == 12


def test_what_is_refused() -> None:
    lanes = lanes_of(2)
    with pytest.raises(
        RequestError, match=r"judge 'rejection' above .* candidates is 2: pass judge='coupled'"
    ):
        lanes.start_all("sd", [replace(WHOLE, temperature=0.8)], "rejection")
    with pytest.raises(RequestError, match=r"filters and penalties .* candidates is 2: leave them out"):
        lanes.start_all("sd", [replace(PROCESSED, num_logprobs=-1)], "coupled")


def test_pages_of_a_window() -> None:
    """Wherever the last two tokens and gamma drafts begin, they lie in as many pages or fewer."""
    for gamma in range(1, 17):
        for size in (16, 32):
            most = max((first + gamma + 1) // size + 1 for first in range(size))
            assert most <= pages_of_window(gamma, size) <= most + 1
    assert pages_beside(2, 1, 16, 16) == 0 and pages_beside(2, 3, 16, 16) == 13
