"""The low-level calls: loops of one's own give the CPU executor's tokens, and calls out of order are refused.

Run in Triton's interpreter, or on a GPU if there is one.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pairs import SMALL, Pair

from pearl_rt import ConfigError, DevicePair, Engine, Request, RequestError, ResourceError, SamplingParams
from pearl_rt.device.state import RUNNING

MAX_LEN = 24
ONE, LONG = [7], list(range(3, 21))  # LONG crosses a prefill chunk and a page, and leaves room for 6 tokens
Loop = Callable[[DevicePair], None]


def own_pair(**options: Any) -> DevicePair:
    own = Pair.make("half-right", **SMALL)
    options = {"max_model_len": MAX_LEN, "gamma_max": 4, "dtype": "float32"} | options
    return DevicePair.from_tensors(own.config, own.target, own.config, own.draft, **options)


@cache
def shared_pair(num_slots: int = 1) -> DevicePair:
    return own_pair(num_slots=num_slots)


@cache
def executor() -> Engine:
    """The CPU's; on a GPU its own lanes, whose sums are rounded as the pair's are."""
    own = Pair.make("half-right", **SMALL)
    if torch.cuda.is_available():
        return own.engine(device="cuda", dtype="float32", max_model_len=MAX_LEN)
    return own.engine(device="cpu", max_model_len=MAX_LEN, placement="shared", num_threads=1)


@pytest.fixture(scope="module", autouse=True)
def dropped_at_the_end() -> Iterator[None]:
    yield
    executor().close()
    executor.cache_clear()
    shared_pair.cache_clear()


def ar(pair: DevicePair) -> None:
    pair.score()
    pair.verify()


def sd(pair: DevicePair) -> None:
    pair.draft()
    pair.score()
    pair.verify()


def pearl(pair: DevicePair) -> None:
    pair.score(window=False)
    pair.draft()
    pair.verify()


def pearl_draft_first(pair: DevicePair) -> None:
    pair.draft()
    pair.score(window=False)
    pair.verify()


def answers(pair: DevicePair, requests: list[Request], loop: Loop, judge: str = "rejection") -> list[Any]:
    """(tokens, rounds, accepted, rejections) of each slot, with one round queued ahead of what is read."""
    pair.start(requests, judge)
    pair.prefill()
    pair.verify()
    found: list[list[Any]] = [[] for _ in requests]
    for number in itertools.count():
        running = [slot for slot, rows in enumerate(found) if not rows or rows[-1].finish_reason == RUNNING]
        if not running:
            break
        loop(pair)
        for slot in running:
            found[slot].append(pair.wait(number, slot))
    return [
        (
            [token for row in rows for token in row.token_ids],
            len(rows) - 1,  # the first token is no round of metrics
            sum(row.accept_len for row in rows),
            sum(row.accept_len < row.num_judged for row in rows),
        )
        for rows in found
    ]


def expected(request: Request, strategy: str, judge: str = "rejection") -> Any:
    params = SamplingParams(temperature=request.temperature, seed=request.seed, max_tokens=request.max_tokens)
    options = {"strategy": strategy, "gamma": max(request.gamma, 1), "judge": judge}
    [output] = executor().generate(list(request.prompt_ids), params, **options)
    metrics = output.metrics
    return output.token_ids, metrics.rounds, metrics.accepted, metrics.rejections


LOOPS: tuple[tuple[str, Loop, int], ...] = (
    ("ar", ar, 0),
    ("sd", sd, 1),
    ("sd", sd, 4),
    ("pearl", pearl, 1),
    ("pearl", pearl, 3),
    ("pearl", pearl_draft_first, 4),
)


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "loop", "gamma"), LOOPS)
def test_a_loop_of_ones_own_gives_the_executors_verdicts(strategy: str, loop: Loop, gamma: int) -> None:
    for prompt, limit in ((ONE, 7), (LONG, MAX_LEN)):
        request = Request(prompt, gamma=gamma, max_tokens=limit)
        assert answers(shared_pair(), [request], loop) == [expected(request, strategy)]


@pytest.mark.slow
@pytest.mark.parametrize("judge", ["rejection", "coupled"])
def test_sampled_tokens_of_a_serial_loop_are_those_of_sd(judge: str) -> None:
    request = Request(ONE, gamma=3, max_tokens=8, temperature=0.8, seed=2**64 - 1)
    assert answers(shared_pair(), [request], sd, judge) == [expected(request, "sd", judge)]


@pytest.mark.slow
def test_slots_are_as_they_are_alone() -> None:
    """Three slots, of which one stays idle; windows differ."""
    requests = [Request(LONG[:5], gamma=4, max_tokens=3), Request(ONE, gamma=2, max_tokens=7)]
    found = answers(shared_pair(3), requests, pearl)
    assert found == [expected(request, "pearl") for request in requests]


def test_a_window_longer_than_any_request_changes_nothing() -> None:
    """Launches for windows of 4, as a capture makes them, serve a request that wants 2."""
    pair, request = shared_pair(), Request(ONE, gamma=2, max_tokens=7)
    pair.start([request], gamma=4, keep_logits=True)
    assert pair.gamma == 4 and pair.tensors.draft_token_ids.shape == (1, 4)
    pair.prefill()
    pair.verify()
    tokens, row = [], pair.wait(0)
    for number in itertools.count(1):
        tokens += row.token_ids
        if row.is_last:
            break
        sd(pair)
        row = pair.wait(number)
    assert tokens == expected(request, "sd")[0]


def test_rounds_of_idle_slots_change_nothing() -> None:
    pair = shared_pair()
    pair.start([], gamma=4)
    before = {name: tensor.clone() for name, tensor in vars(pair.tensors).items()}
    pair.prefill()
    pair.verify()
    sd(pair)
    for name in ("token_ids", "committed", "pending", "finish_reason", "round", "ring", "num_draft_tokens"):
        assert torch.equal(before[name], getattr(pair.tensors, name)), name


def test_prompts_may_be_read_lane_by_lane() -> None:
    pair, request = shared_pair(), Request(LONG, gamma=2, max_tokens=4)
    pair.start([request])
    pair.prefill("target")
    pair.verify()  # the first token, before the draft has read anything
    pair.prefill("draft")
    sd(pair)
    tokens = expected(request, "sd")[0]
    first, second = pair.wait(0), pair.wait(1)
    assert first.token_ids + second.token_ids == tokens[: 1 + len(second.token_ids)]


def test_the_struct_of_arrays_is_where_it_was() -> None:
    pair = shared_pair()
    addresses = {name: tensor.data_ptr() for name, tensor in vars(pair.state.whole).items()}
    answers(pair, [Request(ONE, gamma=2, max_tokens=3)], sd)
    assert {name: tensor.data_ptr() for name, tensor in vars(pair.tensors).items()} == addresses
    assert pair.tensors.committed.tolist() == [1 + 3]
    assert pair.tensors.token_ids[0, :4].tolist()[0] == ONE[0]


def test_the_ring_keeps_so_many_rounds() -> None:
    pair = own_pair(ring_size=2)
    pair.start([Request(ONE, gamma=1, max_tokens=9)])
    pair.prefill()
    assert pair.read(0) is None
    pair.verify()
    sd(pair)
    assert pair.read(0) is not None and pair.read(1) is not None and pair.read(2) is None
    sd(pair)
    assert pair.read(0) is None and pair.read(2) is not None
    with pytest.raises(RequestError, match=r"round 0 of slot 0 is not in the ring: .* 2 rounds more"):
        pair.wait(0)


ORDERS = (
    ("prefill", r"prefill\(\) out of order: no request was started: call start\(\)"),
    ("verify", r"verify\(\) out of order: no request was started"),
    ("score", r"score\(\) out of order: no request was started"),
    ("draft", r"draft\(\) out of order: no request was started"),
    ("start prefill prefill", r"the target has read its prompts: call it once"),
    ("start verify", r"verify\(\) out of order: the prompt was not read: call prefill\(\)"),
    ("start prefill score", r"the first token is not verified: call prefill\(\), then verify\(\)"),
    ("start prefill draft", r"the first token is not verified"),
    ("start prefill verify verify", r"verify\(\) out of order: nothing was scored: call score\(\)"),
    ("start prefill verify score", r"the window is not drafted: call draft\(\)"),
    ("start prefill verify draft draft", r"the window is drafted: call verify\(\) before the next"),
    ("start prefill verify draft verify", r"nothing was scored"),
    ("start prefill verify draft score score", r"the logits are there: call verify\(\) before the next"),
    ("start prefill verify pending verify", r"no window was drafted: call draft\(\)"),
    ("start prefill verify draft score verify pending", r"was scored with window=True: pass the same"),
    ("start prefill_target verify draft", r"the draft has no prompt: call prefill\(\)"),
)


@pytest.mark.parametrize(("calls", "message"), ORDERS)
def test_calls_out_of_order_are_refused(calls: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last call is the one that is refused; nothing is launched here."""
    pair = shared_pair()
    pair.claim()
    for steps, names in (
        (pair.target_steps, ("prefill", "score", "verify")),
        (pair.draft_steps, ("prefill", "draft")),
    ):
        for name in names:
            monkeypatch.setattr(steps, name, lambda *args, **options: None)
    made: dict[str, Callable[[], None]] = {
        "start": lambda: pair.start([Request(ONE, gamma=2)]),
        "prefill_target": lambda: pair.prefill("target"),
        "pending": lambda: pair.score(window=False),
    }
    *before, last = calls.split()
    for call in before:
        made.get(call, getattr(pair, call, None))()  # type: ignore[misc]
    with pytest.raises(RequestError, match=message):
        made.get(last, getattr(pair, last, None))()  # type: ignore[misc]


