"""Slots of a device's state, filled and given back one by one while others go on. Nothing is launched."""

import pytest
import torch

from pearl_rt.device.logits_processors import Shaping
from pearl_rt.device.state import IDLE, RUNNING, DeviceState, StateSizes
from pearl_rt.types.request import Request

SIZES = StateSizes(num_slots=3, gamma_max=5, capacity=40, vocab_size=11, draft_vocab_size=9, ring_size=4)
CPU = torch.device("cpu")
REQUEST = Request(
    [1, 2, 3],
    gamma=4,
    temperature=0.5,
    seed=2**64 - 1,
    max_tokens=7,
    eos_ids=[4],
    stop_ids=[5],
    top_p=0.5,
    min_p=0.1,
    top_k=3,
    repetition_penalty=2.0,
    logit_bias=((1, 2.0), (3, -1.0)),
    min_tokens=2,
)
POISON = 1717


def of_slot(state: DeviceState, slot: int, gamma: int) -> dict[str, torch.Tensor]:
    """What a slot has but logits and the window's tokens, as far as they are defined."""
    windowed = state.windowed(gamma)
    names = set(vars(windowed)) - {"ring", "draft_token_ids", "draft_logits", "target_logits", "token_ids"}
    found = {name: getattr(windowed, name)[slot].clone() for name in names}
    return found | {"ring": windowed.ring[:, slot].clone(), "token_ids": windowed.token_ids[slot, :3].clone()}


@pytest.mark.parametrize("gamma", [2, 5])
def test_a_slot_is_filled_as_start_fills_it_and_alone(gamma: int) -> None:
    fresh, used = DeviceState(SIZES, CPU), DeviceState(SIZES, CPU)
    fresh.start([REQUEST, REQUEST])
    for tensor in vars(used.whole).values():
        tensor.fill_(POISON)
    used.clear(1)
    assert used.whole.finish_reason.tolist() == [POISON, IDLE, POISON]
    used.fill(1, REQUEST, gamma)
    assert used.whole.finish_reason[1] == IDLE  # kernels do not see it while its prompt is fed
    used.run(1)
    assert used.whole.finish_reason[1] == RUNNING
    for name, tensor in of_slot(fresh, 1, gamma).items():
        assert torch.equal(of_slot(used, 1, gamma)[name], tensor), name
    for slot in (0, 2):
        assert all((tensor == POISON).all() for tensor in of_slot(used, slot, gamma).values())


@pytest.mark.parametrize(("gamma", "wider"), [(1, 2), (2, 5), (4, 5)])
def test_what_is_pending_goes_along_when_the_window_grows(gamma: int, wider: int) -> None:
    """Logits and thresholds by position, of every slot, wherever its pending tokens lie in the ring."""
    state = DeviceState(SIZES, CPU)
    shaping = Shaping(state)
    for pending in range(gamma + 1):
        for committed in range(4, 4 + 2 * wider):
            state.start([REQUEST] * 3)
            state.whole.committed.copy_(torch.tensor([committed, committed + 1, committed + 7]))
            state.whole.pending.fill_(pending)
            positions = [
                (slot, position)
                for slot, first in enumerate(state.whole.committed.tolist())
                for position in range(first, first + pending)
            ]
            logits, thresholds = state.windowed(gamma).draft_logits, shaping._kept(gamma)
            for slot, position in positions:
                logits[slot, position % (2 * gamma)] = 100.0 * slot + position
                thresholds[slot, position % (2 * gamma)] = 100.0 * slot - position
            shaping.widen(gamma, wider)
            state.widen(gamma, wider)
            logits, thresholds = state.windowed(wider).draft_logits, shaping._kept(wider)
            for slot, position in positions:
                assert (logits[slot, position % (2 * wider)] == 100.0 * slot + position).all()
                assert thresholds[slot, position % (2 * wider)] == 100.0 * slot - position
            assert state.read(wider, 0, 0) is None


def parameters(shaping: Shaping) -> list[torch.Tensor]:
    own = (*shaping.floats.values(), shaping.top_k, shaping.min_tokens, shaping.masked_ids, shaping.bias_ids)
    return [tensor.clone() for tensor in own]


def test_parameters_leave_with_their_request() -> None:
    state = DeviceState(SIZES, CPU)
    shaping = Shaping(state)
    off = parameters(shaping)
    assert shaping.floats["repetition_penalty"].tolist() == [1.0] * 3
    assert not shaping.filters and not shaping.penalises
    shaping.kept_thresholds.fill_(torch.nan)
    shaping.fill(1, REQUEST)
    assert shaping.filters and shaping.penalises
    assert (shaping.kept_thresholds == -torch.inf).all()  # drafted before anybody had a filter
    changed = [
        (new != old).any(-1).tolist() if new.dim() > 1 else (new != old).tolist()
        for new, old in zip(parameters(shaping), off, strict=True)
    ]
    assert sum(slots == [False, True, False] for slots in changed) == 7
    assert shaping.bias_ids[1, :3].tolist() == [1, 3, -1] and shaping.bias[1, :2].tolist() == [2.0, -1.0]
    shaping.kept_thresholds.fill_(0.5)
    shaping.fill(2, REQUEST)
    assert (shaping.kept_thresholds == 0.5).all()  # of tokens that are pending in slot 1
    shaping.fill(1, Request([1], temperature=1.0, min_p=0.2))  # in place of the one before
    shaping.clear(2)
    assert shaping.filters and not shaping.penalises
    shaping.clear(1)
    assert all(torch.equal(new, old) for new, old in zip(parameters(shaping), off, strict=True))
    assert not shaping.filters
