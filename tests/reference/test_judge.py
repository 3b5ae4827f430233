"""Sampling and judging: C++ against numpy bit for bit, the ends of every range, and what cannot be used."""

from typing import Any

import numpy as np
import pytest
from chi_square import FALSE_ALARM, p_value
from logit_rows import SHAPES, row_of

from pearl_rt import _testing
from pearl_rt.reference import noise
from pearl_rt.reference.judge import judge, sample
from pearl_rt.reference.noise import Purpose
from pearl_rt.reference.processors import scaled, total
from pearl_rt.reference.round import Verdict
from pearl_rt.strategy.program import JUDGES as KINDS

VOCABS = (1, 2, 7, 16, 255, 256, 257, 1000, 4099)
TEMPERATURES = (0.0, 1e-5, 0.3, 1.0, 7.0, 1e5)


def softmax(row: np.ndarray, temperature: float) -> np.ndarray:
    """In fp64."""
    weights = np.exp((row.astype(np.float64) - row.max()) / temperature)
    return weights / weights.sum()


def native(*args: Any) -> Verdict:
    """_testing.judge: (target_logits, draft_logits, draft_token_ids, position, temperature, seed, kind)."""
    target, draft, ids, *rest = args
    return Verdict(*_testing.judge(target, draft, np.array(ids, dtype=np.int32), *rest))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_sample_matches_numpy(shape: str, temperature: float) -> None:
    rng = np.random.default_rng([SHAPES.index(shape), TEMPERATURES.index(temperature)])
    for vocab in VOCABS:
        row = row_of(shape, vocab, rng)
        for position in (0, 5, 2**40):
            for purpose in (Purpose.DRAFT, Purpose.TARGET):
                want = sample(row, temperature, 77, position, purpose)
                got = _testing.sample(row, temperature, 77, position, purpose)
                assert got == want, (vocab, position, purpose)
                assert 0 <= got < vocab and row[got] > -np.inf
                assert temperature > 0 or got == int(np.argmax(row))


