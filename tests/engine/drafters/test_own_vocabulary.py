"""A draft with a tokenizer of its own, and an exit layer that drafts some of the target's ids: the text is
that of plain decoding, and what both have is drafted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from chi_square import FALSE_ALARM, p_value
from safetensors.torch import load_file, save_file
from tiny_pairs import TINY, random_tensors

from pearl_rt import _C, CheckpointError, ConfigError, Engine, RequestError, SamplingParams, _testing
from pearl_rt.backends.cpu import Model
from pearl_rt.checkpoint.tokenizer import Tokenizer
from pearl_rt.checkpoint.views.codes import rounded
from pearl_rt.checkpoint.views.draft_ids import NO_ID, shared_tokens
from pearl_rt.checkpoint.views.exit_layer import ExitConfig, exit_shapes, load_exit, save_exit

ALPHABET = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
CONFIG = replace(TINY, vocab_size=256, num_hidden_layers=3)
TENSORS = random_tensors(CONFIG, 0)
PROMPTS = [[7], [3, 1, 4, 1, 5, 9, 2, 6], list(range(40, 73))]
GREEDY, LOUD = SamplingParams(max_tokens=24), SamplingParams(temperature=1.0, max_tokens=24, seed=3)
pytestmark = pytest.mark.filterwarnings("ignore:the draft has a tokenizer of its own")
SHAPE = {"max_model_len": 128, "num_threads": 2, "max_num_seqs": 4}


def tokenizer_of(tokens: Sequence[str], merges: Sequence[tuple[str, str]] = ()) -> Tokenizer:
    """Byte-level, with these tokens in this order."""
    model = tokenizers.models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=list(merges))
    made = tokenizers.Tokenizer(model)
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    return Tokenizer(made)


TOKENIZER = tokenizer_of(ALPHABET)
ORDER = torch.randperm(256, generator=torch.Generator().manual_seed(5)).tolist()  # draft id -> target id


def engine_of(num_more: int = 0, num_less: int = 0, **options: object) -> Engine:
    """The target, and itself with its ids in another order: `num_more` tokens of two bytes that the target
    lacks, and without the last `num_less`.
    """
    order = ORDER[: 256 - num_less]
    pairs = [(ALPHABET[i], ALPHABET[i + 1]) for i in range(num_more)]
    names = [ALPHABET[i] for i in order] + [a + b for a, b in pairs if a in ALPHABET]
    merges = [pair for pair in pairs if all(part in names for part in pair)]
    config = replace(CONFIG, vocab_size=len(names))
    tensors = dict(TENSORS)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat((TENSORS[name][order], torch.zeros(num_more, CONFIG.hidden_size)))
    own = {"tokenizer": TOKENIZER, "draft_tokenizer": tokenizer_of(names, merges)}
    return Engine(CONFIG, TENSORS, config, tensors, **own, **(SHAPE | options))  # type: ignore[arg-type]


def texts(engine: Engine, params: SamplingParams, **program: object) -> list[list[int]]:
    return [one.token_ids for one in engine.generate(PROMPTS, params, **program)]  # type: ignore[arg-type]


def test_the_same_model_with_other_ids_is_never_wrong() -> None:
    """Its tokens come back as the target's, and what it is fed are its own."""
    with (
        pytest.warns(UserWarning, match="can draft 256 of the target's 256 tokens"),
        engine_of() as engine,
    ):
        for params in (GREEDY, LOUD):
            for output in engine.generate(PROMPTS, params, strategy="sd", gamma=4, judge="coupled"):
                assert output.metrics.judged > 12 and output.metrics.acceptance_rate == 1.0
        assert engine.stats()["drafter"]["shared_ids"] == 256


@pytest.mark.parametrize(("num_more", "num_less"), [(30, 0), (0, 100), (17, 63)])
def test_every_program_is_ar_to_the_bit(num_more: int, num_less: int) -> None:
    with engine_of(num_more, num_less, judge="coupled") as engine:
        filtered = SamplingParams(
            temperature=0.9, top_p=0.7, repetition_penalty=1.2, max_tokens=24, seed=1, logit_bias={5: 2.0}
        )
        for params in (GREEDY, LOUD, filtered):
            want = texts(engine, params, strategy="ar")
            for strategy, placement, gamma in (("sd", "shared", 3), ("pearl", "split", 4)):
                assert texts(engine, params, strategy=strategy, placement=placement, gamma=gamma) == want
        assert engine.stats()["drafter"]["shared_ids"] == 256 - num_less


