"""Log-probabilities of a prompt's own tokens: those of the definition, of the target's own logits."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_pairs import SMALL, Pair, byte_tokenizer

from pearl_rt import Engine, NumericsError, RequestError, SamplingParams
from pearl_rt.backends.cpu import Model
from pearl_rt.checkpoint.tokenizer import Tokenizer
from pearl_rt.reference.logprobs import logprobs

LENGTHS = (1, 2, 31, 32, 33, 64, 200)  # the prompts are fed in chunks of 32
PAIR = Pair.make("half-right")


def prompt_of(length: int) -> list[int]:
    return [(7 * place + length) % 256 for place in range(length)]


@pytest.fixture(scope="module")
def engine() -> Engine:
    return PAIR.engine(max_model_len=256, num_threads=1, max_num_seqs=4)


@pytest.fixture(scope="module")
def rows() -> dict[int, np.ndarray]:
    """[length, vocab] the target's logits of each prompt."""
    model = Model.pack(PAIR.config, PAIR.target, dtype="float32", isa=None, max_model_len=256)
    executor = model.executor([0])
    return {n: executor.forward(0, prompt_of(n), 0, n).copy() for n in LENGTHS}


@pytest.mark.parametrize("strategy", ["ar", "sd", "pearl"])
def test_they_are_the_definitions(engine: Engine, rows: dict[int, np.ndarray], strategy: str) -> None:
    for length in LENGTHS:
        prompt = prompt_of(length)
        params = SamplingParams(max_tokens=5, prompt_logprobs=3, logprobs=2)
        [output] = engine.generate([prompt], params, strategy=strategy)
        assert output.prompt_logprobs is not None and output.prompt_logprobs[0] is None
        expected = [logprobs(rows[length][i], prompt[i + 1], 3) for i in range(length - 1)]
        assert output.prompt_logprobs[1:] == expected
        [without] = engine.generate([prompt], SamplingParams(max_tokens=5, logprobs=2), strategy=strategy)
        assert without.prompt_logprobs is None
        assert (without.token_ids, without.logprobs) == (output.token_ids, output.logprobs)


def test_in_a_batch_that_goes_on(engine: Engine, rows: dict[int, np.ndarray]) -> None:
    """Prompts that join, beside others that want none, or cancel."""
    asked = [(n, k) for k in (0, None, 3) for n in LENGTHS]
    handles = [engine.submit(prompt_of(n), SamplingParams(max_tokens=8, prompt_logprobs=k)) for n, k in asked]
    handles[-1].cancel()
    for (length, k), handle in list(zip(asked, handles, strict=True))[:-1]:
        told = handle.result(60).prompt_logprobs
        if k is None:
            assert told is None
            continue
        prompt = prompt_of(length)
        assert told == [None, *(logprobs(rows[length][i], prompt[i + 1], k) for i in range(length - 1))]


def test_bad_logits_in_the_middle_of_a_prompt_are_an_error() -> None:
    pair = Pair.make("equal")
    pair.target["model.embed_tokens.weight"][200] = float("nan")
    with pair.engine(max_model_len=64, num_threads=1) as engine:
        params = SamplingParams(max_tokens=2, prompt_logprobs=0)
        for strategy in ("ar", "sd"):
            with pytest.raises(NumericsError, match=r"step prefill of the target lane.*position [1-3]"):
                engine.generate([[1, 2, 200, 3]], params, strategy=strategy)
        assert engine.generate([[1, 2, 3]], params)[0].prompt_logprobs is not None


def test_kernels_refuse_them() -> None:
    with (
        Pair.make("equal", **SMALL).engine(device="interpret", max_model_len=16) as engine,
        pytest.raises(RequestError, match="prompt_logprobs are reported by the CPU only"),
    ):
        engine.generate([[1, 2]], SamplingParams(prompt_logprobs=1))


def test_special_tokens_are_shown_by_their_names() -> None:
    made = byte_tokenizer()
    made.add_special_tokens(["<one>", "<two>"])
    tokenizer = Tokenizer(made, vocab_size=288)
    with Engine(PAIR.config, PAIR.target, tokenizer=tokenizer, max_model_len=64, num_threads=1) as engine:
        bias = {256: 100.0, 257: 100.0}
        params = {"max_tokens": 6, "logit_bias": bias, "repetition_penalty": 1.5}
        [hidden] = engine.generate("ab", SamplingParams(**params))
        [shown] = engine.generate("ab", SamplingParams(**params, skip_special_tokens=False))
        names = {256: "<one>", 257: "<two>"}
        assert shown.token_ids == hidden.token_ids and set(shown.token_ids) <= names.keys()
        assert (hidden.text, shown.text) == ("", "".join(names[i] for i in shown.token_ids))


def test_an_id_that_stops_is_no_part_of_the_text() -> None:
    with Engine(
        PAIR.config, PAIR.target, tokenizer=Tokenizer(byte_tokenizer(), vocab_size=288), max_model_len=64
    ) as engine:
        bias = {97: 100.0}
        stops = SamplingParams(max_tokens=4, logit_bias=bias, stop_token_ids=[97])
        [output] = engine.generate("x", stops)
        assert (output.token_ids, output.text, output.stop_reason) == ([97], "", 97)
        shown = SamplingParams(
            max_tokens=4, logit_bias=bias, stop_token_ids=[97], include_stop_str_in_output=True
        )
        assert engine.tokenizer is not None
        assert engine.generate("x", shown)[0].text == engine.tokenizer.decode([97])
        assert "".join(chunk.text for chunk in engine.stream("x", stops)) == ""
        late = SamplingParams(max_tokens=6, logit_bias=bias, stop_token_ids=[97], min_tokens=3)
        assert engine.generate("x", late)[0].token_ids[-1] == 97
