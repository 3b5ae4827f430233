"""The adapters hold what their originals' tests hold: laws, placeholders, padding, NaN rows, chunks."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from chi_square import FALSE_ALARM, p_value

from pearl_rt.adapters import operators
from pearl_rt.adapters.flashinfer import chain_speculative_sampling
from pearl_rt.adapters.vllm import gumbel_sample, rejection_sample

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered", "ignore:invalid value encountered")


def requests(
    target: torch.Tensor, draft: torch.Tensor, k: int, temperature: float, trials: int, device: torch.device
) -> dict[str, Any]:
    """`trials` requests of k draft tokens over one target and one draft, drawn by gumbel_sample; target
    logits divided by the temperature, draft logits not."""
    rows = torch.arange(trials * (k + 1), device=device)
    slots = torch.arange(trials, dtype=torch.int32, device=device)
    args: dict[str, Any] = {
        "target_logits": (target / (temperature or 1.0)).to(device).expand(len(rows), -1),
        "draft_logits": draft.to(device).expand(trials, k, -1),
        "cu_num_logits": torch.arange(trials + 1, dtype=torch.int32, device=device) * (k + 1),
        "pos": rows.to(torch.int32),
        "idx_mapping": slots,
        "expanded_idx_mapping": slots.repeat_interleave(k + 1),
        "expanded_local_pos": torch.arange(k + 1, dtype=torch.int32, device=device).repeat(trials),
        "temperature": torch.full((trials,), temperature, device=device),
        "seed": slots.long(),
        "num_speculative_steps": k,
    }
    drafted = gumbel_sample(
        draft.to(device).expand(trials * k, -1),
        args["expanded_idx_mapping"].view(trials, k + 1)[:, :k].reshape(-1),
        args["temperature"],
        args["seed"],
        args["pos"].view(trials, k + 1)[:, :k].reshape(-1),
        apply_temperature=True,
        is_drafting=True,
    )
    ids = torch.zeros(trials, k + 1, dtype=torch.int64, device=device)
    ids[:, 1:] = drafted.view(trials, k)
    args["draft_sampled"] = ids.reshape(-1)
    return args


def normal(size: int, seed: int, scale: float = 1.0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, scale, size)).float()


def holds_law(sampled: torch.Tensor, num_sampled: torch.Tensor, law: torch.Tensor) -> None:
    """Chi-square at each position, among the requests that came so far; false alarm 1e-4 each."""
    for place in range(sampled.shape[1]):
        got = sampled[num_sampled > place, place].cpu().numpy()
        if len(got) < 50:
            continue
        assert p_value(np.bincount(got, minlength=len(law)), law.numpy() * len(got)) > FALSE_ALARM, place


@pytest.mark.slow
@pytest.mark.parametrize("k, temperature", [(1, 0.6), (3, 1.0)])
@pytest.mark.parametrize("draft", ["opposite", "other"])
def test_rejection_sample_has_the_targets_law(
    k: int, temperature: float, draft: str, device: torch.device, trials: Callable[[int], int]
) -> None:
    runs = trials(8_000)
    target = normal(16, 1)
    drafted = -target if draft == "opposite" else normal(16, 2)
    args = requests(target, drafted, k, temperature, runs, device)
    sampled, num_sampled = rejection_sample(**args)
    assert sampled.dtype == torch.int64 and sampled.shape == (runs, k + 1)
    assert num_sampled.dtype == torch.int32 and num_sampled.min() >= 1
    step = torch.arange(k + 1, device=device)
    assert ((sampled == -1) == (step >= num_sampled[:, None])).all()
    p, q = (torch.softmax(x.double() / temperature, 0) for x in (target, drafted))
    holds_law(sampled, num_sampled, p)
    rate, stood = float(torch.minimum(p, q).sum()), int((num_sampled > 1).sum())
    assert p_value([stood, runs - stood], [rate * runs, (1 - rate) * runs]) > FALSE_ALARM


def test_certain_drafts_have_the_targets_law(device: torch.device, trials: Callable[[int], int]) -> None:
    target = normal(16, 3)
    args = requests(target, normal(16, 4), 2, 1.0, trials(6_000), device)
    args["draft_logits"] = None
    sampled, num_sampled = rejection_sample(**args)
    holds_law(sampled, num_sampled, torch.softmax(target.double(), 0))


@pytest.mark.parametrize("k", [1, 3])
def test_greedy_gives_the_argmax(k: int, device: torch.device) -> None:
    target = normal(500, 5)
    args = requests(target, normal(500, 6), k, 0.0, 40, device)
    ids = args["draft_sampled"].view(40, k + 1)
    ids[::2, 1] = int(target.argmax())
    sampled, num_sampled = rejection_sample(**args)
    step = torch.arange(k + 1, device=device)
    assert (sampled[step < num_sampled[:, None]] == int(target.argmax())).all()
    assert (num_sampled[::2] >= 2).all() and (num_sampled[1::2] == 1).all()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_of_nan_stay_in_range(temperature: float, device: torch.device) -> None:
    args = requests(torch.full((9000,), float("nan")), normal(9000, 7), 1, temperature, 3, device)
    sampled, num_sampled = rejection_sample(**args)
    assert (num_sampled == 1).all() and (sampled[:, 0] >= 0).all() and (sampled[:, 0] < 9000).all()


def test_placeholders_end_a_window(device: torch.device, trials: Callable[[int], int]) -> None:
    """Nothing at or behind one stands; what follows has the target's law, which a residual would not give."""
    target = normal(16, 8)
    args = requests(target, target, 3, 1.0, trials(6_000), device)
    args["draft_sampled"].view(-1, 4)[:, 2] = -1
    sampled, num_sampled = rejection_sample(**args)
    assert (num_sampled == 2).all()
    holds_law(sampled, num_sampled, torch.softmax(target.double(), 0))
    args["temperature"].zero_()
    args["draft_sampled"].view(-1, 4)[:, 1] = int(target.argmax())
    sampled, num_sampled = rejection_sample(**args)
    assert (num_sampled == 2).all() and (sampled[:, :2] == int(target.argmax())).all()
    args["draft_sampled"].view(-1, 4)[:, 1:] = -1
    assert (rejection_sample(**args)[1] == 1).all()


