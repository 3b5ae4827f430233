"""Pairs planted on a device, and the views of packed weights by which they are changed in place."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from bench_fakes import CPU, TINY, TINY_SHAPES, packed

from bench.model_pairs import planted as pairs
from bench.model_pairs import planting
from bench.model_pairs.shapes import SHAPES
from bench.model_pairs.weight_views import hugging_face_model, torch_model, weight_views
from pearl_rt.checkpoint.shapes import tensor_shapes
from pearl_rt.model.llama import LlamaWeights

TINY_PAIR = {"8b": TINY_SHAPES["target"], "135m": TINY_SHAPES["draft"]}


# weights


@pytest.mark.parametrize("tied", [False, True])
def test_views_are_the_packed_memory_under_hugging_faces_names(tied: bool) -> None:
    config = replace(TINY, tie_word_embeddings=tied)
    tensors, weights = packed(TINY)
    if tied:
        del tensors["lm_head.weight"]
        weights = LlamaWeights.pack(config, tensors, dtype=torch.float32, device=CPU)
    views = weight_views(config, weights)
    assert views.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert views[name].is_contiguous() and torch.equal(views[name], tensor.float()), name
    views["model.layers.1.self_attn.v_proj.weight"].fill_(7.0)
    rows = weights.layers[1].qkv_proj
    assert (rows[-16:] == 7.0).all() and not (rows[:-16] == 7.0).any()


def test_models_over_views_are_the_same_model() -> None:
    """Plain torch's and transformers', over one memory; a weight that changes there changes both."""
    pytest.importorskip("transformers")
    views = weight_views(TINY, packed(TINY)[1])
    ids = torch.tensor([[5, 17, 3, 80]])
    ours, theirs = torch_model(TINY, views), hugging_face_model(TINY, views)
    with torch.no_grad():
        before = ours(ids)
        torch.testing.assert_close(theirs(ids).logits, before, rtol=1e-4, atol=1e-4)
        views["model.layers.0.mlp.down_proj.weight"].mul_(3.0)
        after = ours(ids)
        torch.testing.assert_close(theirs(ids).logits, after, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(before, after)


# planting


def test_a_name_has_the_same_numbers_whatever_was_made_before() -> None:
    source, other = planting.DeviceSource(1, CPU), planting.DeviceSource(2, CPU)
    first = source.cut("a", (64, 64), 0.5)
    source.cut("b", (3, 5), 1.0)
    assert first.dtype == torch.bfloat16 and torch.equal(first, source.cut("a", (64, 64), 0.5))
    assert not torch.equal(first, source.cut("b", (64, 64), 0.5))
    assert not torch.equal(first, other.cut("a", (64, 64), 0.5))
    assert first.float().std() == pytest.approx(0.5, rel=0.05)


def test_lazy_tensors_are_the_planted_ones() -> None:
    successor, source = planting.successor_cycle(96, 0), planting.DeviceSource(4, CPU)
    lazy = planting.PlantedTensors(TINY, successor, 2.0, 3.0, source)
    assert len(lazy) == len(list(lazy)) == len(tensor_shapes(TINY))
    embedding, head = lazy["model.embed_tokens.weight"].float(), lazy["lm_head.weight"].float()
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(96), rtol=0.01, atol=0)
    torch.testing.assert_close(head[torch.from_numpy(successor)], 3.0 * embedding, rtol=0.02, atol=0.02)
    scale = planting.weight_scale("model.layers.0.self_attn.o_proj.weight", TINY)
    assert lazy["model.layers.0.self_attn.o_proj.weight"].float().std() == pytest.approx(2 * scale, rel=0.1)


@pytest.mark.slow
def test_an_agreement_is_planted_and_changed_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """4 standard errors of the difference of two samples (false alarm 1 in 16,000 each; fixed seed)."""
    for name, shape in TINY_PAIR.items():
        monkeypatch.setitem(SHAPES, name, shape)
        plan = pairs.PairPlan(pairs.PairSpec("8b", "135m", 0.7), 0, CPU)
    made = zip(plan.configs, (plan.target_tensors(), plan.draft_tensors()), strict=True)
    target, draft = (
        weight_views(config, LlamaWeights.pack(config, tensors, dtype=torch.float32, device=CPU))
        for config, tensors in made
    )
    addresses = {name: tensor.data_ptr() for name, tensor in draft.items()}
    untouched = {name: tensor.clone() for name, tensor in draft.items() if "q_proj" in name}
    for alpha in (0.7, 0.85):
        found = plan.replant(alpha, target, draft, flops=2e10)
        assert found.rule_kept > 0.99 and found.spec.alpha == alpha
        assert abs(found.alpha - alpha) < 4 * 1.5 * found.alpha_error
    assert {name: tensor.data_ptr() for name, tensor in draft.items()} == addresses
    assert all(torch.equal(draft[name], tensor) for name, tensor in untouched.items())
