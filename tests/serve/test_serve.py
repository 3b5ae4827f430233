"""The server, asked by the `openai` package: what comes back is what the engine gives."""

import asyncio
from collections.abc import Iterator
from itertools import groupby

import openai
import pytest
from serving import Served, serving
from tiny_pairs import Pair

from pearl_rt import Engine, SamplingParams
from pearl_rt.checkpoint.chat_template import ChatTemplate
from pearl_rt.serve.app import Settings

TEMPLATE = ChatTemplate(
    "{% for message in messages %}[{{ message.role }}]{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}{{ '!' if loud is defined and loud }}"
)
TALK = [{"role": "system", "content": "S"}, {"role": "user", "content": "hé"}]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    target, draft = Pair.make("half-right").save(tmp_path_factory.mktemp("pair"))
    with (
        Engine.from_pretrained(target, draft, max_model_len=2048, judge="coupled", max_waiting=256) as engine,
        serving(engine, Settings("tiny", TEMPLATE)) as running,
    ):
        yield running


def expected(served: Served, prompt: object, **params: object) -> list[str]:
    """The texts that the engine gives for these parameters."""
    sampling = SamplingParams(**params)  # type: ignore[arg-type]
    handles = [served.engine.submit(prompt, sampling.sample(i)) for i in range(sampling.n)]
    return [handle.result(30).text for handle in handles]


def test_a_completion(served: Served, client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt="héllo", temperature=0, max_tokens=24)
    assert [choice.text for choice in answer.choices] == expected(served, "héllo", max_tokens=24)
    assert answer.choices[0].finish_reason == "length"
    assert answer.object == "text_completion"
    assert answer.usage.model_dump(include={"prompt_tokens", "completion_tokens", "total_tokens"}) == {
        "prompt_tokens": 6,
        "completion_tokens": 24,
        "total_tokens": 30,
    }


def test_defaults_are_openais(served: Served, client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt="a")
    assert answer.usage.completion_tokens == 16
    again = client.completions.create(model="tiny", prompt="a", max_tokens=40)
    other = client.completions.create(model="tiny", prompt="a", max_tokens=40)
    assert again.choices[0].text != other.choices[0].text  # temperature 1, and a seed that is drawn


def test_several_prompts_with_several_answers(served: Served, client: openai.OpenAI) -> None:
    params = {"temperature": 0.8, "max_tokens": 12, "seed": 5, "n": 3}
    answer = client.completions.create(model="tiny", prompt=["ab", "cd"], **params)
    texts = expected(served, "ab", **params) + expected(served, "cd", **params)
    assert [choice.text for choice in answer.choices] == texts
    assert [choice.index for choice in answer.choices] == list(range(6))
    assert len(set(texts)) > 3
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 72)
    ids = client.completions.create(model="tiny", prompt=[[7, 8], [9]], temperature=0, max_tokens=3)
    assert [c.text for c in ids.choices] == [expected(served, p, max_tokens=3)[0] for p in ([7, 8], [9])]


def test_a_streamed_completion(served: Served, client: openai.OpenAI) -> None:
    params = {"temperature": 0.8, "max_tokens": 40, "seed": 9, "n": 2}
    chunks = list(
        client.completions.create(
            model="tiny", prompt="x", stream=True, stream_options={"include_usage": True}, **params
        )
    )
    texts = ["", ""]
    ends = {}
    for chunk in chunks[:-1]:
        [choice] = chunk.choices
        texts[choice.index] += choice.text
        assert choice.index not in ends
        assert chunk.usage is None
        if choice.finish_reason:
            ends[choice.index] = choice.finish_reason
    assert texts == expected(served, "x", **params)
    assert ends == {0: "length", 1: "length"}
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 80
    assert len({chunk.id for chunk in chunks}) == 1