def test_a_refused_call_leaves_the_order_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    pair, request = shared_pair(), Request(ONE, gamma=2, max_tokens=7)
    pair.start([request])
    with pytest.raises(RequestError):
        pair.verify()
    with pytest.raises(RequestError, match="gamma 5"):
        pair.start([replace(request, gamma=5)])
    pair.prefill()
    pair.verify()
    sd(pair)
    assert pair.wait(0).token_ids == expected(request, "sd")[0][:1]


BAD = (
    (
        Request(ONE, gamma=5),
        r"gamma 5 is out of range: pass 0 to 4, or build the pair with a larger",
    ),
    (Request(ONE, gamma=-1), r"gamma -1 is out of range"),
    (Request([]), r"is empty: give at least one token"),
    (Request(list(range(25))), r"the prompt has 25 tokens, more than max_model_len 24"),
    (Request([3] * 24), r"leaves no room to generate within max_model_len 24"),
    (Request([3, 32]), r"prompt\[1\] is 32, out of range: the vocabulary has ids 0 to 31"),
    (Request(ONE, temperature=-0.5), r"temperature"),
    (Request(ONE, temperature=float("nan")), r"temperature"),
    (Request(ONE, max_tokens=0), r"max_tokens"),
    (Request(ONE, seed=2**64), r"seed"),
    (Request(ONE, stop_ids=list(range(30)), eos_ids=[1, 2, 3]), r"33 end-of-text and stop ids; .* takes 32"),
)


