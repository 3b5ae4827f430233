"""A draft with a mask token, on scripted executors: a window is a pass or a few, whose rows no text sees."""

from __future__ import annotations

import pytest
from scripted import VOCAB, Bench, logits_after, tokens_of

from pearl_rt import _C
from pearl_rt.errors import RequestError

REQUEST = _C.Request([1, 2, 3], gamma=8, max_tokens=50)


@pytest.mark.parametrize("strategy", ["sd", "pearl"])
def test_a_window_is_one_pass(strategy: str) -> None:
    """Of a draft that agrees with the target where there are no masks."""
    scripts = {"target": {"rule": 3}, "draft": {"rule": 3}}
    by_token, at_once = Bench.build(**scripts), Bench.build(**scripts, mask_token=5)
    passes = {}
    for name, bench in (("by token", by_token), ("at once", at_once)):
        rounds = len(bench.run(strategy, REQUEST)) - 1
        passes[name] = bench.draft.num_forwards / rounds
    assert passes["at once"] < 1.2 and passes["by token"] > 4
    assert at_once.draft.max_position < 3 + 50
    results = at_once.run(strategy, REQUEST)
    said, text = logits_after(rule=3), [1, 2, 3]
    for token in tokens_of(results):
        assert token == said(text).argmax()
        text.append(token)


@pytest.mark.parametrize("strategy", ["sd", "pearl"])
@pytest.mark.parametrize("gamma", [1, 2, 8])
@pytest.mark.parametrize("passes", [1, 2, 5, 16])
def test_a_window_is_a_few_passes(passes: int, gamma: int, strategy: str) -> None:
    """One for each place at most; and the text is the target's."""
    scripts = {"target": {"rule": 3}, "draft": {"rule": 3}}
    bench = Bench.build(**scripts, mask_token=5, passes=passes)
    request = _C.Request([1, 2, 3], gamma=gamma, max_tokens=40)
    results = bench.run(strategy, request)
    each = min(passes, gamma)
    assert each / 2 < bench.draft.num_forwards / (len(results) - 1) <= each + 0.5
    assert bench.draft.max_position < 3 + 40
    said, text = logits_after(rule=3), [1, 2, 3]
    for token in tokens_of(results):
        assert token == said(text).argmax()
        text.append(token)


@pytest.mark.parametrize("strategy", ["sd", "pearl"])
def test_a_draft_that_says_no_number_ends_the_request(strategy: str) -> None:
    """Where all before it stands, as in each window of one place; it names the position."""
    for call in range(1, 5):
        bench = Bench.build(target={"rule": 3}, draft={"rule": 3, "nan_at": call}, mask_token=5, passes=3)
        results = bench.run(strategy, _C.Request([1, 2, 3], gamma=1, max_tokens=50))
        assert results[-1].finish_reason == "error" and "position" in results[-1].error


@pytest.mark.parametrize("token", [-1, VOCAB, 2**31 - 1])
def test_a_mask_outside_the_vocabulary_is_refused(token: int) -> None:
    with pytest.raises(RequestError, match=f"mask_token is {token}; it must be at"):
        _C.ModelDrafter(Bench.build().draft, mask_token=token)
    with pytest.raises(RequestError, match=f"mask_token is {token}; it must be at"):
        _C.DiffusionDrafter(Bench.build().draft, mask_token=token, num_passes=2)


@pytest.mark.parametrize("passes", [0, -1, 2**31 - 1])
def test_passes_that_cannot_be_are_refused(passes: int) -> None:
    with pytest.raises(RequestError, match=f"num_passes is {passes}; it must be at"):
        _C.DiffusionDrafter(Bench.build().draft, mask_token=5, num_passes=passes)