def test_stop_strings(served: Served, client: openai.OpenAI) -> None:
    [free] = expected(served, "q", max_tokens=60)
    stop = next(free[i : i + 2] for i in range(6, 50) if "�" not in free[i : i + 2])
    for stream in (False, True):
        asked = {"model": "tiny", "prompt": "q", "temperature": 0, "max_tokens": 60, "stop": ["zzz", stop]}
        if stream:
            chunks = list(client.completions.create(stream=True, **asked))
            text = "".join(chunk.choices[0].text for chunk in chunks)
            choice = chunks[-1].choices[0]
        else:
            [choice] = client.completions.create(**asked).choices
            text = choice.text
        assert text == free[: free.index(stop)]
        assert choice.finish_reason == "stop"
        assert choice.stop_reason == stop
    kept = client.completions.create(**asked, extra_body={"include_stop_str_in_output": True})
    assert kept.choices[0].text == free[: free.index(stop) + 2]


def test_chat(served: Served, client: openai.OpenAI) -> None:
    prompt = served.engine.tokenizer.encode("[system]S[user]hé[assistant]", add_special_tokens=False)
    answer = client.chat.completions.create(model="tiny", messages=TALK, temperature=0, max_tokens=20)
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == expected(served, prompt, max_tokens=20)[0]
    assert answer.usage.prompt_tokens == len(prompt)
    parts = [TALK[0], {"role": "user", "content": [{"type": "text", "text": "hé"}]}]
    loud = client.chat.completions.create(
        model="tiny",
        messages=parts,
        temperature=0,
        max_completion_tokens=5,
        extra_body={"chat_template_kwargs": {"loud": True}, "top_k": 5},
    )
    prompt += served.engine.tokenizer.encode("!", add_special_tokens=False)
    assert loud.choices[0].message.content == expected(served, prompt, max_tokens=5)[0]


def test_streamed_chat(served: Served, client: openai.OpenAI) -> None:
    asked = {"model": "tiny", "messages": TALK, "temperature": 0.7, "max_tokens": 30, "seed": 3, "n": 2}
    whole = client.chat.completions.create(**asked)
    chunks = list(
        client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **asked)
    )
    assert [chunk.choices[0].delta.role for chunk in chunks[:2]] == ["assistant", "assistant"]
    texts = ["", ""]
    for chunk in chunks[:-1]:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]
    assert chunks[-1].usage.completion_tokens == 60
    ends = [chunk.choices[0].finish_reason for chunk in chunks[:-1]]
    assert [reason for reason, _ in groupby(sorted(filter(None, ends)))] == ["length"]


def test_logprobs(served: Served, client: openai.OpenAI) -> None:
    params = SamplingParams(max_tokens=8, logprobs=3)
    told = served.engine.submit("lp", params).result(30)
    asked = {"model": "tiny", "prompt": "lp", "temperature": 0, "max_tokens": 8, "logprobs": 3}
    [choice] = client.completions.create(**asked).choices
    own = [next(iter(entries.values())).logprob for entries in told.logprobs]
    assert choice.logprobs.token_logprobs == pytest.approx(own)
    assert len(choice.logprobs.tokens) == len(choice.logprobs.text_offset) == 8
    streamed: list[float] = []
    for chunk in client.completions.create(stream=True, **asked):
        if chunk.choices[0].logprobs:
            streamed += chunk.choices[0].logprobs.token_logprobs
    assert streamed == pytest.approx(own)
    chat = client.chat.completions.create(
        model="tiny", messages=TALK, temperature=0, max_tokens=4, logprobs=True, top_logprobs=2
    )
    content = chat.choices[0].logprobs.content
    assert len(content) == 4
    for entry in content:
        assert entry.logprob == entry.top_logprobs[0].logprob  # greedy: the likeliest
        assert len(entry.top_logprobs) == 2
        assert entry.top_logprobs[0].logprob >= entry.top_logprobs[1].logprob


