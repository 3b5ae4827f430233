"""The trainable Llama against transformers, and the training program on a corpus of a few small files."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bench.model_pairs.shapes import SHAPES
from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.checkpoint.shapes import tensor_shapes
from pearl_rt.errors import ConfigError, RequestError
from pearl_rt.kernels.base.shapes import MODELS
from recipes.train.__main__ import build_parser, main
from recipes.train.bpe import save_tokenizer, train_tokenizer
from recipes.train.card import readme, thinned, write_card
from recipes.train.corpus import is_held_out, read_corpus
from recipes.train.distill import SOURCES, DistillSettings, distill
from recipes.train.divergence import (
    DIVERGENCES,
    forward_kl,
    jensen_shannon,
    reverse_kl,
    total_variation,
)
from recipes.train.evaluate import acceptance, held_out_rows, text_loss
from recipes.train.grow import grown
from recipes.train.llama import KVCache, LlamaForCausalLM
from recipes.train.material import Material, read_material
from recipes.train.optimizer import Schedule
from recipes.train.pretrain import PretrainSettings, pretrain
from recipes.train.prune import best_pruned, pruned
from recipes.train.run import Run
from recipes.train.sampler import sample_rows
from recipes.train.session import Machine, cross_entropy
from recipes.train.sizes import SIZES, new_model, sized_config
from recipes.train.stream import PackedStream

transformers = pytest.importorskip("transformers")

TINY = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 128,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
FAMILY = {
    "llama-mha": ("Llama", {"num_key_value_heads": 6, "tie_word_embeddings": False}),
    "llama-gqa-tied": ("Llama", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "llama-llama3-rope": ("Llama", {"num_key_value_heads": 2, "rope_scaling": LLAMA3}),
    "llama-head-dim-12": ("Llama", {"num_key_value_heads": 1, "head_dim": 12}),
    "mistral": ("Mistral", {"num_key_value_heads": 2, "sliding_window": None}),
    "qwen2-bias-tied": ("Qwen2", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "qwen3-qk-norm": ("Qwen3", {"num_key_value_heads": 2, "head_dim": 16}),
}


@pytest.fixture(params=FAMILY, ids=str)
def pair(request: pytest.FixtureRequest, tmp_path: Path):
    """A random checkpoint of transformers, no tensor at its default, and ours with the same weights."""
    kind, options = FAMILY[request.param]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**(TINY | options))
    theirs = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    for parameter in theirs.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    ours = LlamaForCausalLM(ModelConfig.from_pretrained(tmp_path)).eval()
    tied = {"lm_head.weight"} if ours.config.tie_word_embeddings else set()
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if k not in tied})
    return ours, theirs


def test_logits_and_gradients_are_those_of_transformers(pair) -> None:
    ours, theirs = pair
    token_ids = torch.randint(97, (2, 100))
    logits, expected = ours(token_ids), theirs(token_ids).logits
    assert (logits - expected).norm() <= 1e-5 * expected.norm()
    weights = torch.randn_like(expected)
    (logits * weights).sum().backward()
    (expected * weights).sum().backward()
    for name, parameter in theirs.named_parameters():
        gradient = dict(ours.named_parameters())[name].grad
        assert (gradient - parameter.grad).norm() <= 1e-4 * parameter.grad.norm() + 1e-5, name


def test_tensor_shapes_are_those_of_the_state_dict(pair) -> None:
    ours, theirs = pair
    shapes = tensor_shapes(ours.config)
    assert shapes == {k: tuple(v.shape) for k, v in ours.state_dict().items()}
    tied = {"lm_head.weight"} if ours.config.tie_word_embeddings else set()
    assert set(shapes) == set(theirs.state_dict()) - tied


def test_a_cache_changes_nothing(pair) -> None:
    ours, _ = pair
    token_ids = torch.randint(97, (2, 20))
    cache = KVCache.empty(ours.config, 2, 20, ours.head_weight)
    with torch.no_grad():
        parts = [ours(token_ids[:, a:b], cache) for a, b in ((0, 7), (7, 8), (8, 14), (14, 15), (15, 20))]
        expected = ours(token_ids)
    assert (torch.cat(parts, 1) - expected).norm() <= 1e-5 * expected.norm()


WORDS = [
    "def",
    "return",
    "self",
    "value",
    "number",
    "class",
    "for",
    "in",
    "range",
    "print",
    "(",
    ")",
    ":",
    "=",
]


@pytest.fixture(scope="module")
def text_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 small files with a grammar of sorts: every word has two words that may follow it."""
    directory = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    for i in range(60):
        place, words = 0, []
        for _ in range(300):
            place = (3 * place + 1 + 5 * int(rng.integers(2))) % len(WORDS)
            words.append(WORDS[place])
        (directory / f"file{i}.py").write_text(
            "\n    ".join(" ".join(words[j : j + 9]) for j in range(0, 300, 9))
        )
    return directory