def test_sampled_by_rejection() -> None:
    """Two tokens of 4,000 seeds have the target's law, of the draft half of whose ids are the target's. False
    alarm: 1 in 10^4.
    """
    prompt = [9, 8]
    with engine_of(0, 100, judge="rejection", max_num_seqs=16) as engine:

        def likeliest(prefix: list[int]) -> dict[int, float]:
            """Of the three that are left, at T = 0.6."""
            [output] = engine.generate(prefix, SamplingParams(max_tokens=1, logprobs=3), strategy="ar")
            assert output.logprobs is not None
            found = {token: each.logprob / 0.6 for token, each in output.logprobs[0].items()}
            total = sum(math.exp(value) for value in found.values())
            return {token: math.exp(value) / total for token, value in found.items()}

        law = {
            (first, second): p * q
            for first, p in likeliest(prompt).items()
            for second, q in likeliest([*prompt, first]).items()
        }
        params = [SamplingParams(temperature=0.6, top_k=3, max_tokens=2, seed=seed) for seed in range(4000)]
        outputs = engine.generate([prompt] * 4000, params, strategy="sd", gamma=2)
    drawn = Counter(tuple(one.token_ids) for one in outputs)
    assert drawn.keys() <= law.keys()
    assert p_value([drawn[cell] for cell in law], [4000 * p for p in law.values()]) > FALSE_ALARM


def test_what_is_fed_for_a_token_that_the_draft_lacks() -> None:
    """The last token of its text as the draft writes it; and ends of text are one."""
    target = tokenizer_of([*ALPHABET, "ab", "abc"], [("a", "b"), ("ab", "c")])
    ids = shared_tokens(
        replace(CONFIG, vocab_size=258, eos_token_ids=(3,)),
        replace(CONFIG, vocab_size=257, eos_token_ids=(9,)),
        target,
        tokenizer_of([*reversed(ALPHABET), "bc"], [("b", "c")]),
    )
    place = {token: 255 - i for i, token in enumerate(ALPHABET)}
    assert ids.draft_of[256] == place["b"] and ids.draft_of[257] == 256
    assert ids.target_of[256] == NO_ID and ids.target_of[place["a"]] == ALPHABET.index("a")
    assert ids.num_shared == 256
    with pytest.raises(ConfigError, match=r"has 1 of the target's 256 tokens, too few to draft"):
        shared_tokens(CONFIG, replace(CONFIG, vocab_size=1), TOKENIZER, tokenizer_of(["a"]))


def test_where_it_cannot_run() -> None:
    with pytest.raises(ConfigError, match=r"differs from the target's in \d+ of \d+ ids.*device='cpu'"):
        engine_of(device="interpret")
    own = {"tokenizer": TOKENIZER, "draft_tokenizer": tokenizer_of([*reversed(ALPHABET)])}
    with pytest.raises(ConfigError, match=r"goes token by token: pass draft_parallel=False"):
        Engine(CONFIG, TENSORS, replace(CONFIG, pard_token=3), TENSORS, **own, **SHAPE)  # type: ignore[arg-type]


EXIT = ExitConfig(hidden_size=64, vocab_size=256, exit_layer=1, intermediate_size=96, draft_vocab_size=70)
IDS = torch.arange(70) * 3 + 11


def own_layer(config: ExitConfig = EXIT) -> dict[str, torch.Tensor]:
    shapes = exit_shapes(config.draft_config(CONFIG))
    own = {name: tensor for name, tensor in random_tensors(CONFIG, 1).items() if name in shapes}
    return own | {"d2t": IDS - torch.arange(70)}


@pytest.mark.parametrize("mask", [None, 31])
@pytest.mark.parametrize("weights", ["auto", "int8"])
def test_an_exit_layer_that_drafts_some_ids(mask: int | None, weights: str) -> None:
    config = replace(EXIT, pard_token=mask)
    options = SHAPE | {"judge": "coupled", "weights": weights, "draft_weights": weights}
    with Engine(CONFIG, TENSORS, config, own_layer(), **options) as engine:  # type: ignore[arg-type]
        for params in (GREEDY, LOUD):
            want = texts(engine, params, strategy="ar")
            for strategy, placement, gamma in (("sd", "shared", 3), ("pearl", "split", 4)):
                assert texts(engine, params, strategy=strategy, placement=placement, gamma=gamma) == want
        assert engine.stats()["drafter"]["shared_ids"] == 70


