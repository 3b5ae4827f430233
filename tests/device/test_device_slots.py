"""Which parameters the launches of logits processors serve. Nothing is launched."""

import torch

from pearl_rt.device.logits_processors import Shaping
from pearl_rt.device.state import DeviceState, StateSizes
from pearl_rt.types.request import FILTERS, SHAPING

SIZES = StateSizes(num_slots=3, gamma_max=5, capacity=40, vocab_size=11, draft_vocab_size=9, ring_size=4)


def test_what_is_off_in_all_slots_is_served_by_captured_launches_only() -> None:
    state = DeviceState(SIZES, torch.device("cpu"))
    captured, shaping = Shaping(state), Shaping(state, captured=False)
    assert captured.served == {*SHAPING, *FILTERS} and captured.filters and captured.penalises
    assert shaping.served == set() and not shaping.filters and not shaping.penalises
    arrays = {**shaping.arrays(), "logit_bias": shaping.bias_ids}
    for name in (*SHAPING, *FILTERS):
        off = arrays[name].clone()
        arrays[name][1] = 3
        assert shaping.served == {name}
        assert (shaping.filters, shaping.penalises) == (name in FILTERS, name in SHAPING)
        arrays[name].copy_(off)
    assert shaping.served == set()