@pytest.fixture(scope="module")
def tokenizer_directory(text_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer(read_corpus(str(text_directory)).train, 300), directory)
    return directory


@pytest.fixture(scope="module")
def material(text_directory: Path, tokenizer_directory: Path) -> Material:
    return read_material(str(text_directory), tokenizer_directory)


class TestTokenizer:
    @pytest.mark.parametrize(
        "text",
        [
            "",
            "\n",
            "a\r\n\tb\n\n\n    c  ",
            "x" * 300,
            "naïve — 日本語 🎉\x00\x7f",
            " \n \n",
            "<|endoftext|>x",
            "  # y",
        ],
        ids=["empty", "newline", "mixed-space", "long-word", "unicode", "blank-lines", "special", "comment"],
    )
    def test_any_text_survives(self, material: Material, text: str) -> None:
        ids = material.tokenizer.encode(text, add_special_tokens=False).ids
        assert material.tokenizer.decode(ids, skip_special_tokens=False) == text

    def test_line_end_and_indentation_are_one_token(self, material: Material) -> None:
        assert len(material.tokenizer.encode("\n    ").ids) == 1

    def test_transformers_reads_it(self, material: Material, tokenizer_directory: Path) -> None:
        theirs = transformers.AutoTokenizer.from_pretrained(tokenizer_directory)
        text = material.corpus.held_out[0].text
        assert theirs.encode(text) == material.tokenizer.encode(text).ids
        assert theirs.eos_token_id == material.eos_id == 0

    @pytest.mark.parametrize("size", [0, 256, 1 << 30])
    def test_impossible_vocabulary_is_refused(self, size: int) -> None:
        with pytest.raises(RequestError, match=str(size)):
            train_tokenizer([], size)


class TestCorpus:
    def test_held_out_files_are_apart_and_do_not_move(self) -> None:
        names = [f"pkg/module{i}.py" for i in range(4000)]
        held_out = [n for n in names if is_held_out(n)]
        assert 60 <= len(held_out) <= 140  # 100 expected, 4 standard deviations: false alarm 1 in 15,000
        assert (
            is_held_out("fractions.py")
            and not is_held_out("heapq.py")
            and not is_held_out("test/fractions.py")
        )

    def test_nothing_to_read_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(RequestError, match="0 text files"):
            read_corpus(str(tmp_path))
        with pytest.raises(RequestError, match="neither"):
            read_corpus(str(tmp_path / "absent"))


