"""Which parameters the launches of logits processors serve. Nothing is launched."""

import torch

from pearl_rt.device.logits_processors import LogitsProcessors
from pearl_rt.device.state import DeviceState, StateSizes
from pearl_rt.types.request import FILTERS, PROCESSORS

SIZES = StateSizes(num_slots=3, gamma_max=5, capacity=40, vocab_size=11, draft_vocab_size=9, ring_size=4)


def test_what_is_off_in_all_slots_is_served_by_captured_launches_only() -> None:
    state = DeviceState(SIZES, torch.device("cpu"))
    captured, processors = LogitsProcessors(state), LogitsProcessors(state, captured=False)
    assert captured.served == {*PROCESSORS, *FILTERS} and captured.filters and captured.penalises
    assert processors.served == set() and not processors.filters and not processors.penalises
    arrays = {**processors.arrays(), "logit_bias": processors.bias_ids}
    for name in (*PROCESSORS, *FILTERS):
        off = arrays[name].clone()
        arrays[name][1] = 3
        assert processors.served == {name}
        assert (processors.filters, processors.penalises) == (name in FILTERS, name in PROCESSORS)
        arrays[name].copy_(off)
    assert processors.served == set()