@pytest.mark.parametrize(("request_", "message"), BAD)
def test_bad_requests_are_refused_before_anything_is_touched(request_: Request, message: str) -> None:
    pair = shared_pair()
    claims = pair.claims
    with pytest.raises(RequestError, match=message):
        pair.start([request_])
    assert pair.claims == claims


def test_bad_calls_are_refused() -> None:
    pair = shared_pair()
    with pytest.raises(RequestError, match=r"2 requests, this pair has 1 slots"):
        pair.start([Request(ONE), Request(ONE)])
    with pytest.raises(RequestError, match=r"judge 'best' is not supported"):
        pair.start([Request(ONE)], "best")
    with pytest.raises(RequestError, match=r"gamma 1 is less than the 2 that a request asks for"):
        pair.start([Request(ONE, gamma=2)], gamma=1)
    with pytest.raises(RequestError, match=r"needs keep_logits=True"):
        pair.start([Request(ONE, gamma=2, temperature=1.0)], keep_logits=False)
    pair.start([Request(ONE)])
    with pytest.raises(RequestError, match=r"lane 'both' is not supported"):
        pair.prefill("both")
    with pytest.raises(RequestError, match=r"slot 1 is out of range: pass 0 to 0"):
        pair.read(0, 1)
    pair.prefill()
    pair.verify()
    with pytest.raises(RequestError, match=r"gamma is 0: start a request with gamma > 0"):
        pair.draft()
    with pytest.raises(RequestError, match=r"gamma is 0, there is no window: pass window=False"):
        pair.score(window=True)


