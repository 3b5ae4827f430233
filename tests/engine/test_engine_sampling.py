"""Sampling parameters through the engine and the command line: log-probabilities, n, bias, ends, refusals."""

import json
from collections.abc import Iterator

import pytest
import tokenizers
import torch
from tiny_pairs import Pair, byte_tokenizer

from pearl_rt import Engine, Logprob, RequestError, SamplingParams
from pearl_rt.checkpoint.tokenizer import Tokenizer
from pearl_rt.cli.commands import main

PROMPT = [5, 9, 200, 3]
LOUD = SamplingParams(
    temperature=0.9,
    top_p=0.9,
    repetition_penalty=1.4,
    seed=3,
    max_tokens=12,
    logit_bias={7: -50.0},
    logprobs=3,
)


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Pair.make("half-right").engine(max_model_len=64, num_threads=1) as made:
        yield made


@pytest.mark.parametrize("strategy", ["ar", "sd", "pearl"])
def test_logprobs_are_the_targets_own(engine: Engine, strategy: str) -> None:
    """Of rows that a forward pass over the whole text gives, before bias, penalties and filters."""
    [output] = engine.generate(PROMPT, LOUD, strategy=strategy, gamma=3)
    assert output.logprobs is not None and len(output.logprobs) == len(output.token_ids) == 12
    whole = [*PROMPT, *output.token_ids]
    rows = engine.target.executor([0]).forward(0, whole[:-1], 0, len(output.token_ids))
    exact = torch.log_softmax(torch.from_numpy(rows).double(), dim=1)
    for row, token, entries in zip(exact, output.token_ids, output.logprobs, strict=True):
        assert next(iter(entries)) == token
        best = row.topk(3).indices.tolist()
        assert list(entries) == [token, *(i for i in best if i != token)]
        for token_id, (logprob, rank) in entries.items():
            assert logprob == pytest.approx(float(row[token_id]), abs=1e-5)
            assert rank == 1 + int((row > row[token_id]).sum())


def test_logprobs_in_chunks(engine: Engine) -> None:
    chunks = list(engine.stream(PROMPT, LOUD, strategy="pearl", gamma=3))
    assert all(chunk.logprobs is not None and len(chunk.logprobs) == len(chunk.token_ids) for chunk in chunks)
    assert engine.last_output is not None
    assert [e for chunk in chunks for e in chunk.logprobs or []] == engine.last_output.logprobs
    only = SamplingParams(max_tokens=3, logprobs=0)
    [output] = engine.generate(PROMPT, only)
    assert [list(entries) for entries in output.logprobs or []] == [[t] for t in output.token_ids]
    assert isinstance((output.logprobs or [])[0][output.token_ids[0]], Logprob)
    [plain] = engine.generate(PROMPT, SamplingParams(max_tokens=3))
    assert plain.logprobs is None and plain.token_ids == output.token_ids


def test_n_answers_are_requests_of_their_own(engine: Engine) -> None:
    params = SamplingParams(temperature=1.0, seed=11, max_tokens=8, n=3)
    outputs = engine.generate([PROMPT, [1]], params, judge="coupled")
    assert [output.index for output in outputs] == [0, 1, 2, 0, 1, 2]
    for output in outputs:
        [alone] = engine.generate(output.prompt_token_ids, params.sample(output.index), judge="coupled")
        assert alone.token_ids == output.token_ids
    assert len({tuple(output.token_ids) for output in outputs[:3]}) == 3
    with pytest.raises(RequestError, match="stream gives one answer, n is 3"):
        engine.stream(PROMPT, params)


def test_bias_and_min_tokens_act_on_greedy_text(engine: Engine) -> None:
    [free] = engine.generate(PROMPT, SamplingParams(max_tokens=8))
    wanted = next(token for token in range(288) if token not in free.token_ids)
    forced = SamplingParams(max_tokens=8, logit_bias={wanted: 100.0}, stop_token_ids=(wanted,))
    [output] = engine.generate(PROMPT, forced)
    assert (output.token_ids, output.finish_reason) == ([wanted], "stop")
    held = SamplingParams(max_tokens=8, logit_bias={wanted: 100.0}, stop_token_ids=(wanted,), min_tokens=5)
    for strategy in ("ar", "sd", "pearl"):
        [output] = engine.generate(PROMPT, held, strategy=strategy, gamma=4)
        assert len(output.token_ids) == 6 and output.token_ids[-1] == wanted
        assert wanted not in output.token_ids[:-1]
    [output] = engine.generate(PROMPT, SamplingParams(max_tokens=None))
    assert len(output.token_ids) == 60 and output.finish_reason == "length"


