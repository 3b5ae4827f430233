"""What a request does to logits: C++ against numpy bit for bit, and both against plain arithmetic in fp64."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_judge import SHAPES, row_of

from pearl_rt import _testing
from pearl_rt.reference.logprobs import logprobs
from pearl_rt.reference.processors import Transform, nucleus, usable

VOCABS = (1, 2, 7, 16, 255, 256, 257, 1000)
OFF: dict[str, Any] = {}


@st.composite
def parameters(draw: Any, vocab: int) -> dict[str, Any]:
    """Fields of Transform, each often off."""

    def maybe(name: str, values: Any) -> dict[str, Any]:
        return {name: draw(values)} if draw(st.booleans()) else {}

    tokens = st.integers(0, vocab + 2)  # some behind a draft's smaller vocabulary
    return {
        "temperature": draw(st.sampled_from([0.0, 0.3, 1.0, 1.5, 100.0])),
        **maybe("top_k", st.sampled_from([1, 2, 5, vocab - 1, vocab, vocab + 1, 300])),
        **maybe("top_p", st.sampled_from([1e-6, 0.1, 0.5, 0.9, 0.999, 1 - 2**-24])),
        **maybe("min_p", st.sampled_from([1e-30, 0.01, 0.3, 1.0])),
        **maybe("repetition_penalty", st.sampled_from([0.5, 1.0, 1.3, 1e30, 1e-30])),
        **maybe("presence_penalty", st.sampled_from([-2.0, 0.7, 2.0])),
        **maybe("frequency_penalty", st.sampled_from([-1.5, 0.3, 2.0])),
        **maybe(
            "logit_bias", st.dictionaries(tokens, st.sampled_from([-100.0, -0.3, 1.7, 100.0]), max_size=4)
        ),
        **maybe("min_tokens", st.integers(0, 12)),
        "masked_ids": draw(st.lists(tokens, max_size=2)),
    }


def both(fields: dict[str, Any], prompt_len: int) -> tuple[Transform, Any]:
    """The definition, and C++'s."""
    fields = {**fields, "top_k": max(fields.get("top_k", 0), 0)}
    bias = tuple(fields.pop("logit_bias", {}).items())
    return (
        Transform(**fields, logit_bias=bias, prompt_len=prompt_len),
        _testing.Transform(**fields, logit_bias=list(bias)),
    )