@pytest.mark.parametrize("certain", [False, True])
def test_requests_in_chunks_and_slots_give_the_same(certain: bool, device: torch.device) -> None:
    """Ragged windows, mixed temperatures, wider rows, slots in another order; through the references too."""
    k, vocab, count = 3, 257, 5
    args = requests(normal(vocab, 9, 2.0), normal(vocab, 10, 2.0), k, 0.6, count, device)
    rows = torch.tensor([r * 4 + i for r, n in enumerate((4, 2, 1, 4, 3)) for i in range(n)], device=device)
    wide = torch.full((len(rows), vocab + 3), float("nan"), device=device)
    wide[:, :vocab] = args["target_logits"][rows]
    args["target_logits"] = wide[:, :vocab]
    for name in ("draft_sampled", "pos", "expanded_idx_mapping", "expanded_local_pos"):
        args[name] = args[name][rows]
    args["cu_num_logits"] = torch.tensor([0, 4, 6, 7, 11, 14], dtype=torch.int32, device=device)
    slots = torch.tensor([6, 2, 0, 3, 5], device=device)
    held = {"draft_logits": torch.full((8, k, vocab), float("nan"), device=device)}
    held |= {
        "temperature": torch.zeros(8, device=device),
        "seed": torch.zeros(8, dtype=torch.int64, device=device),
    }
    args["temperature"][3] = 0.0
    for name, tensor in held.items():
        tensor[slots] = args[name]
        args[name] = tensor
    args["idx_mapping"] = slots.int()
    args["expanded_idx_mapping"] = slots.int().repeat_interleave(args["cu_num_logits"].diff())
    if certain:
        args["draft_logits"] = None
    whole = rejection_sample(**args)
    for r in range(count):
        a, b = args["cu_num_logits"][r : r + 2].tolist()
        part = dict(args, cu_num_logits=torch.tensor([0, b - a], dtype=torch.int32, device=device))
        part["idx_mapping"] = args["idx_mapping"][r : r + 1]
        for name in ("target_logits", "draft_sampled", "pos", "expanded_idx_mapping", "expanded_local_pos"):
            part[name] = args[name][a:b]
        for x, y in zip(rejection_sample(**part), whole, strict=True):
            assert torch.equal(x[0], y[r])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(operators, "runs_kernels", lambda tensor: False)
        for x, y in zip(rejection_sample(**args), whole, strict=True):
            assert torch.equal(x, y)