def test_what_the_engine_refuses(engine: Engine) -> None:
    for params, named in (
        (
            SamplingParams(logit_bias={288: 1.0}),
            "logit_bias has 288, out of range: the vocabulary has 288 ids",
        ),
        (
            SamplingParams(min_tokens=2, stop_token_ids=tuple(range(288))),
            "min_tokens 2 forbids every token: all of the vocabulary",
        ),
    ):
        with pytest.raises(RequestError, match=named):
            engine.generate(PROMPT, params)
    assert len(engine.generate(PROMPT, SamplingParams(max_tokens=4))[0].token_ids) == 4


def test_flags_of_the_command_line(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    target, draft = Pair.make("half-right").save(tmp_path_factory.mktemp("pair"))
    pair = ["--target", str(target), "--draft", str(draft), "--max-model-len", "64", "--judge", "coupled"]
    flags = "--temperature 0.9 --top-k 40 --top-p 0.9 --min-p 0.01 --repetition-penalty 1.2 --seed 4 --n 2"
    more = (
        "--presence-penalty 0.3 --frequency-penalty 0.2 --logit-bias 65=-9 --logit-bias 66=2.5 --logprobs 1"
    )
    asked = ["--prompt", "abc", *flags.split(), *more.split(), "--min-tokens", "2", "--max-tokens", "6"]
    assert main(["generate", *pair, *asked]) == 0
    printed = capsys.readouterr()
    params = SamplingParams(
        temperature=0.9,
        top_k=40,
        top_p=0.9,
        min_p=0.01,
        repetition_penalty=1.2,
        seed=4,
        n=2,
        presence_penalty=0.3,
        frequency_penalty=0.2,
        logit_bias={65: -9, 66: 2.5},
        logprobs=1,
        min_tokens=2,
        max_tokens=6,
    )
    with Engine.from_pretrained(target, max_model_len=64, num_threads=1) as engine:
        outputs = engine.generate("abc", params, judge="coupled")
    assert printed.out == "".join(output.text + "\n" for output in outputs)
    lines = [json.loads(line) for line in printed.err.splitlines() if line.startswith("{")]
    assert lines == [
        {str(token): list(entry) for token, entry in entries.items()}
        for output in outputs
        for entries in output.logprobs or []
    ]
    assert main(["generate", *pair, "--prompt", "a", "--logit-bias", "x=1"]) == 2
    assert "--logit-bias x=1 is not ID=X" in capsys.readouterr().err


@pytest.mark.parametrize("strategy", ["ar", "sd", "pearl"])
def test_a_stop_string_may_be_a_special_token_and_the_end_is_not_shown(strategy: str) -> None:
    """Ids 256 and 257 are named, one special and one the model's end of text, flagged as neither."""
    tok = byte_tokenizer()
    for name, is_special in (("<special>", True), ("<end>", False)):
        tok.add_tokens([tokenizers.AddedToken(name, special=is_special, normalized=False)])
    pair = Pair.make("half-right", eos_token_ids=(257,))
    named = Tokenizer(tok, vocab_size=pair.config.vocab_size)
    with pair.engine(max_model_len=64, num_threads=1, tokenizer=named) as engine:
        [letter] = engine.tokenizer.encode("x") if engine.tokenizer is not None else [-1]
        for bias, stop, expected in (
            ({256: 100.0}, ["<special>"], ("", "<special>", 1)),
            ({256: 100.0}, ["<special><special>"], ("", "<special><special>", 2)),
            ({256: 100.0}, [], ("", None, 8)),
            ({257: 100.0}, [], ("", None, 1)),
            ({letter: 100.0}, ["<special>"], ("x" * 8, None, 8)),
        ):
            params = SamplingParams(max_tokens=8, logit_bias=bias, stop=stop)
            [told] = engine.generate(PROMPT, params, strategy=strategy, gamma=3)
            assert (told.text, told.stop_reason, len(told.token_ids)) == expected
            assert "".join(chunk.text for chunk in engine.stream(PROMPT, params)) == told.text
        [told] = engine.generate(
            PROMPT, SamplingParams(max_tokens=4, logit_bias={257: 100.0}, ignore_eos=True)
        )
        assert (told.text, told.token_ids) == ("", [257] * 4)
