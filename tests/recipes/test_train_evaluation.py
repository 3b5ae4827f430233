"""Divergences, samples, losses and acceptance."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from train_models import MACHINE, small_model

from recipes.train.data.tokenised_corpus import TokenisedCorpus
from recipes.train.divergence import (
    DIVERGENCES,
    forward_kl,
    jensen_shannon,
    negative_log_acceptance,
    reverse_kl,
    row_acceptance,
    total_variation,
)
from recipes.train.evaluate import acceptance, text_loss
from recipes.train.model.sampler import sample_rows
from recipes.train.model.session import cross_entropy


class TestDivergence:
    @pytest.mark.parametrize("name", DIVERGENCES)
    def test_zero_only_where_equal(self, name: str) -> None:
        torch.manual_seed(0)
        p, q = torch.randn(2, 50, 11)
        assert DIVERGENCES[name](p, p + 3.0).abs().max() < 1e-6
        assert DIVERGENCES[name](p, q).min() > 1e-3

    @pytest.mark.parametrize("name", DIVERGENCES)
    def test_descending_it_brings_the_draft_closer(self, name: str) -> None:
        torch.manual_seed(0)
        p, q = torch.randn(2, 50, 11)
        q.requires_grad_()
        before = total_variation(p, q).mean().item()
        for _ in range(100):
            (gradient,) = torch.autograd.grad(DIVERGENCES[name](p, q).sum(), q)
            q = (q - gradient).detach().requires_grad_()
        assert total_variation(p, q).mean().item() < 0.5 * before

    def test_against_scipy_free_definitions(self) -> None:
        p, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.5, 0.25]])
        assert forward_kl(p.log(), q.log()).item() == pytest.approx(0.25 * math.log(2), abs=1e-6)
        assert reverse_kl(p.log(), q.log()).item() == pytest.approx(0.25 * math.log(2), abs=1e-6)
        assert total_variation(p.log(), q.log()).item() == pytest.approx(0.25)
        m = 0.375
        half = 0.5 * math.log(0.5 / m) + 0.25 * math.log(0.25 / m)
        assert jensen_shannon(p.log(), q.log()).item() == pytest.approx(half, abs=1e-6)
        assert row_acceptance(p.log(), q.log()).item() == pytest.approx(0.75)
        assert negative_log_acceptance(p.log(), q.log()).item() == pytest.approx(-math.log(0.75), abs=1e-6)

    @pytest.mark.parametrize("name", DIVERGENCES)
    def test_gradients_are_of_the_draft_only(self, name: str) -> None:
        torch.manual_seed(0)
        p, q = torch.randn(2, 5, 11, requires_grad=True).unbind()
        p.retain_grad(), q.retain_grad()
        DIVERGENCES[name](p, q).sum().backward()
        assert p.grad is None and q.grad is not None and q.grad.abs().max() > 1e-3
        assert not row_acceptance(p, q).requires_grad


def plain_nla(target: np.ndarray, draft: np.ndarray) -> float:
    """-log sum min(p, q) of a row, in fp64."""
    p, q = (np.exp(row - row.max()) for row in (target.astype(np.float64), draft.astype(np.float64)))
    p, q = p / p.sum(), q / q.sum()
    return -math.log(sum(min(a, b) for a, b in zip(p, q, strict=True)))


class TestNegativeLogAcceptance:
    @pytest.mark.parametrize("scale", [0.1, 1.0, 8.0])
    def test_value_and_gradient_are_those_of_the_definition(self, scale: float) -> None:
        rng = np.random.default_rng(0)
        for _ in range(20):
            self.check(*(scale * rng.standard_normal((2, 13))).astype(np.float32))

    def test_rows_that_share_almost_nothing(self) -> None:
        """sum min(p, q) is e^-100 or e^-250: no number of fp32 in the second case."""
        for size, draft in ((100, [0, 50, 100, 99]), (250, [0, 250, 125, 250])):
            self.check(np.array([size, 0, 0, 1], np.float32), np.array(draft, np.float32))

    @staticmethod
    def check(target: np.ndarray, draft: np.ndarray) -> None:
        q = torch.tensor(draft, requires_grad=True)
        value = negative_log_acceptance(torch.tensor(target)[None], q[None])
        assert value.item() == pytest.approx(plain_nla(target, draft), rel=1e-5, abs=1e-6)
        value.sum().backward()
        draft, step = draft.astype(np.float64), 1e-5
        want = [
            (plain_nla(target, draft + step * one) - plain_nla(target, draft - step * one)) / (2 * step)
            for one in np.eye(len(draft))
        ]
        np.testing.assert_allclose(q.grad, want, atol=2e-4)

    def test_equal_rows_have_neither_loss_nor_gradient(self) -> None:
        p = torch.randn(6, 1000, generator=torch.Generator().manual_seed(0))
        q = p.clone().requires_grad_()
        value = negative_log_acceptance(p, q)
        value.sum().backward()
        assert value.abs().max() < 1e-6 and q.grad is not None and q.grad.abs().max() < 1e-6

    def test_disjoint_rows_are_finite(self) -> None:
        none = -math.inf
        for far in (1e30, math.inf):
            p = torch.tensor([[0.0, none, none], [0.0, 0.0, -far]])
            q = torch.tensor([[none, 0.0, 0.0], [-far, -far, 0.0]], requires_grad=True)
            value = negative_log_acceptance(p, q)
            value.sum().backward()
            assert value.min() > 1000 and value.isfinite().all()
            assert q.grad is not None and q.grad.isfinite().all()


def test_greedy_samples_are_the_likeliest_tokens() -> None:
    model = small_model()
    prompts = torch.randint(300, (4, 5))
    rows = sample_rows(model, MACHINE, prompts, 12, 0.0, MACHINE.generator(0))
    assert torch.equal(rows[:, :5], prompts)
    with torch.no_grad(), MACHINE.autocast():
        logits = model(rows[:, :-1])[:, 4:].float()
    chosen = logits.gather(-1, rows[:, 5:, None])[..., 0]
    assert (logits.max(-1).values - chosen).max() < 0.05  # bf16 logits, with and without a cache


def test_samples_follow_the_model() -> None:
    """4,000 draws of one token against the exact law: chi-square over 10 cells, false alarm 1e-4."""
    model = small_model()
    model.model.norm.weight.data.mul_(4.0)  # far from uniform, so that the temperature shows
    prompts = torch.full((4000, 1), 7)
    drawn = sample_rows(model, MACHINE, prompts, 1, 0.7, MACHINE.generator(5))[:, 1]
    with torch.no_grad(), MACHINE.autocast():
        p = (model(prompts[:1])[0, -1].float() / 0.7).softmax(-1)
    cells = p.argsort(descending=True).argsort().clamp(max=9)  # nine likeliest tokens, and the rest
    expected = torch.zeros(10).index_add(0, cells, p) * 4000
    assert expected.min() > 10
    counts = torch.bincount(cells[drawn], minlength=10)
    assert ((counts - expected) ** 2 / expected).sum() < 33.7  # chi-square, 9 degrees of freedom


class TestEvaluation:
    def test_loss_counts_every_token_of_every_file_once(self, tokenised: TokenisedCorpus) -> None:
        model = small_model()
        losses = [
            text_loss(model, MACHINE, tokenised.corpus.held_out, tokenised.held_out, 0, window)
            for window in (64, 256)
        ]
        for loss in losses:
            assert loss.tokens == sum(map(len, tokenised.held_out))
            assert loss.bytes == sum(len(d.text.encode()) for d in tokenised.corpus.held_out)
            bits = loss.nats_per_token * loss.tokens / math.log(2)
            assert loss.bits_per_byte == pytest.approx(bits / loss.bytes)

    def test_loss_of_one_window_is_cross_entropy(self, tokenised: TokenisedCorpus) -> None:
        model, array = small_model(), tokenised.held_out[0][:100]
        loss = text_loss(model, MACHINE, tokenised.corpus.held_out[:1], [array], 0, 128)
        rows = torch.from_numpy(np.concatenate(([0], array.astype(np.int64))))[None]
        with torch.no_grad(), MACHINE.autocast():
            assert loss.nats_per_token == pytest.approx(cross_entropy(model, rows).item(), rel=1e-4)

    def test_a_model_accepts_itself(self) -> None:
        model, rows = small_model(), torch.randint(300, (3, 40))
        figures = acceptance(model, model, MACHINE, rows, 8)
        assert figures.positions == 96
        assert figures.greedy == figures.coupled["1.0"] == 1.0
        assert figures.rejection["0.8"] == pytest.approx(1.0, abs=1e-5)

    def test_coupled_accepts_less_than_rejection(self) -> None:
        figures = acceptance(small_model(), small_model(seed=1), MACHINE, torch.randint(300, (16, 60)), 0)
        assert 0.0 < figures.coupled["1.0"] < figures.rejection["1.0"] < 1.0