def same(got: np.ndarray, want: np.ndarray) -> bool:
    return got.dtype == want.dtype and got.tobytes() == want.tobytes()


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data(), st.sampled_from(SHAPES), st.sampled_from(VOCABS), st.integers(0, 2**32))
def test_rows_match_numpy(data: Any, shape: str, vocab: int, seed: int) -> None:
    """Over a history of prefixes that grow and roll back, as one slot sees them: counts never show."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, vocab, int(rng.integers(1, 40))).tolist()
    prompt_len = int(rng.integers(1, len(tokens) + 1))
    definition, native = both(data.draw(parameters(vocab)), prompt_len)
    for _ in range(4):
        row = row_of(shape, vocab, rng)
        window = rng.integers(0, vocab, int(rng.integers(0, 5))).tolist()
        want = definition.row(row, tokens + window)
        assert same(native.row(row, tokens, prompt_len, window), want)
        cut = int(rng.integers(prompt_len, len(tokens) + 1))
        tokens = tokens[:cut] + rng.integers(0, vocab, int(rng.integers(0, 6))).tolist()


def plain(fields: dict[str, Any], row: np.ndarray, prefix: list[int], prompt_len: int) -> torch.Tensor:
    """Bias and penalties as vLLM writes them, in fp64, with dense counts."""
    x = torch.from_numpy(row.astype(np.float64))
    vocab = len(x)
    if len(prefix) - prompt_len < fields.get("min_tokens", 0):
        x[[i for i in fields["masked_ids"] if i < vocab]] = -math.inf
    for token, bias in fields.get("logit_bias", {}).items():
        if token < vocab:
            x[token] += bias
    counts = torch.bincount(torch.tensor(prefix[prompt_len:], dtype=torch.long), minlength=vocab)
    seen = torch.bincount(torch.tensor(prefix, dtype=torch.long), minlength=vocab) > 0
    penalty = torch.where(seen, fields.get("repetition_penalty", 1.0), 1.0)
    x = torch.where(x > 0, x / penalty, x * penalty)
    x -= fields.get("frequency_penalty", 0.0) * counts
    x -= fields.get("presence_penalty", 0.0) * (counts > 0)
    return x


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.data(), st.sampled_from(["normal", "ties", "masked"]), st.sampled_from(VOCABS[1:]), st.integers(0, 99)
)
def test_penalties_are_vllms(data: Any, shape: str, vocab: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    fields = {**data.draw(parameters(vocab)), "temperature": 0.0}
    if abs(math.log10(fields.get("repetition_penalty", 1.0))) > 3:
        fields["repetition_penalty"] = 2.0
    prefix = rng.integers(0, vocab, 20).tolist()
    row = row_of(shape, vocab, rng)
    want = plain(fields, row, prefix, 9)
    got = torch.from_numpy(both(fields, 9)[1].row(row, prefix, 9).astype(np.float64))
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("shape", ["normal", "ties", "masked", "flat"])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.5])
def test_filters_keep_what_they_say(temperature: float, shape: str) -> None:
    """Against a sort in fp64. At a boundary nearer than 1e-6 either side will do."""
    rng = np.random.default_rng([int(temperature * 10), len(shape)])
    for vocab in (7, 256, 1000):
        for top_k, top_p, min_p in ((5, 1.0, 0.0), (0, 0.7, 0.0), (0, 1.0, 0.05), (40, 0.9, 0.01)):
            row = row_of(shape, vocab, rng)
            native = both({"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p}, 1)[1]
            kept = native.row(row, [1], 1) > -np.inf
            x = row.astype(np.float64)
            p = np.exp((x - x.max()) / temperature)
            allowed = p >= min_p
            if top_k:
                allowed &= x >= np.sort(x)[::-1][min(top_k, vocab) - 1]
            p = np.where(allowed, p, 0)
            larger = np.array([p[x > value].sum() for value in x]) / p.sum()
            ratios = np.exp((x - x.max()) / temperature)
            sure = (top_p == 1) | (np.abs(larger - top_p) > 1e-6)
            sure &= (min_p == 0) | (np.abs(ratios - min_p) > 1e-6)
            want = allowed & ((larger < top_p) | (top_p == 1)) & (x > -np.inf)
            assert (kept == want)[sure].all() and sure.mean() > 0.9
            assert kept[np.argmax(row)]
            assert (row[kept].min() > np.where(kept, -np.inf, row).max()) or kept.all()  # ties stay together


def test_a_nucleus_that_rounding_never_fills() -> None:
    """A goal above all mass keeps whatever has any."""
    row = np.array([2.0, 1.0, -1.0, -np.inf], dtype=np.float32)
    weights = np.array([1.0, 0.5, 0.25, 0.0], dtype=np.float32)
    assert nucleus(row, weights, np.float64(9.0)) == -1.0
    assert nucleus(row, weights, np.float64(1.0)) == 2.0
    assert nucleus(row, weights, np.nextafter(np.float64(1.0), 2)) == 1.0


@pytest.mark.parametrize("top_k", [1, 2, 3, 4, 5, 999, 1000])
def test_top_k_by_hand(top_k: int) -> None:
    rng = np.random.default_rng(top_k)
    row = rng.permutation(1000).astype(np.float32)
    kept = both({"temperature": 1.0, "top_k": top_k}, 1)[1].row(row, [1], 1) > -np.inf
    assert set(np.flatnonzero(kept)) == set(np.argsort(-row)[:top_k])


def test_filters_leave_greedy_rows_alone() -> None:
    row = np.array([0.5, 2.0, 1.0], dtype=np.float32)
    for transform in both({"top_k": 1, "top_p": 0.1, "min_p": 0.9}, 1):
        got = transform.row(row, [1]) if isinstance(transform, Transform) else transform.row(row, [1], 1)
        assert same(got, row)


def test_min_tokens_ends_where_it_says() -> None:
    """The token at prompt_len + min_tokens is the first that may end the text."""
    row = np.zeros(4, dtype=np.float32)
    native = both({"min_tokens": 2, "masked_ids": [3]}, 2)[1]
    masked = [np.isneginf(native.row(row, [0, 1, 2, 0, 1][:length], 2)[3]) for length in (2, 3, 4, 5)]
    assert masked == [True, True, False, False]


@pytest.mark.parametrize("bad", [np.nan, np.inf], ids=str)
def test_rows_that_cannot_be_used_come_back(bad: float) -> None:
    row = np.array([0.0, bad, 1.0], dtype=np.float32)
    definition, native = both({"temperature": 1.0, "top_k": 1, "logit_bias": {0: 5.0}}, 1)
    assert not usable(row)
    assert same(native.row(row, [1], 1), row) and same(definition.row(row, [1]), row)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.sampled_from(["normal", "ties", "masked", "flat", "one"]),
    st.sampled_from(VOCABS),
    st.integers(0, 20),
    st.integers(0, 99),
)
def test_logprobs_match_numpy_and_torch(shape: str, vocab: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    row = row_of(shape, vocab, rng)
    token = int(rng.integers(vocab))
    got = _testing.logprobs(row, token, k)
    want = logprobs(row, token, min(k, vocab))
    assert {token_id: (value, rank) for token_id, value, rank in got} == want
    assert [entry[0] for entry in got[1:]] == np.argsort(-row, kind="stable")[: min(k, vocab)].tolist()
    exact = torch.log_softmax(torch.from_numpy(row.astype(np.float64)), 0).numpy()
    for token_id, value, rank in got:
        assert value == pytest.approx(exact[token_id], abs=2e-6)
        assert rank == 1 + (row > row[token_id]).sum()
