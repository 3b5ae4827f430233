"""kv_cache_tokens from the front door: less KV cache than slots times length, and the same answers."""

import random
from collections.abc import Iterator

import pytest
from test_batch import mixed, prompts_of
from tiny_pairs import Pair

from pearl_rt import ConfigError, Engine, RequestError, ResourceError, SamplingParams
from pearl_rt.device.kv_pool import SHARED_BLOCK_SIZE, KvPool
from pearl_rt.types.request import Request

LENGTH = 1024
ENDLESS = 1 << 16  # tokens


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """Six slots, and blocks for one sequence of the whole length."""
    pair = Pair.make("half-right")
    with pair.engine(
        max_model_len=LENGTH, max_num_seqs=6, kv_cache_tokens=LENGTH - 100, judge="coupled"
    ) as built:
        yield built


def test_sizes_of_a_pool() -> None:
    whole = KvPool.of(None, num_slots=3, max_model_len=300)
    assert (whole.block_size, whole.num_blocks, whole.num_tokens, whole.longest) == (256, 6, 1536, 300)
    short = KvPool.of(None, num_slots=3, max_model_len=40)
    assert (short.block_size, short.num_blocks, short.longest) == (48, 3, 40)
    small = KvPool.of(300, num_slots=8, max_model_len=1000)
    assert (small.block_size, small.num_blocks, small.longest) == (256, 2, 512)
    assert KvPool.of(300, num_slots=8, max_model_len=1000, block_size=16).num_blocks == 19
    assert [small.blocks_for(Request([1] * 500, max_tokens=n)) for n in (12, 13, 268, 269, 10**9)] == [
        2,
        3,
        3,
        4,
        4,
    ]
    small.check(Request([1] * 500, max_tokens=12))
    with pytest.raises(
        RequestError, match="513 tokens need 3 KV blocks of 256, and there are 2: lower max_tokens"
    ):
        small.check(Request([1] * 500, max_tokens=13))


def test_answers_do_not_depend_on_the_pool(engine: Engine) -> None:
    """Requests of every kind, more than fit, submitted and in lists: each as ar alone."""
    rng = random.Random(6)
    prompts = prompts_of(rng, 16)
    params = [mixed(rng) for _ in prompts]
    alone = [engine.generate(p, q, strategy="ar")[0].token_ids for p, q in zip(prompts, params, strict=True)]
    handles = [engine.submit(p, q) for p, q in zip(prompts, params, strict=True)]
    assert [handle.result(60).token_ids for handle in handles] == alone
    few = SamplingParams(max_tokens=20)
    expected = [engine.generate(prompt, few, strategy="ar")[0].token_ids for prompt in prompts]
    assert [output.token_ids for output in engine.generate(prompts, few, strategy="pearl")] == expected


@pytest.fixture
def endless() -> Iterator[Engine]:
    """Three slots, and blocks for one sequence without an end."""
    pair = Pair.make("equal", max_position_embeddings=ENDLESS)
    with pair.engine(
        max_model_len=ENDLESS,
        max_num_seqs=3,
        kv_cache_tokens=ENDLESS,
        strategy="ar",
        placement="shared",
        prefix_caching=False,
    ) as built:
        yield built


def test_what_waits_for_blocks_is_counted_as_waiting(endless: Engine) -> None:
    engine, whole = endless, SamplingParams(max_tokens=ENDLESS, ignore_eos=True)
    assert engine.stats()["kv_blocks"] == {"block_size": 256, "total": 256, "free": 256}
    first = engine.submit([1, 2], SamplingParams(max_tokens=255 * 256 - 2, ignore_eos=True))
    next(iter(first))
    others = [engine.submit([3], whole), engine.submit([4], SamplingParams(max_tokens=3))]
    stats = engine.stats()
    assert stats["queue"] == {"running": 1, "waiting": 2}
    assert stats["kv_blocks"]["free"] == 1  # enough for the last, which does not overtake
    first.cancel()
    next(iter(others[0]))
    assert engine.stats()["queue"] == {"running": 1, "waiting": 1}
    others[0].cancel()
    assert len(others[1].result(20).token_ids) == 3
    assert engine.stats()["kv_blocks"]["free"] == 256


def test_a_request_that_can_never_fit_is_refused() -> None:
    pair = Pair.make("equal")
    with pair.engine(
        max_model_len=LENGTH, kv_cache_tokens=300, strategy="ar", prefix_caching=False
    ) as engine:
        assert engine.stats()["kv_blocks"]["total"] == 2
        text = (
            "prompt has 2 tokens and max_tokens is 511: 513 tokens need 3 KV blocks of 256, and there are 2: "
            "lower max_tokens, or build the engine with a larger kv_cache_tokens"
        )
        for call in (engine.submit, engine.generate, engine.stream):
            with pytest.raises(RequestError, match=text):
                call([1, 2], SamplingParams(max_tokens=511))  # type: ignore[operator]
        assert (
            len(engine.generate([1, 2], SamplingParams(max_tokens=510, ignore_eos=True))[0].token_ids) == 510
        )


def test_more_slots_than_whole_ones_would_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory check counts the pool."""
    pair = Pair.make("equal", max_position_embeddings=4096)
    monkeypatch.setattr("pearl_rt.backends.cpu.available_memory", lambda: 30_000_000)
    options = {"max_model_len": 4096, "max_num_seqs": 32, "placement": "shared"}
    with pytest.raises(
        ResourceError, match=r"131072 tokens of KV cache.* lower max_num_seqs, .*kv_cache_tokens"
    ):
        pair.engine(**options)
    with pair.engine(**options, kv_cache_tokens=8192) as engine:
        assert engine.stats()["kv_blocks"]["total"] == 8192 // SHARED_BLOCK_SIZE


def test_bad_sizes_are_refused_by_value() -> None:
    pair = Pair.make("equal")
    for wrong, text in (
        (7, "kv_cache_tokens 7 is out of range: pass 8 to "),
        (-1, "kv_cache_tokens -1"),
        (1e3, "kv_cache_tokens must be an integer"),
        ("1024", "kv_cache_tokens must be an integer"),
    ):
        with pytest.raises(ConfigError, match=text):
            pair.engine(kv_cache_tokens=wrong)