def test_rows_of_the_head_are_the_targets() -> None:
    """A layer that gives what the target's does: each of its drafts stands, where the target says its ids."""
    tensors = dict(TENSORS)
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        tensors[f"model.layers.2.{name}.weight"] = torch.zeros_like(TENSORS[f"model.layers.2.{name}.weight"])
    config = replace(EXIT, exit_layer=1)
    shapes = exit_shapes(config.draft_config(CONFIG))
    own = {name: tensors[name] for name in shapes} | {"d2t": IDS - torch.arange(70)}
    allowed = {str(i): 100.0 for i in IDS.tolist()}
    params = replace(GREEDY, logit_bias={int(i): value for i, value in allowed.items()})
    with Engine(CONFIG, tensors, config, own, **SHAPE) as engine:  # type: ignore[arg-type]
        for output in engine.generate(PROMPTS, params, strategy="sd", gamma=3):
            assert output.metrics.acceptance_rate == 1.0 and set(output.token_ids) <= set(IDS.tolist())


def test_checkpoints_of_fewer_ids(tmp_path: Path) -> None:
    save_exit(tmp_path, EXIT.draft_config(CONFIG), own_layer())
    config, tensors = load_exit(tmp_path, CONFIG)
    assert config == EXIT and torch.equal(tensors["d2t"], own_layer()["d2t"])
    beyond = own_layer() | {"d2t": torch.full((70,), 200)}
    with pytest.raises(CheckpointError, match=r"d2t\[56\] of the draft is 200, which leads to id 256"):
        Engine(CONFIG, TENSORS, EXIT, beyond, **SHAPE)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"tensor 'd2t' of the draft does not fit"):
        Engine(CONFIG, TENSORS, replace(EXIT, draft_vocab_size=71), own_layer(), **SHAPE)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="draft_vocab_size 257 is more than the target's vocabulary of 256"):
        Engine(CONFIG, TENSORS, replace(EXIT, draft_vocab_size=257), own_layer(), **SHAPE)  # type: ignore[arg-type]


def test_a_checkpoint_of_8_bits_runs_as_it_lies(tmp_path: Path) -> None:
    """The text of the same layer rounded when it is loaded, and the same bytes in memory."""
    found = []
    for name, tensors in (("bf16", own_layer()), ("int8", rounded(own_layer()))):
        save_exit(tmp_path / name, EXIT.draft_config(CONFIG), tensors)
        config, loaded = load_exit(tmp_path / name, CONFIG)
        options = SHAPE | {"draft_weights": "int8"}
        with Engine(CONFIG, TENSORS, config, loaded, **options) as engine:  # type: ignore[arg-type]
            outputs = engine.generate(PROMPTS, LOUD, strategy="sd", gamma=3, judge="rejection")
            assert engine.draft is not None
            size = engine.draft.weights.memory_bytes  # type: ignore[attr-defined]
        found.append((size, [(one.token_ids, one.metrics.accepted) for one in outputs]))
    assert found[0] == found[1]
    file = tmp_path / "int8" / "model.safetensors"
    whole = load_file(file)
    del whole["model.layers.1.mlp.up_proj.weight_scale"]
    save_file(whole, file)
    with pytest.raises(CheckpointError, match=r"up_proj.weight' of .* has int8 codes and no .*_scale'"):
        load_exit(tmp_path / "int8", CONFIG)


def test_rows_of_an_executor_are_those_of_its_head() -> None:
    """forward and forward_batch give as many numbers as the head has rows; a lane asks which."""
    with Engine(CONFIG, TENSORS, EXIT, own_layer(), **SHAPE) as engine:  # type: ignore[arg-type]
        draft = engine.draft
        assert isinstance(draft, Model)
        executor = draft.executor([0])
        assert executor.forward(0, [1, 2, 3], 0, 2).shape == (2, 70) and executor.logits_size == 70
        assert [rows.shape for rows in executor.forward_batch([(0, [4, 5], 3, 1)])] == [(1, 70)]
        whole = executor.forward(0, [6, 7], 5, 2)
        assert np.array_equal(executor.forward(0, [6, 7], 5, 2), whole) and np.isfinite(whole).all()
        with pytest.raises(RequestError, match=r"rows for 70 ids, and target_ids for 256; give one for each"):
            _C.CpuLane("target", executor, _C.Device())
    more = _testing.ScriptedExecutor(vocab_size=8, max_model_len=16, head_ids=[1] * 99)
    assert more.forward(0, [1, 2], 0, 0).shape == (0, 99)