def test_models_health_and_metrics(served: Served, client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "pearl_rt"
    assert served.call("GET", "/health")[::2] == (200, {"status": "ok"})
    status, headers, text = served.call("GET", "/metrics")
    assert status == 200 and headers["content-type"].startswith("text/plain")
    from prometheus_client.parser import text_string_to_metric_families

    families = {family.name: family for family in text_string_to_metric_families(text)}
    totals = served.engine.stats()["totals"]
    [generated] = families["pearl_rt_generated_tokens"].samples
    assert generated.value == totals["generated_tokens"] > 0
    assert generated.labels == {"model": "tiny"}
    ended = {s.labels["finish_reason"]: s.value for s in families["pearl_rt_requests"].samples}
    assert ended["length"] == totals["finished"]["length"]
    shares = {s.labels["state"]: s.value for s in families["pearl_rt_kv_blocks_share"].samples}
    assert shares.keys() == {"free", "used"} and sum(shares.values()) == 1
    for name in ("prefix_cache_queries", "prefix_cache_hits"):
        for family in (f"pearl_rt_{name}", f"vllm:{name}"):
            assert [s.value for s in families[family].samples] == [totals[name]]
    assert totals["prefix_cache_queries"] > 0
    counts = [s.value for s in families["pearl_rt_ttft_seconds"].samples if s.name.endswith("_count")]
    assert counts == [sum(totals["ttft"]["counts"])]
    own = {"generation_tokens": "generated_tokens", "prompt_tokens": "prompt_tokens"}
    own |= {"spec_decode_num_accepted_tokens": "accepted"}
    for name, ours in own.items():
        [sample] = families[f"vllm:{name}"].samples
        assert sample.value == totals[ours] and sample.labels == {"model_name": "tiny", "engine": "0"}
    ended = {s.labels["finished_reason"]: s.value for s in families["vllm:request_success"].samples}
    assert ended["length"] == totals["finished"]["length"]
    [usage] = families["vllm:kv_cache_usage_perc"].samples
    assert usage.value == shares["used"] and families["vllm:num_requests_running"].samples[0].value == 0
    assert [s.value for s in families["vllm:time_to_first_token_seconds"].samples][:-2] == [
        s.value for s in families["pearl_rt_ttft_seconds"].samples
    ][:-2]


def test_how_one_request_speculates(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict] = []
    submit = served.engine.submit
    monkeypatch.setattr(served.engine, "submit", lambda *a, **how: seen.append(how) or submit(*a, **how))
    asked = {"prompt": "x", "temperature": 0, "max_tokens": 20}
    plain = served.call("POST", "/v1/completions", asked)[2]["choices"][0]["text"]
    for how in (
        {"strategy": "ar"},
        {"strategy": "sd", "gamma": 2},
        {"strategy": "pearl", "judge": "coupled"},
    ):
        told = served.call("POST", "/v1/completions", {**asked, "speculative": how})[2]
        assert told["choices"][0]["text"] == plain
        assert {name: value for name, value in seen[-1].items() if value is not None} == how
    wrong: tuple[object, ...] = ({"strategy": "x"}, {"gamma": "2"}, {"gamma": -1}, {"drafter": "lookup"}, 5)
    for how in (*wrong, {"strategy": 5}, {"stop": "x"}, {"stop": 5}, {"private": 1}):
        assert served.call("POST", "/v1/completions", {**asked, "speculative": how})[0] == 400


def test_the_windows_and_the_privacy_of_one_request(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """In `speculative`, or by the names of SamplingParams; not both."""
    seen: list[SamplingParams] = []
    submit = served.engine.submit
    monkeypatch.setattr(served.engine, "submit", lambda *a, **how: seen.append(a[1]) or submit(*a, **how))
    asked = {"prompt": "x", "temperature": 0, "max_tokens": 20}
    plain = served.call("POST", "/v1/completions", asked)[2]["choices"][0]["text"]
    assert (seen[-1].draft_stop, seen[-1].private) == (None, False)
    inner = {"strategy": "sd", "stop": "confidence:0.4", "private": True}
    outer = {"speculative": {"strategy": "sd"}, "draft_stop": "confidence:0.4", "private": True}
    for body in ({"speculative": inner}, outer):
        told = served.call("POST", "/v1/completions", {**asked, **body})[2]
        assert told["choices"][0]["text"] == plain
        assert (seen[-1].draft_stop, seen[-1].private) == ("confidence:0.4", True)
    for name in ("draft_stop", "private"):
        status, _, error = served.call(
            "POST", "/v1/completions", {**asked, "speculative": inner, name: outer[name]}
        )
        assert status == 400 and error["error"]["param"] == name
        assert "two names of one field" in error["error"]["message"]


@pytest.mark.parametrize(
    ("changes", "error", "param", "said"),
    [
        ({"model": "gpt-4"}, openai.NotFoundError, None, "'gpt-4' is not served here"),
        ({"temperature": -1}, openai.BadRequestError, None, "temperature -1"),
        ({"max_tokens": 0}, openai.BadRequestError, None, "max_tokens 0"),
        ({"max_tokens": "x"}, openai.BadRequestError, "max_tokens", "must be an integer"),
        ({"n": 0}, openai.BadRequestError, None, "n 0"),
        ({"n": 500, "temperature": 1}, openai.BadRequestError, "n", "128 at most"),
        ({"prompt": ""}, openai.BadRequestError, None, "empty"),
        ({"prompt": []}, openai.BadRequestError, "prompt", "prompt must be"),
        ({"prompt": [1, 100000]}, openai.BadRequestError, None, "out of range"),
        ({"prompt": "x" * 3000}, openai.BadRequestError, None, "max_model_len"),
        ({"suffix": "x"}, openai.BadRequestError, "suffix", "not supported"),
        ({"best_of": 4}, openai.BadRequestError, "best_of", "take n"),
        ({"stop": ["x"] * 17}, openai.BadRequestError, "stop", "16 strings"),
        ({"stop": "x" * 1025}, openai.BadRequestError, "stop", "1024 characters"),
        ({"stop": [""]}, openai.BadRequestError, None, r"stop\[0\]"),
        ({"logprobs": 99}, openai.BadRequestError, None, "logprobs 99"),
        ({"logit_bias": {"x": 1}}, openai.BadRequestError, "logit_bias", "no token id"),
        (
            {"logit_bias": dict.fromkeys(map(str, range(1025)), 1)},
            openai.BadRequestError,
            "logit_bias",
            "1024",
        ),
        ({"extra_body": {"nonsense": 1}}, openai.BadRequestError, "nonsense", "leave it out"),
        ({"extra_body": {"stream_options": {"x": 1}}}, openai.BadRequestError, "x", "leave it out"),
    ],
    ids=str,
)
def test_what_cannot_be_answered(
    client: openai.OpenAI, changes: dict, error: type, param: str | None, said: str
) -> None:
    asked = {"model": "tiny", "prompt": "a", "temperature": 0, "max_tokens": 4, **changes}
    for stream in (False, True):
        with pytest.raises(error, match=said) as caught:
            client.completions.create(stream=stream, **asked)
        assert caught.value.param == param
        assert caught.value.body["message"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"messages": []}, "at least one message"),
        ({"messages": [{"content": "x"}]}, "must be an object with a role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "parts that are no text"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "yaml"}}, "response_format.type must be one of text"),
        ({"top_logprobs": 2}, "needs logprobs"),
    ],
    ids=str,
)
def test_what_chat_cannot_answer(client: openai.OpenAI, changes: dict, said: str) -> None:
    with pytest.raises(openai.BadRequestError, match=said):
        client.chat.completions.create(**{"model": "tiny", "messages": TALK, **changes})


@pytest.mark.slow
def test_two_hundred_at_once(served: Served) -> None:
    prompts = [f"prompt {n}" for n in range(200)]
    params = {"temperature": 0.8, "max_tokens": 8}
    texts = [expected(served, prompt, seed=n, **params)[0] for n, prompt in enumerate(prompts)]

    async def ask(client: openai.AsyncOpenAI, n: int) -> str:
        asked = {"model": "tiny", "prompt": prompts[n], "seed": n, **params}
        if n % 2:
            return (await client.completions.create(**asked)).choices[0].text
        stream = await client.completions.create(stream=True, **asked)
        return "".join([chunk.choices[0].text async for chunk in stream])

    async def main() -> list[str]:
        async with openai.AsyncOpenAI(
            base_url=served.url, api_key="none", max_retries=0, timeout=120
        ) as client:
            return await asyncio.gather(*(ask(client, n) for n in range(200)))

    assert asyncio.run(main()) == texts
    assert served.engine.stats()["queue"] == {"running": 0, "waiting": 0}