class TestStream:
    def test_rows_are_a_function_of_seed_and_index(self) -> None:
        documents = [np.arange(100 * i, 100 * i + 37) for i in range(20)]
        first, second = (PackedStream(documents, [1.0] * 20, 16, seed=3) for _ in range(2))
        expected = [first.batch(4 * i, 4) for i in range(60)]  # several epochs
        for i in (59, 0, 30, 31):
            assert torch.equal(second.batch(4 * i, 4), expected[i])
        assert not torch.equal(PackedStream(documents, [1.0] * 20, 16, seed=4).batch(0, 4), expected[0])

    def test_an_epoch_reads_every_token_once_but_for_its_ends(self) -> None:
        documents = [np.arange(100 * i, 100 * i + 37) for i in range(20)]
        rows = PackedStream(documents, [1.0] * 20, 16, seed=0).batch(0, (20 * 37 - 16) // 16)[:, 1:]
        tokens = rows.flatten().tolist()
        assert len(set(tokens)) == len(tokens) >= 20 * 37 - 32

    def test_weight_is_the_chance_of_a_document(self) -> None:
        documents = [np.full(64, i) for i in range(2)]
        rows = PackedStream(documents, [1.0, 0.25], 16, seed=0).batch(0, 1200)
        share = (rows == 1).double().mean().item()
        assert 0.15 < share < 0.25  # 0.2 expected: 0.25 of a document to every whole one

    def test_text_shorter_than_a_row(self) -> None:
        assert PackedStream([np.arange(5)], [1.0], 64, seed=0).batch(7, 3).shape == (3, 65)


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


def small_model(num_hidden_layers: int = 3, seed: int = 0) -> LlamaForCausalLM:
    """Random, with no weight at zero."""
    config = replace(sized_config("tiny", 300, 0, 256), num_hidden_layers=num_hidden_layers)
    model = new_model(config, torch.device("cpu"), seed)
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model


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


MACHINE = Machine.named("cpu")


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
    def test_loss_counts_every_token_of_every_file_once(self, material: Material) -> None:
        model = small_model()
        losses = [
            text_loss(model, MACHINE, material.corpus.held_out, material.held_out, 0, window)
            for window in (64, 256)
        ]
        for loss in losses:
            assert loss.tokens == sum(map(len, material.held_out))
            assert loss.bytes == sum(len(d.text.encode()) for d in material.corpus.held_out)
            bits = loss.nats_per_token * loss.tokens / math.log(2)
            assert loss.bits_per_byte == pytest.approx(bits / loss.bytes)

    def test_loss_of_one_window_is_cross_entropy(self, material: Material) -> None:
        model, array = small_model(), material.held_out[0][:100]
        loss = text_loss(model, MACHINE, material.corpus.held_out[:1], [array], 0, 128)
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


@pytest.fixture(scope="module")
def settings() -> PretrainSettings:
    return PretrainSettings(lr=1e-2, embedding_lr=1e-2, tokens_per_step=512, schedule=Schedule(2, 0.5))


@pytest.fixture(scope="module")
def clock() -> Iterator[None]:
    """A run's clock, on which every step takes a second, however long it takes here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recipes.train.run.time", SimpleNamespace(monotonic=count(1.0).__next__))
        yield


@pytest.fixture(scope="module")
def trained(
    clock: None, material: Material, settings: PretrainSettings, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, Run]:
    run_directory, out = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("model")
    config = sized_config("tiny", 300, 0, 256)
    run = pretrain(config, material, MACHINE, settings, minutes=40 / 60, run_directory=run_directory, out=out)
    return run_directory, out, run


class TestTraining:
    """A few steps of each stage; the loss must fall and a run must go on where it stopped."""

    def test_loss_falls_and_the_model_loads_in_transformers(self, trained, material: Material) -> None:
        _, out, run = trained
        curve = run.curve()
        assert [row["step"] for row in curve] == list(range(1, run.step + 1))
        assert curve[-1]["loss"] < 0.7 * curve[0]["loss"]
        assert curve[-1]["lr"] < 0.5 * max(row["lr"] for row in curve)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
        ours, token_ids = MACHINE.load(out), torch.randint(300, (1, 50))
        assert torch.allclose(ours(token_ids), theirs(token_ids).logits, atol=1e-4)
        assert theirs.generation_config.eos_token_id == material.eos_id

    def test_goes_on_where_it_stopped(self, trained, material: Material, settings: PretrainSettings) -> None:
        run_directory, out, before = trained
        rows = before.curve()
        with (run_directory / "curve.jsonl").open("a") as file:  # killed while it wrote a row
            file.write(json.dumps({"step": before.step + 1, "loss": 9.0}) + '\n{"step": ')
        config = sized_config("tiny", 300, 0, 256)
        minutes = (before.step + 3) / 60
        after = pretrain(
            config, material, MACHINE, settings, minutes=minutes, run_directory=run_directory, out=out
        )
        curve = after.curve()
        assert [row["step"] for row in curve] == list(range(1, after.step + 1))
        assert curve[: before.step] == rows
        assert after.step == before.step + 3 and all(row["loss"] < 9.0 for row in curve[before.step :])

    def test_another_run_in_its_place_is_refused(self, trained, material: Material) -> None:
        run_directory, out, _ = trained
        config = sized_config("tiny", 300, 0, 256)
        with pytest.raises(RequestError, match=r"lr 0\.01, now 0\.5"):
            pretrain(
                config,
                material,
                MACHINE,
                PretrainSettings(lr=0.5, tokens_per_step=512, schedule=Schedule(2, 0.5)),
                minutes=1,
                run_directory=run_directory,
                out=out,
            )

    @pytest.mark.parametrize("samples_from", SOURCES)
    def test_distillation_raises_acceptance(
        self, trained, material: Material, samples_from: str, tmp_path: Path
    ) -> None:
        _, out, _ = trained
        target, draft = (
            MACHINE.load(out),
            new_model(sized_config("tiny", 300, 0, 256), torch.device("cpu"), 7),
        )
        rows = held_out_rows(material.held_out, 96, 8)
        before = acceptance(target, draft, MACHINE, rows, 16).rejection["1.0"]
        settings = DistillSettings(
            samples_from=samples_from,
            text_share=0.5,
            text_length=64,
            prompt_length=8,
            sample_length=24,
            tokens_per_step=512,
            lr=1e-2,
            embedding_lr=1e-2,
            schedule=Schedule(2, 0.5),
        )
        distill(
            target, draft, material, MACHINE, settings, minutes=8 / 60, run_directory=tmp_path, out=tmp_path
        )
        after = acceptance(target, draft, MACHINE, rows, 16).rejection["1.0"]
        assert after > before + 0.15

    def test_a_draft_of_another_vocabulary_is_refused(
        self, trained, material: Material, tmp_path: Path
    ) -> None:
        _, out, _ = trained
        draft = new_model(sized_config("tiny", 301, 0, 256), torch.device("cpu"))
        with pytest.raises(ConfigError, match="300 and the draft's 301"):
            distill(
                MACHINE.load(out),
                draft,
                material,
                MACHINE,
                DistillSettings(),
                minutes=1,
                run_directory=tmp_path,
                out=tmp_path,
            )


def test_a_size_has_the_shape_that_kernels_and_benchmarks_know_by_that_name() -> None:
    assert SIZES.keys() & SHAPES.keys() == {"88m", "135m"}
    for name in ("88m", "135m"):
        trained = sized_config(name, SHAPES[name].vocab_size, eos_id=1).to_dict()
        benched = SHAPES[name].config_dict(SHAPES[name].vocab_size)
        sizes = [key for key in benched if key.startswith(("hidden_size", "intermediate", "num_", "head_"))]
        assert len(sizes) == 6
        assert {key: trained[key] for key in sizes} == {key: benched[key] for key in sizes}
    smollm = MODELS["135m"]  # the figures of its published config.json
    assert (smollm.hidden, smollm.intermediate, smollm.layers) == (576, 1536, 30)
    assert (smollm.heads, smollm.kv_heads, smollm.head_dim, smollm.vocab) == (9, 3, 64, 49152)


def documented_commands() -> list[list[str]]:
    text = (Path(__file__).resolve().parents[2] / "docs" / "training.md").read_text().replace("\\\n", " ")
    lines = [
        line.strip() for block in re.findall(r"```bash\n(.*?)```", text, re.S) for line in block.splitlines()
    ]
    starts = ("$T ", "python -m recipes.train ")
    return [shlex.split(line[len(start) :]) for start in starts for line in lines if line.startswith(start)]


class TestProgram:
    @pytest.mark.parametrize("argv", documented_commands(), ids=lambda argv: argv[0])
    def test_documented_commands_are_understood(self, argv: list[str]) -> None:
        assert build_parser().parse_args(argv).command == argv[0]

    def test_documents_show_every_command(self) -> None:
        shown = {argv[0] for argv in documented_commands()}
        assert shown == {"tokenizer", "pretrain", "prune", "distill", "evaluate", "prompts", "report"}

    def test_readme_is_written_from_the_card(self) -> None:
        curve = {"minutes": 1.5, "tokens": 1000, "curve": [{"loss": 2.25}], "settings": {"stage": "pretrain"}}
        loss = {"nats_per_token": 3.0, "bits_per_byte": 1.125, "tokens": 10, "bytes": 40, "parameters": 7}
        rates = {"1.0": 0.61, "0.8": 0.62}
        place = {"greedy": 0.7, "rejection": rates, "coupled": rates}
        card = {
            "target": curve,
            "held_out": {"target": loss},
            "acceptance": {"draft": {"held_out_text": place}},
        }
        text = readme(card)
        for figure in ("2.250", "1,000", "1.125", "4.00 bytes", "0.610", "0.700"):
            assert figure in text

    def test_prompts_are_held_out_text(
        self, text_directory: Path, tokenizer_directory: Path, tmp_path: Path
    ) -> None:
        out = tmp_path / "prompts.jsonl"
        arguments = ["prompts", "--data", str(text_directory), "--tokenizer", str(tokenizer_directory)]
        assert main([*arguments, "--out", str(out)]) == 0
        for line in out.read_text().splitlines():
            entry = json.loads(line)
            assert (
                is_held_out(entry["source"])
                and entry["prompt"] in (text_directory / entry["source"]).read_text()
            )

    def test_card_keeps_what_it_is_not_given(self, tmp_path: Path) -> None:
        write_card(tmp_path / "card.json", target={"curve": thinned([{"step": 1, "loss": 2.0}])})
        card = write_card(tmp_path / "card.json", held_out={})
        assert set(card) == {"target", "held_out"}

    def test_a_long_curve_is_thinned_by_means(self) -> None:
        curve = [{"step": i, "tokens": i, "loss": float(i % 2)} for i in range(1000)]
        rows = thinned(curve)
        assert len(rows) <= 200 and rows[-1]["step"] == 999
        assert all(abs(row["loss"] - 0.5) <= 0.11 for row in rows)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["tokenizer", "--data", "/absent", "--out", "/tmp"], "neither 'stdlib' nor a directory"),
            (["evaluate", "--target", "/absent"], "tokenizer.json does not exist"),
            (["evaluate", "--target", "/absent", "--device", "cuda"], "no CUDA device"),
        ],
        ids=["no-data", "no-model", "no-cuda"],
    )
    def test_bad_input_is_one_line(
        self, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        if "cuda" in arguments and torch.cuda.is_available():
            pytest.skip("there is a CUDA device")
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and error.count("\n") == 1
