"""A draft that fills a window in one pass, on the kernels, in the interpreter: its rounds are those of the
CPU executor, and the text is plain decoding's.

The CPU feeds what its cache lacks; a step on the device always as many rows. Tokens that were drafted behind
others' rejections are compared too, as the low-level calls leave them.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_eager_batches import LONG, MAX_LEN, ONE, PAIR, PLAIN, PROCESSED, alone, finish, round_of

from pearl_rt import DevicePair, Engine, SamplingParams
from pearl_rt.backends.cuda_lanes import CudaLanes
from pearl_rt.backends.interpret import InterpretBackend
from pearl_rt.device.host_gpu import HostStream
from pearl_rt.device.kv_pool import KvPool
from pearl_rt.device.model import DeviceModel
from pearl_rt.strategy.planner import plan
from pearl_rt.strategy.step_timing import NOMINAL_TIMES
from pearl_rt.types.request import Request

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are compiled in this process")
MASK = 29  # behind which drafts stand more often than not
CONFIG = replace(PAIR.config, pard_token=MASK)
HEAD = "lm_head.weight"
WHOLE = Request(ONE, gamma=4, max_tokens=10**6)  # to the end of what there is room for


@pytest.fixture(scope="module")
def executor() -> Iterator[Engine]:
    options: dict[str, Any] = {"max_model_len": MAX_LEN, "placement": "shared", "num_threads": 1}
    with Engine(PAIR.config, PAIR.target, CONFIG, PAIR.draft, device="cpu", **options) as engine:
        yield engine


def models() -> tuple[DeviceModel, DeviceModel]:
    cpu = torch.device("cpu")
    return (
        DeviceModel.pack(PAIR.config, PAIR.target, device=cpu, name="target"),
        DeviceModel.pack(CONFIG, PAIR.draft, device=cpu, name="draft"),
    )


def lanes_of(prefix_caching: bool = False, draft: DeviceModel | None = None) -> CudaLanes:
    target, own = models()
    return InterpretBackend(2).lanes("shared", target, draft or own, KvPool(16, 6, MAX_LEN, prefix_caching))


def run(lanes: CudaLanes, strategy: str, judge: str, *requests: Request) -> list[list[Any]]:
    with HostStream.steps:  # no step runs before all are there
        numbers = lanes.start_all(strategy, requests[:2], judge)
        numbers += [lanes.submit(request) for request in requests[2:]]
    found = finish(lanes)
    return [found[number] for number in numbers]


@pytest.mark.parametrize(
    ("strategy", "gamma", "judge"),
    [("sd", 4, "coupled"), ("pearl", 4, "coupled"), ("sd", 1, "rejection"), ("pearl", 1, "coupled")],
)
def test_rounds_are_the_executors(executor: Engine, strategy: str, gamma: int, judge: str) -> None:
    """Two at once: one to the end of what there is room for, where windows are shorter, and one sampled."""
    first = replace(WHOLE, gamma=gamma, max_tokens=23 if gamma > 1 else 6)
    second = replace(WHOLE, prompt_ids=LONG, gamma=gamma, temperature=0.8, seed=2)
    lanes = lanes_of()
    both = run(lanes, strategy, judge, first, second)
    for found, request in zip(both, (first, second), strict=True):
        expected = alone(executor, request, strategy, judge)
        assert list(map(round_of, found)) == list(map(round_of, expected))
        plain = alone(executor, request, "ar", judge)
        tokens = [[token for one in rounds for token in one.token_ids] for rounds in (found, plain)]
        assert tokens[0] == tokens[1] or judge == "rejection"
    assert max(one.accept_len for one in both[0]) == gamma  # pending tokens and a new one


def test_a_mask_that_the_target_has_no_id_for(executor: Engine) -> None:
    """The draft's vocabulary is one longer, as `recipes.train parallel` makes it. The new id is read as MASK
    is, and is never said.
    """
    size = PAIR.config.vocab_size
    config, wider = replace(CONFIG, vocab_size=size + 1, pard_token=size), dict(PAIR.draft)
    for name, row in (("model.embed_tokens.weight", wider["model.embed_tokens.weight"][MASK]), (HEAD, 9.0)):
        wider[name] = torch.cat((wider[name], torch.zeros(1, config.hidden_size) + row))
    draft = DeviceModel.pack(config, wider, device=torch.device("cpu"), name="draft")
    request = replace(WHOLE, max_tokens=9)
    [found] = run(lanes_of(draft=draft), "sd", "coupled", request)
    expected = alone(executor, request, "sd", "coupled")
    assert list(map(round_of, found)) == list(map(round_of, expected))


def test_the_planner_takes_a_window_for_one_pass() -> None:
    """So that with drafts that stand a longer one is better, and by token it is not always."""
    times, by_token = lanes_of().measure(), NOMINAL_TIMES
    assert times.drafts_at_once and times.window is not None and by_token.window is not None
    for strategy in ("sd", "pearl"):
        found, other = (plan(strategy, 16, "shared", own, 0.9) for own in (times, by_token))
        assert found.seconds_per_round == pytest.approx(1.2) and other.seconds_per_round > 4


@pytest.mark.slow
@pytest.mark.parametrize(("judge", "strategy"), [("rejection", "pearl"), ("coupled", "sd")])
def test_rows_see_the_tokens_drafted_before_them(executor: Engine, judge: str, strategy: str) -> None:
    """Penalties, filters and a bias, in a run that others join with windows of their own."""
    shaped = replace(PROCESSED, num_logprobs=-1, max_tokens=7, frequency_penalty=1.0, repetition_penalty=1.3)
    requests = shaped, replace(PLAIN, gamma=3), replace(shaped, prompt_ids=ONE, gamma=2, min_p=0.0, top_k=9)
    all_found = run(lanes_of(), strategy, judge, *requests)
    for found, request in zip(all_found, requests, strict=True):
        expected = alone(executor, request, strategy, judge)
        assert list(map(round_of, found)) == list(map(round_of, expected))
    assert max(one.accept_len for one in (*all_found[0], *all_found[2])) > 1


def test_what_is_found_in_pages_has_no_rows_of_masks(executor: Engine) -> None:
    """Prompts that go on behind an answer of every length: its last tokens have no rows of the draft, or
    those of masks. What is found of them beside a draft token by token is one token less than there is.
    """
    answer = [token for one in alone(executor, WHOLE, "ar", "coupled") for token in one.token_ids]
    for length in (17, 18, 20, 22):
        lanes = lanes_of(prefix_caching=True)
        run(lanes, "sd", "coupled", replace(WHOLE, max_tokens=length - len(ONE)))
        longer = replace(WHOLE, prompt_ids=[*ONE, *answer[: length - len(ONE)]])
        [found] = run(lanes, "sd", "coupled", longer)
        assert found[0].num_cached_tokens == (16 if length - WHOLE.gamma - 1 >= 16 else 0)
        expected = alone(executor, longer, "sd", "coupled")
        assert list(map(round_of, found)) == list(map(round_of, expected))


@pytest.mark.parametrize("strategy", ["sd", "pearl"])
def test_windows_are_the_definitions(executor: Engine, strategy: str) -> None:
    """Each drafted token, also behind one that falls: that of the draft's row behind the text and masks."""
    sizes = {"max_model_len": MAX_LEN, "num_slots": 2, "gamma_max": 3, "prefill_chunk": 4}
    pair = DevicePair.of_models(*models(), **sizes)
    prompts, gamma = (ONE, LONG[:5]), 3
    pair.start([Request(prompt, gamma=gamma, max_tokens=9) for prompt in prompts])
    pair.prefill()
    pair.verify()
    state = pair.tensors
    rows_of = {}
    with Engine(CONFIG, PAIR.draft, device="cpu", max_model_len=MAX_LEN, num_threads=1) as draft:

        def best_behind(tokens: list[int]) -> int:
            if tuple(tokens) not in rows_of:
                params = SamplingParams(max_tokens=1)
                rows_of[tuple(tokens)] = draft.generate(tokens, params, strategy="ar")[0].token_ids[0]
            return rows_of[tuple(tokens)]

        for _ in range(4):
            pair.draft()
            for slot in range(2):
                end = int(state.committed[slot] + state.pending[slot])
                text = state.token_ids[slot, :end].tolist()
                wanted = [
                    best_behind([*text, *[MASK] * place]) for place in range(state.num_draft_tokens[slot])
                ]
                assert state.draft_token_ids[slot, : len(wanted)].tolist() == wanted
            pair.score(window=strategy == "sd")
            pair.verify()