def test_a_pair_without_a_draft() -> None:
    own = Pair.make("half-right", **SMALL)
    pair = DevicePair.from_tensors(own.config, own.target, max_model_len=MAX_LEN, dtype="float32")
    assert not pair.has_draft
    request = Request(ONE, max_tokens=4)
    assert answers(pair, [request], ar) == [expected(request, "ar")]
    with pytest.raises(RequestError, match=r"pass 0, or build the pair with a draft"):
        pair.start([Request(ONE, gamma=1)])
    pair.start([request])
    with pytest.raises(RequestError, match=r"there is no draft to prefill"):
        pair.prefill("draft")


SIZES: tuple[tuple[dict[str, Any], str], ...] = (
    ({"gamma_max": 17}, r"gamma_max 17 is out of range: pass 0 to 16"),
    ({"num_slots": 0}, r"num_slots 0 is out of range: pass 1 or more"),
    ({"ring_size": 0}, r"ring_size 0 is out of range"),
    ({"prefill_chunk": 2.5}, r"prefill_chunk must be an integer, got 2.5"),
    ({"block_size": 17}, r"block_size 17 is not supported"),
    ({"attention_backend": "best"}, r"attention back end 'best' is not supported"),
    ({"max_model_len": 10**6}, r"max_model_len"),
    ({"device": "tpu"}, r"device 'tpu' is not supported: pass 'auto', 'cpu', 'cuda' or 'cuda:N'"),
    ({"device": "cpu:1"}, r"device 'cpu:1' is not supported"),
    ({"device": "cuda:x"}, r"device 'cuda:x' is not supported"),
    ({"dtype": "int8"}, r"dtype 'int8' is not supported"),
)


@pytest.mark.parametrize(("options", "message"), SIZES)
def test_sizes_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        own_pair(**options)


def test_half_a_draft_is_refused() -> None:
    own = Pair.make("half-right", **SMALL)
    with pytest.raises(ConfigError, match="a draft is a configuration and tensors: pass both, or neither"):
        DevicePair.from_tensors(own.config, own.target, own.config, max_model_len=MAX_LEN)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_is_not_there() -> None:
    with pytest.raises(ResourceError, match=r"device 'cuda': torch finds no GPU here: pass device='cpu'"):
        own_pair(device="cuda")
    with pytest.raises(ConfigError, match=r"dtype 'bfloat16' is not computed rightly by Triton's interp"):
        own_pair(dtype="bfloat16")


@pytest.mark.slow
def test_from_checkpoints(tmp_path: Path) -> None:
    own = Pair.make("half-right", **SMALL | {"vocab_size": 288})
    target, draft = own.save(tmp_path)
    pair = DevicePair.from_pretrained(target, draft, max_model_len=MAX_LEN, gamma_max=2, dtype="float32")
    assert pair.config.vocab_size == 288 and pair.state.sizes.gamma_max == 2
    request = Request(ONE, gamma=2, max_tokens=3)
    serial, plain = (answers(pair, [request], loop)[0][0] for loop in (sd, pearl))
    assert serial == plain
