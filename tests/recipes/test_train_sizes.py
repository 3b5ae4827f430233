"""Models that are grown, cut and named by size."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from train_models import MACHINE, small_model

from bench.model_pairs.shapes import SHAPES, config_of
from pearl_rt.errors import ConfigError
from pearl_rt.kernels.base.shapes import MODELS
from recipes.train.model.grow import grown
from recipes.train.model.prune import best_pruned, pruned
from recipes.train.model.sampler import sample_rows
from recipes.train.model.sizes import SIZES, sized_config


class TestShapes:
    def test_growing_keeps_the_function(self) -> None:
        small = small_model(2)
        deep = grown(small, replace(small.config, num_hidden_layers=5))
        token_ids = torch.randint(300, (2, 30))
        assert torch.allclose(deep(token_ids), small(token_ids), atol=1e-5)
        assert sum((layer.mlp.down_proj.weight == 0).all().item() for layer in deep.model.layers) == 3

    def test_cutting_nothing_keeps_the_function(self) -> None:
        target = small_model()
        token_ids = torch.randint(300, (2, 30))
        assert torch.allclose(
            pruned(target, target.config, (0, 1, 2))(token_ids), target(token_ids), atol=1e-5
        )

    def test_cutting_takes_the_strongest_neurons(self) -> None:
        target = small_model(1)
        target.model.layers[0].mlp.gate_proj.weight.data[64:] = 0.0
        draft = pruned(target, replace(target.config, intermediate_size=64), (0,))
        token_ids = torch.randint(300, (2, 30))
        assert torch.allclose(draft(token_ids), target(token_ids), atol=1e-5)

    def test_the_draft_cut_out_is_the_best_one(self) -> None:
        target = small_model()
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            target.model.layers[1].get_submodule(name).weight.data.zero_()  # a layer that does nothing
        rows = sample_rows(
            target, MACHINE, torch.zeros(8, 1, dtype=torch.long), 60, 1.0, MACHINE.generator(0)
        )
        draft = best_pruned(target, 2, target.config.intermediate_size, MACHINE, rows)
        assert torch.allclose(draft(rows), target(rows), atol=1e-5)

    def test_another_width_is_refused(self) -> None:
        small = small_model()
        with pytest.raises(ConfigError, match="layers"):
            grown(small, sized_config("2m", 300, 0, 256))
        with pytest.raises(ConfigError, match="layers"):
            pruned(small, sized_config("2m", 300, 0, 256), (0,))


def test_a_size_has_the_shape_that_kernels_and_benchmarks_know_by_that_name() -> None:
    assert SIZES.keys() & SHAPES.keys() == {"88m", "135m"}
    for name in ("88m", "135m"):
        trained = sized_config(name, SHAPES[name].vocab, eos_id=1).to_dict()
        benched = config_of(SHAPES[name]).to_dict()
        sizes = [key for key in benched if key.startswith(("hidden_size", "intermediate", "num_", "head_"))]
        assert len(sizes) == 6
        assert {key: trained[key] for key in sizes} == {key: benched[key] for key in sizes}
    smollm = MODELS["135m"]  # the figures of its published config.json
    assert (smollm.hidden, smollm.intermediate, smollm.layers) == (576, 1536, 30)
    assert (smollm.heads, smollm.kv_heads, smollm.head_dim, smollm.vocab) == (9, 3, 64, 49152)