@pytest.mark.parametrize("temperature", [1e-5, 1.0, 1e5])
@pytest.mark.parametrize("shape", SHAPES)
def test_sums_match_numpy_to_the_bit(shape: str, temperature: float) -> None:
    rng = np.random.default_rng(SHAPES.index(shape))
    for vocab in VOCABS:
        row = row_of(shape, vocab, rng)
        inverse = np.float32(1) / np.float32(temperature)
        want = total(noise.exp(scaled(row, inverse)))
        assert _testing.exp_sum(row, temperature) == want
        with np.errstate(over="ignore"):
            exact = np.exp((row.astype(np.float64) - np.float64(row.max())) * np.float64(inverse)).sum()
        assert want == pytest.approx(exact, rel=2e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("draft", ["equal", "near", "half", "other", "opposite", "flat"])
def test_judge_matches_numpy(kind: str, draft: str) -> None:
    """Windows of 0 to 8, with and without a bonus row, all shapes of logits and temperatures."""
    rng = np.random.default_rng([KINDS.index(kind), len(draft), ord(draft[0])])
    lengths: set[int] = set()
    for trial in range(150):
        vocab = int(rng.choice(VOCABS[:-1]))
        num_draft, bonus = int(rng.integers(0, 9)), bool(rng.integers(2))
        bonus = bonus or num_draft == 0
        shape, temperature = str(rng.choice(SHAPES)), float(rng.choice(TEMPERATURES))
        target = np.stack([row_of(shape, vocab, rng) for _ in range(num_draft + bonus)])
        drafted = target[:num_draft].copy()
        if draft == "near":
            drafted = np.nextafter(drafted, np.float32(0))
        elif draft == "half":
            drafted += rng.normal(0, 1, drafted.shape).astype(np.float32)
        elif draft == "other":
            drafted = (
                np.stack([row_of("normal", vocab, rng) for _ in range(num_draft)]) if num_draft else drafted
            )
        elif draft == "opposite":
            drafted = np.where(np.isfinite(drafted), -drafted, 0).astype(np.float32)
        elif draft == "flat":
            drafted = np.zeros_like(drafted)
        position, seed = int(rng.integers(0, 2**33)), int(rng.integers(0, 2**63))
        purpose = Purpose.DRAFT if kind == "rejection" else Purpose.TARGET
        ids = [
            _testing.sample(row, temperature, seed, position + i, purpose) for i, row in enumerate(drafted)
        ]
        args = (target, drafted, ids, position, temperature, seed, kind)
        got = native(*args)
        assert got == judge(*args), (trial, vocab, shape, temperature)
        lengths.add(got.accept_len)
        assert got.bad_row == -1 and 0 <= got.accept_len <= num_draft
        if got.accept_len < num_draft or bonus:
            assert 0 <= got.next_token < vocab and target[got.accept_len][got.next_token] > -np.inf
        else:
            assert got.next_token == -1
        if draft == "equal":
            assert got.accept_len == num_draft
    assert len(lengths) > 3


@pytest.mark.parametrize("kind", KINDS)
def test_certain_drafts_match_numpy(kind: str) -> None:
    """No rows of a draft: all of q is on its token, likely and unlikely ones."""
    rng = np.random.default_rng(KINDS.index(kind))
    stood = 0
    for trial in range(300):
        vocab, num_draft = int(rng.choice(VOCABS[:-1])), int(rng.integers(1, 9))
        shape, temperature = str(rng.choice(SHAPES)), float(rng.choice(TEMPERATURES))
        target = np.stack([row_of(shape, vocab, rng) for _ in range(num_draft + 1)])
        ids = [int(row.argmax() if rng.random() < 0.7 else rng.integers(vocab)) for row in target[:-1]]
        asked = (target, None, ids, trial, temperature, trial, kind)
        want = judge(target, [None] * num_draft, *asked[2:])
        assert native(*asked, True) == want, (trial, vocab, shape, temperature)
        stood += want.accept_len
    assert stood > 300


def test_a_certain_draft_stands_as_often_as_the_target_says_it() -> None:
    """And what takes its place is the target's, without it: together the target's law."""
    row = np.log(np.array([0.5, 0.3, 0.15, 0.05], dtype=np.float32))
    for candidate in range(4):
        counts = np.zeros(4)
        for seed in range(20_000):
            verdict = native(row[None], None, [candidate], 3, 1.0, seed, "rejection", True)
            counts[candidate if verdict.accept_len else verdict.next_token] += 1
        assert p_value(counts, np.exp(row) * counts.sum()) > FALSE_ALARM


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_coupled_says_what_the_target_alone_says(temperature: float) -> None:
    rng = np.random.default_rng(4)
    for seed in range(200):
        target = rng.normal(0, 2, (5, 50)).astype(np.float32)
        ids = rng.integers(0, 50, 4)
        own = [
            _testing.sample(row, temperature, seed, 30 + i, Purpose.TARGET) for i, row in enumerate(target)
        ]
        ids[: seed % 5] = own[: seed % 5]
        got = native(target, None, ids, 30, temperature, seed, "coupled")
        assert got.next_token == own[got.accept_len]
        assert list(ids[: got.accept_len]) == own[: got.accept_len] and got.accept_len >= seed % 5


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf], ids=["nan", "-nan", "inf"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("vocab", [3, 16, 300])
def test_rows_that_cannot_be_used(bad: float, temperature: float, vocab: int) -> None:
    row = np.zeros(vocab, dtype=np.float32)
    for place in {0, vocab // 2, vocab - 1}:
        broken = row.copy()
        broken[place] = bad
        assert (
            _testing.sample(broken, temperature, 1, 2, 0)
            == sample(broken, temperature, 1, 2, Purpose.DRAFT)
            == -1
        )
        good = np.tile(row, (4, 1))
        target = good.copy()
        target[2] = broken
        ids = [_testing.sample(row, temperature, 1, 10 + i, Purpose.TARGET) for i in range(4)]
        for kind in KINDS:
            args = (target, good, ids, 10, temperature, 1, kind)
            assert native(*args) == judge(*args)
            if kind == "coupled" or temperature == 0:
                assert native(*args).bad_row == 2
    nothing = np.full(vocab, -np.inf, dtype=np.float32)
    assert (
        _testing.sample(nothing, temperature, 1, 2, 0)
        == sample(nothing, temperature, 1, 2, Purpose.DRAFT)
        == -1
    )


def test_a_bad_draft_row_or_candidate_is_named() -> None:
    target = np.zeros((3, 8), dtype=np.float32)
    drafted = target.copy()
    drafted[1, 3] = np.nan
    for args in (
        (target, drafted, [0, 0, 0], 5, 1.0, 1, "rejection"),
        (target, target, [0, -1, 0], 5, 1.0, 1, "rejection"),
        (target, target, [0, 8, 0], 5, 0.0, 1, "coupled"),
    ):
        assert native(*args) == judge(*args) == Verdict(1, -1, 1)


def test_rows_behind_a_rejection_are_not_read() -> None:
    target = np.zeros((3, 8), dtype=np.float32)
    target[0, 5] = 50
    target[1:] = np.nan
    for temperature in (0.0, 1.0):
        for kind in KINDS:
            args = (target, np.zeros((3, 8), np.float32), [2, 2, 2], 5, temperature, 1, kind)
            assert native(*args) == judge(*args) == Verdict(0, 5)


@pytest.mark.parametrize("temperature", [np.nan, -1.0, -np.inf, np.inf, 1e-45, 1e-39, 3e38])
def test_strange_temperatures_give_valid_tokens(temperature: float) -> None:
    """They are refused higher up; here they must not do harm."""
    rng = np.random.default_rng(0)
    for shape in SHAPES:
        rows = np.stack([row_of(shape, 40, rng) for _ in range(3)])
        for seed in range(20):
            token = _testing.sample(rows[0], temperature, seed, 1, 0)
            assert token == sample(rows[0], temperature, seed, 1, Purpose.DRAFT)
            assert 0 <= token < 40 and rows[0][token] > -np.inf
            for kind in KINDS:
                args = (rows, rows[::-1][:2].copy(), [token, 3], 1, temperature, seed, kind)
                got = native(*args)
                assert got == judge(*args)
                assert 0 <= got.next_token < 40 and rows[got.accept_len][got.next_token] > -np.inf


def test_the_only_finite_logit_wins_even_with_noise_of_minus_infinity() -> None:
    """Seed 0, position 25180, bonus, index 326 is one of the 1 in 33 million words whose uniform is 1."""
    row = np.full(1024, -np.inf, dtype=np.float32)
    row[326] = 1.0
    assert noise.gumbel(noise.uniform(noise.words(0, 25180, Purpose.BONUS, 327)))[326] == -np.inf
    assert _testing.sample(row, 1.0, 0, 25180, Purpose.BONUS) == 326
    assert sample(row, 1.0, 0, 25180, Purpose.BONUS) == 326


def test_temperature_at_its_ends() -> None:
    """1e-5 is greedy wherever logits differ by 0.001; 1e5 is uniform."""
    row = np.random.default_rng(1).permutation(1000).astype(np.float32) * 0.001
    assert {_testing.sample(row, 1e-5, s, 3, 0) for s in range(200)} == {int(np.argmax(row))}
    counts = np.bincount([_testing.sample(row[:20], 1e5, s, 3, 0) for s in range(20_000)], minlength=20)
    assert p_value(counts, np.full(20, 1000)) > FALSE_ALARM


def test_nothing_left_of_the_residual_still_gives_a_token() -> None:
    """Equal rows, and a candidate that the target cannot say: max(p - q, 0) is 0 everywhere."""
    row = np.array([[1.0, -np.inf, 0.5, 0.0]], dtype=np.float32)
    seen = set()
    for seed in range(300):
        args = (row, row, [1], 9, 1.0, seed, "rejection")
        got = native(*args)
        assert got == judge(*args) and got.accept_len == 0
        seen.add(got.next_token)
    assert seen == {0, 2, 3}


def test_a_candidate_that_the_draft_cannot_say() -> None:
    """q = 0: accepted if the target can say it, and never otherwise."""
    draft = np.array([[0.0, -np.inf, 0.0, -np.inf]], dtype=np.float32)
    target = np.array([[0.0, 0.0, 0.0, -np.inf]], dtype=np.float32)
    for seed in range(50):
        assert native(target, draft, [1], 9, 1.0, seed, "rejection") == Verdict(1, -1)
        assert native(target, draft, [3], 9, 1.0, seed, "rejection").accept_len == 0


@pytest.mark.parametrize("draft_vocab", [5, 12, 300])
def test_draft_vocabularies_of_another_size(draft_vocab: int) -> None:
    """Padding of the larger draft is never read; ids that a smaller draft lacks come from the residual."""
    rng = np.random.default_rng(draft_vocab)
    target = rng.normal(0, 1, (1, 12)).astype(np.float32)
    draft = rng.normal(0, 1, (1, draft_vocab)).astype(np.float32)
    draft[0, 12:] = np.nan
    both = min(12, draft_vocab)
    counts = np.zeros(12)
    for seed in range(20_000):
        token = _testing.sample(draft[0, :both], 1.0, seed, 4, Purpose.DRAFT)
        args = (target, draft, [token], 4, 1.0, seed, "rejection")
        got = native(*args)
        assert seed > 300 or got == judge(*args)
        counts[token if got.accept_len else got.next_token] += 1
    assert p_value(counts, softmax(target[0], 1.0) * 20_000) > FALSE_ALARM


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sample_has_the_law_of_softmax(temperature: float) -> None:
    row = np.random.default_rng(6).normal(0, 1.5, 40).astype(np.float32)
    for purpose in Purpose:
        counts = np.bincount(
            [_testing.sample(row, temperature, s, 8, purpose) for s in range(30_000)], minlength=40
        )
        assert p_value(counts, softmax(row, temperature) * 30_000) > FALSE_ALARM


def test_rejection_accepts_as_often_as_it_should() -> None:
    """The rate of acceptance is the sum of min(p, q): nothing is rejected that need not be."""
    rng = np.random.default_rng(8)
    target, draft = (rng.normal(0, 1.5, (1, 30)).astype(np.float32) for _ in range(2))
    runs = 30_000
    accepted = 0
    for seed in range(runs):
        token = _testing.sample(draft[0], 1.0, seed, 4, Purpose.DRAFT)
        accepted += native(target, draft, [token], 4, 1.0, seed, "rejection").accept_len
    rate = np.minimum(softmax(target[0], 1.0), softmax(draft[0], 1.0)).sum()
    assert p_value([accepted, runs - accepted], [rate * runs, (1 - rate) * runs]) > FALSE_ALARM


def test_wrong_arguments_are_refused() -> None:
    rows = np.zeros((2, 4), dtype=np.float32)
    with pytest.raises(ValueError, match="judge is 'other'"):
        native(rows, rows, [0, 0], 1, 1.0, 1, "other")
    with pytest.raises(ValueError, match="num_draft = 3"):
        native(rows, rows, [0, 0, 0], 1, 1.0, 1, "rejection")
    with pytest.raises(ValueError, match="needs draft_logits"):
        native(rows, None, [0, 0], 1, 1.0, 1, "rejection")
    with pytest.raises(ValueError, match="draft_vocab"):
        native(rows, rows[:1], [0, 0], 1, 1.0, 1, "rejection")
    with pytest.raises(ValueError, match="vocab >= 1"):
        _testing.sample(rows[0, :0], 1.0, 1, 1, 0)
