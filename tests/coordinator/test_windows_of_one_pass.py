"""A draft with a mask token, on scripted executors: one pass a window, whose masks no later row sees."""

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


@pytest.mark.parametrize("token", [-1, VOCAB, 2**31 - 1])
def test_a_mask_outside_the_vocabulary_is_refused(token: int) -> None:
    with pytest.raises(RequestError, match=f"mask_token is {token}; it must be at"):
        _C.ModelDrafter(Bench.build().draft, mask_token=token)