def gumbel(logits: torch.Tensor, count: int, device: torch.device, **more: Any) -> torch.Tensor:
    """`count` tokens of one row, at positions 0 .. count - 1."""
    args = {"apply_temperature": True, "is_drafting": False, **more}
    return gumbel_sample(
        logits.to(device).expand(count, -1),
        torch.zeros(count, dtype=torch.int32, device=device),
        torch.tensor([args.pop("temperature", 1.0)], device=device),
        torch.tensor([0xABCD], device=device),
        torch.arange(count, device=device),
        **args,
    )


def test_gumbel_sample(device: torch.device) -> None:
    """Its law; zero probabilities; one token only; greedy; a noise of its own for drafts; reproducible."""
    counts = torch.tensor([5.0, 0.0, 1.0, 2.0, 0.0, 8.0] + [1.0] * 31)
    tokens = gumbel(counts.log(), 8_000, device)
    assert tokens.dtype == torch.int64
    law = (counts.double() / counts.sum() * 8_000).numpy()
    assert p_value(np.bincount(tokens.tolist(), minlength=37), law) > FALSE_ALARM
    draft = gumbel(counts.log(), 8_000, device, is_drafting=True)
    assert p_value(np.bincount(draft.tolist(), minlength=37), law) > FALSE_ALARM
    share = float((law / 8_000) @ (law / 8_000))
    same = int((draft == tokens).sum())
    assert p_value([same, 8_000 - same], [share * 8_000, (1 - share) * 8_000]) > FALSE_ALARM
    assert torch.equal(draft, gumbel(counts.log(), 8_000, device, is_drafting=True))
    assert (gumbel(counts.log(), 50, device, temperature=0.0) == 5).all()
    assert torch.equal(
        gumbel(counts.log() / 2, 50, device, temperature=2.0, apply_temperature=False),
        gumbel(counts.log() / 2, 50, device, temperature=1.0),
    )
    single = torch.full((5000,), -torch.inf)
    single[4321] = 3.0
    assert (gumbel(single, 20, device) == 4321).all()
    padding = torch.tensor([-1, 0], dtype=torch.int32, device=device)
    heat, seed = torch.ones(1, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    pos = torch.zeros(2, dtype=torch.int64, device=device)
    rows = counts.log().to(device).expand(2, -1)
    assert int(gumbel_sample(rows, padding, heat, seed, pos, True, False)[0]) == 5


@pytest.mark.slow
def test_tokens_far_below_the_first_are_drawn_as_often_as_they_should(device: torch.device) -> None:
    """One of e^10 against 40 of 1 each: their noise must reach that far, for drafts too."""
    logits = torch.zeros(41)
    logits[7] = 10.0
    law = torch.softmax(logits.double(), 0)
    rate = 1 - float(law[7])
    for is_drafting in (False, True):
        tokens = gumbel(logits, 16_000, device, is_drafting=is_drafting)
        rare = int((tokens != 7).sum())
        assert p_value([rare, 16_000 - rare], [rate * 16_000, (1 - rate) * 16_000]) > FALSE_ALARM


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("column", ["one", "each"])
def test_gumbel_sample_keeps_the_logits_as_they_came(
    dtype: torch.dtype, column: str, device: torch.device
) -> None:
    """Bit for bit, before the temperature, in a wider cache; nothing for padding, nothing elsewhere."""
    logits = normal(5 * 33, 13).view(5, 33).to(device, dtype)
    slots = torch.tensor([2, -1, 0, 3, -1], device=device)
    columns = torch.tensor([1, 0, 2, 0, 1] if column == "each" else 1, device=device)
    temperature = torch.tensor([0.3, 1.0, 0.0, 1.7], device=device)
    seed, pos = torch.arange(4, device=device), torch.arange(5, device=device)
    arguments = logits, slots, temperature, seed, pos, True, True
    cache = torch.full((4, 3, 35), 7.0, dtype=dtype, device=device)
    tokens = gumbel_sample(*arguments, logits_cache=cache, logits_cache_col=columns)
    assert torch.equal(tokens, gumbel_sample(*arguments))
    expected = torch.full_like(cache, 7.0)
    for row, slot in enumerate(slots.tolist()):
        if slot >= 0:
            expected[slot, columns.expand(5)[row], :33] = logits[row]
    assert torch.equal(cache, expected)
    gumbel_sample(logits, slots.clamp(max=-1), *arguments[2:], logits_cache=cache, logits_cache_col=columns)
    assert torch.equal(cache, expected)
    source = logits + 1
    gumbel_sample(*arguments, logits_cache=cache, logits_cache_col=columns, logits_cache_source=source)
    assert torch.equal(cache[2, 1, :33], source[0])


@pytest.mark.slow
def test_tokens_of_many_rounds_have_the_targets_law(device: torch.device) -> None:
    """Windows that begin where the last one ended, over kept draft logits: positions are visited again after
    a rejection, and their noise must not know why."""
    trials, length, k = 3_000, 5, 2
    target, draft = (torch.tensor(p, device=device).log() for p in ([0.3, 0.7], [0.7, 0.3]))
    heat, seed = torch.ones(trials, device=device), torch.arange(trials, device=device)
    cache = torch.full((trials, k, 2), torch.nan, device=device)
    tokens = torch.full((trials, length + k), -1, device=device)
    lengths, accepted = torch.zeros(trials, dtype=torch.int64, device=device), 0
    while (active := (lengths < length).nonzero()[:, 0]).numel():
        count, starts = len(active), lengths[active]
        drafted = torch.zeros(count, k + 1, dtype=torch.int64, device=device)
        for step in range(k):
            drafted[:, step + 1] = gumbel_sample(
                draft.expand(count, 2),
                active,
                heat,
                seed,
                starts + step,
                apply_temperature=True,
                is_drafting=True,
                logits_cache=cache,
                logits_cache_col=torch.tensor(step, device=device),
            )
        sampled, num_sampled = rejection_sample(
            target.expand(count * (k + 1), 2),
            cache,
            drafted.flatten(),
            torch.arange(count + 1, dtype=torch.int32, device=device) * (k + 1),
            (starts[:, None] + torch.arange(k + 1, device=device)).flatten(),
            active,
            active.repeat_interleave(k + 1),
            torch.arange(k + 1, device=device).repeat(count),
            heat,
            seed,
            k,
        )
        for place in range(k + 1):
            there = num_sampled > place
            tokens[active[there], starts[there] + place] = sampled[there, place]
        lengths[active] += num_sampled
        accepted += int((num_sampled - 1).sum())
    assert accepted > trials
    holds_law(tokens[:, :length], lengths, target.double().exp().cpu())
    pairs = (tokens[:, 1:length] * 2 + tokens[:, : length - 1]).cpu()
    law = torch.outer(target.double().exp(), target.double().exp()).flatten().cpu()
    for place in range(length - 1):
        counts = np.bincount(pairs[:, place], minlength=4)
        assert p_value(counts, (law * trials).numpy()) > FALSE_ALARM, place


def test_what_vllms_adapter_does_not_do_is_refused(device: torch.device) -> None:
    args = requests(normal(16, 1), normal(16, 2), 1, 1.0, 2, device)
    rejection_sample(**args, fly_window_size=0, watermark_key=None, use_block_verification=False)
    for name, asked in (
        ("use_block_verification", True),
        ("synthetic_conditional_rates", torch.ones(1)),
        ("watermark_key", 0),
        ("fly_window_size", 2),
    ):
        with pytest.raises(ValueError, match=f"{name} given, and windows are judged token by token"):
            rejection_sample(**args, **{name: asked})
    column, cache = torch.tensor(0), torch.zeros(1, 1, 16, device=device)
    for more, said in (
        ({"logits_cache": cache}, "pass both or neither"),
        ({"logits_cache_source": cache[0]}, "pass both or neither"),
        ({"logits_cache": cache[..., :15], "logits_cache_col": column}, "narrower, 15, than the logits, 16"),
        ({"logits_cache": cache.half(), "logits_cache_col": column}, "expected torch.float16, as the cache"),
    ):
        with pytest.raises(ValueError, match=said):
            gumbel(normal(16, 1), 2, device, **more)


def probabilities(*shape: int, seed: int, device: torch.device) -> torch.Tensor:
    x = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return (x / x.sum(-1, keepdim=True)).to(device)


@pytest.mark.parametrize("batch, vocab, k", [(1, 111, 1), (99, 111, 3), (3, 5000, 2)])
@pytest.mark.parametrize("onehot", [False, True])
def test_chain_speculative_sampling(
    batch: int, vocab: int, k: int, onehot: bool, device: torch.device
) -> None:
    draft = probabilities(batch, k, vocab, seed=k, device=device)
    ids = torch.randint(vocab, (batch, k), generator=torch.Generator().manual_seed(1)).to(device)
    if onehot:
        said = torch.randint(vocab, (batch, k + 1), generator=torch.Generator().manual_seed(2)).to(device)
        said[:, :k] = ids
        target = torch.zeros(batch, k + 1, vocab, device=device).scatter_(2, said[..., None], 1)
    else:
        target = probabilities(batch, k + 1, vocab, seed=7, device=device)
    generator = torch.Generator(device).manual_seed(5)
    before = None
    for _ in range(2):
        accepted = torch.full((batch,), 10, dtype=torch.int32, device=device)
        emitted = torch.full((batch,), 20, dtype=torch.int32, device=device)
        out, a, e = chain_speculative_sampling(draft, ids, target, accepted, emitted, generator=generator)
        assert a is accepted and e is emitted and out.dtype == torch.int32 and out.shape == (batch, k + 1)
        a, e = a - 10, e - 20
        assert (a >= e).all() and (e >= 0).all() and (a <= k).all()
        assert torch.equal(e + 1, (out != -1).sum(1))
        if onehot:
            assert torch.equal(out.long(), said)
            continue
        assert (out[out >= 0] < vocab).all()
        step = torch.arange(k + 1, device=device)
        assert torch.equal(out == -1, step > e[:, None])
        assert (out[:, :k] == ids)[step[:k] < e[:, None]].all()
        assert before is None or batch == 1 or not torch.equal(before, out)
        before = out


def test_flashinfers_example(device: torch.device) -> None:
    draft = torch.tensor([[[0.1, 0.2, 0.3, 0.4], [0.2, 0.3, 0.4, 0.1]]], device=device)
    ids = torch.tensor([[2, 1]], dtype=torch.int32, device=device)
    target = torch.tensor([[[0.0, 0.1, 0.6, 0.3], [1.0, 0.0, 0.0, 0.0], [0.7, 0.1, 0.1, 0.1]]], device=device)
    out, accepted, emitted = chain_speculative_sampling(draft, ids, target, seed=3, offset=0)
    assert out.tolist() == [[2, 0, -1]] and accepted.tolist() == emitted.tolist() == [1]


def test_chains_have_the_targets_law(device: torch.device) -> None:
    """One seed for all rows: each has its own noise. What would be accepted alone, as often as it should."""
    runs = 6_000
    p, q = (torch.softmax(normal(16, seed), 0) for seed in (11, 12))
    ids = torch.multinomial(q, runs * 2, replacement=True, generator=torch.Generator().manual_seed(0))
    out, accepted, emitted = chain_speculative_sampling(
        q.to(device).expand(runs, 2, 16),
        ids.view(runs, 2).to(device),
        p.to(device).expand(runs, 3, 16),
        seed=1,
        offset=0,
    )
    holds_law(out.long(), emitted + 1, p.double())
    rate, stood = float(torch.minimum(p, q).sum()), int(accepted.sum())
    assert p_value([stood, 2 * runs - stood], [rate * 2 * runs, (1 - rate) * 2 * runs]) > FALSE_ALARM


def test_a_seed_per_row_makes_rows_independent_of_their_place(device: torch.device) -> None:
    draft, target = (probabilities(4, n, 111, seed=n, device=device) for n in (3, 4))
    ids = torch.randint(111, (4, 3), generator=torch.Generator().manual_seed(4)).to(device)
    seeds = torch.tensor([5, 6, 7, 8], device=device)
    offsets = torch.tensor([0, 10, 20, 30], device=device)
    whole = chain_speculative_sampling(draft, ids, target, seed=seeds, offset=offsets)
    order = torch.tensor([2, 0, 3, 1], device=device)
    moved = chain_speculative_sampling(
        draft[order], ids[order], target[order], seed=seeds[order], offset=offsets[order]
    )
    for x, y in zip(whole, moved, strict=True):
        assert torch.equal(x[order], y)
