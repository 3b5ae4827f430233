"""What a client asks, read from the body of a completion or a chat completion.

Every sampling parameter is a field of the body, which SamplingParams checks. Some names and defaults are
OpenAI's own. A field that would change the answer and is not supported is refused, by name.
"""

import re
from dataclasses import dataclass, field, replace
from json import dumps
from pathlib import Path

from pearl_rt.checkpoint.config import read_json
from pearl_rt.errors import CheckpointError, RequestError
from pearl_rt.serve.chat.conversation import checked_messages
from pearl_rt.serve.chat.tool_use import ToolUse
from pearl_rt.serve.fields import FieldError, Fields, clean
from pearl_rt.serve.structured.response_format import read_form
from pearl_rt.types.json import Json
from pearl_rt.types.sampling_params import SamplingParams
from pearl_rt.types.structured_outputs import StructuredOutputsParams
from pearl_rt.types.values import parameters

COMPLETION_MAX_TOKENS = 16  # OpenAI's default where the prompt is plain text
# Fields that change nothing here.
IGNORED = frozenset(
    {
        *("user", "metadata", "store", "service_tier", "safety_identifier"),
        *("prompt_cache_key", "prompt_cache_retention", "reasoning_effort", "verbosity", "prediction"),
    }
)
OPENAI_DEFAULTS: Json = {"temperature": 1.0, "seed": None}  # a seed is drawn where none is given
MAX_PROMPTS = 64
# What every token is compared with, while others wait.
MAX_STOPS = 16
MAX_STOP_LENGTH = 1024
MAX_STOP_IDS = 256
MAX_BIASES = 1024
# Names that a template is given, that are fields of the body, or that are Jinja's own.
TEMPLATE_NAMES = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "self"}
)


@dataclass(frozen=True)
class CompletionRequest:
    """One body: prompts or messages, how to sample, and how to answer.

    params        for each prompt; its n answers are params.sample(0), ...
    num_logprobs  log-probabilities to report, None for none (chat: 0 reports the token's own only)
    echoes        answers begin with their prompts
    is_scored     max_tokens is 0: answers are their prompts alone; a token is generated, and dropped
    tool_use      None: there is nothing to call
    speculative   arguments of Engine.submit: strategy, gamma, judge; empty: the engine's own
    is_reported   answers tell how each token came, and usage what drafts were worth
    has_trace     and what the lanes did, for a single answer
    """

    model: str
    params: SamplingParams
    is_streamed: bool
    has_usage: bool  # a stream ends with a chunk of usage
    counts_usage: bool  # and every chunk has it, of its answer so far
    prompts: tuple[str | list[int], ...] = ()
    messages: tuple[Json, ...] = ()
    template_variables: Json = field(default_factory=dict)
    echoes: bool = False
    is_scored: bool = False
    tool_use: ToolUse | None = None
    shows_reasoning: bool = True
    speculative: Json = field(default_factory=dict)
    is_reported: bool = False
    has_trace: bool = False

    @property
    def num_logprobs(self) -> int | None:
        """How many likeliest tokens are reported beside each; None: nothing."""
        return self.params.logprobs


def sampling_defaults(directory: Path) -> Json:
    """Of a server of this checkpoint: those of its generation_config.json, and OpenAI's where it has none.
    Raises CheckpointError for a value that cannot be.
    """
    file = directory / "generation_config.json"
    told = read_json(file) if file.exists() else {}
    names = {name: name for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")}
    names["max_new_tokens"] = "max_tokens"
    given = {names[name]: told[name] for name in names if told.get(name) is not None}
    if told.get("do_sample") is False:
        given["temperature"] = 0.0
    try:
        SamplingParams(**given)
    except RequestError as error:
        raise CheckpointError(f"{file}: {error}") from None
    return OPENAI_DEFAULTS | given


def read_completion(body: object, defaults: Json = OPENAI_DEFAULTS) -> CompletionRequest:
    """Of /v1/completions. defaults: of sampling parameters. Raises FieldError or RequestError for what cannot
    be answered.
    """
    fields = Fields(body)
    prompts = _prompts(fields.any("prompt"))
    echoes = fields.boolean("echo")
    fields.unsupported("suffix", "", "these models write on from a prompt")
    logprobs = fields.integer("logprobs")
    max_tokens = fields.integer("max_tokens", defaults.get("max_tokens", COMPLETION_MAX_TOKENS))
    is_scored = echoes and max_tokens == 0
    if is_scored and fields.inside("speculative").boolean("report"):
        raise FieldError("speculative", "speculative.report needs tokens: pass max_tokens 1 or more")
    if echoes and logprobs is not None and fields.boolean("stream"):
        raise FieldError("stream", "echo with logprobs is answered as a whole: pass stream false")
    made = _request(
        fields,
        1 if is_scored else max_tokens,
        logprobs,
        defaults | ({"prompt_logprobs": logprobs} if echoes and logprobs is not None else {}),
    )
    return replace(made, prompts=prompts, echoes=echoes, is_scored=is_scored)


def read_chat(body: object, defaults: Json = OPENAI_DEFAULTS) -> CompletionRequest:
    """Of /v1/chat/completions. As read_completion."""
    fields = Fields(body)
    max_tokens = fields.integer("max_completion_tokens", fields.integer("max_tokens"))
    max_tokens = defaults.get("max_tokens") if max_tokens is None else max_tokens
    top_logprobs = fields.integer("top_logprobs")
    logprobs = (top_logprobs or 0) if fields.boolean("logprobs") else None
    if top_logprobs and logprobs is None:
        raise FieldError("top_logprobs", "top_logprobs needs logprobs: pass logprobs true")
    messages = fields.any("messages")
    if not isinstance(messages, list) or not messages:
        raise FieldError("messages", "messages must be an array with at least one message")
    tool_use = ToolUse.read(fields)
    for name, value in (("function_call", "none"), ("functions", [])):
        fields.unsupported(name, value, "it is an older form; take tools and tool_choice")
    fields.unsupported("modalities", ["text"], "answers are text")
    fields.unsupported("echo", False, "answers begin with their own text; take continue_final_message")
    variables = fields.any("chat_template_kwargs", {})
    if not isinstance(variables, dict) or TEMPLATE_NAMES & variables.keys():
        raise FieldError(
            "chat_template_kwargs", "chat_template_kwargs must be an object of the template's own names"
        )
    continues = fields.boolean("continue_final_message")
    prompts_answer = fields.boolean("add_generation_prompt", not continues)
    if continues and prompts_answer:
        raise FieldError(
            "continue_final_message",
            "continue_final_message and add_generation_prompt are two ways to go on: pass one of them",
        )
    shows_reasoning = fields.boolean("include_reasoning", True)
    made = _request(fields, max_tokens, logprobs, defaults)
    params = _forced(made.params, tool_use)
    given = {"add_generation_prompt": prompts_answer, "continue_final_message": continues, **variables}
    read = checked_messages([_message(place, message) for place, message in enumerate(messages)])
    return replace(
        made,
        params=params,
        messages=read,
        template_variables=given,
        tool_use=tool_use,
        shows_reasoning=shows_reasoning,
    )


def _request(
    fields: Fields, max_tokens: int | None, logprobs: int | None, defaults: Json
) -> CompletionRequest:
    """What both have in common."""
    fields.unsupported("best_of", fields.any("n", 1), "answers are not ranked; take n")
    model = fields.text("model") or ""
    is_streamed = fields.boolean("stream")
    stream_options = fields.inside("stream_options")
    has_usage = stream_options.boolean("include_usage")
    counts_usage = has_usage and stream_options.boolean("continuous_usage_stats")
    stream_options.any("continuous_usage_stats")
    stream_options.end(frozenset({"include_obfuscation"}))
    form = read_form(fields)
    given = {row.name: fields.any(row.name) for row in parameters(SamplingParams)}
    given = {name: value for name, value in given.items() if value is not None}
    _check_stops(given.get("stop"), given.get("stop_token_ids"))
    given |= {"max_tokens": max_tokens, "logprobs": logprobs}
    given |= {} if form is None else {"structured_outputs": form}
    given["logit_bias"] = _logit_bias(given.get("logit_bias", {}))
    inside = fields.inside("speculative")
    given |= _inner(inside, given)
    params = SamplingParams(**defaults | given)
    how = {
        "strategy": inside.text("strategy"),
        "gamma": inside.integer("gamma"),
        "judge": inside.text("judge"),
    }
    is_reported, has_trace = inside.boolean("report"), inside.boolean("trace")
    inside.end()
    fields.end(IGNORED)
    if has_trace and not is_reported:
        raise FieldError("speculative", "speculative.trace is a part of the report: pass report true too")
    return CompletionRequest(
        model,
        params,
        is_streamed,
        has_usage,
        counts_usage,
        speculative=how,
        is_reported=is_reported,
        has_trace=has_trace,
    )


def _inner(speculative: Fields, given: Json) -> Json:
    """Sampling parameters that have a second name in there."""
    found = {"draft_stop": speculative.any("stop"), "private": speculative.any("private")}
    found = {name: value for name, value in found.items() if value is not None}
    for name in found.keys() & given.keys():
        inner = name.removeprefix("draft_")
        raise FieldError(name, f"{name} and speculative.{inner} are two names of one field: pass one of them")
    return found


def _forced(params: SamplingParams, tool_use: ToolUse | None) -> SamplingParams:
    """With the form that an answer has where it must be a call."""
    if tool_use is None or (schema := tool_use.schema()) is None:
        return params
    if params.structured_outputs is not None:
        raise FieldError("tool_choice", "tool_choice and response_format ask for two forms: pass one of them")
    try:
        form = StructuredOutputsParams(json=dumps(schema))
    except RequestError as error:
        raise FieldError("tools", f"the schema of all tools: {error}") from None
    return replace(params, structured_outputs=form)


def _check_stops(stop: object, stop_token_ids: object) -> None:
    """Bounds; what they are is SamplingParams' to check."""
    if stop is not None and not isinstance(stop, (str, list)):
        raise FieldError("stop", "stop must be a string or an array of strings")
    texts = [stop] if isinstance(stop, str) else stop or []
    if len(texts) > MAX_STOPS or any(isinstance(text, str) and len(text) > MAX_STOP_LENGTH for text in texts):
        raise FieldError("stop", f"stop takes {MAX_STOPS} strings at most, of {MAX_STOP_LENGTH} characters")
    if isinstance(stop_token_ids, list) and len(stop_token_ids) > MAX_STOP_IDS:
        raise FieldError("stop_token_ids", f"stop_token_ids takes {MAX_STOP_IDS} ids at most")


def _prompts(prompt: object) -> tuple[str | list[int], ...]:
    """A text, an array of texts, an array of ids, or an array of those."""
    if isinstance(prompt, str):
        return (prompt,)
    if not isinstance(prompt, list) or not prompt:
        raise FieldError("prompt", "prompt must be a string, an array of strings, or an array of token ids")
    prompts = tuple(prompt) if all(isinstance(item, (str, list)) for item in prompt) else (prompt,)
    for one in prompts:
        if isinstance(one, list) and not all(type(item) is int for item in one):
            raise FieldError("prompt", "prompt has an array of something other than token ids")
    if len(prompts) > MAX_PROMPTS:
        raise FieldError(
            "prompt", f"prompt has {len(prompts)} prompts: send {MAX_PROMPTS} at most in one body"
        )
    return prompts


def _message(place: int, message: object) -> Json:
    """One message, its parts of text joined by line ends."""
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise FieldError(f"messages[{place}]", f"messages[{place}] must be an object with a role")
    content = message.get("content")
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, dict) else None for part in content]
        if not all(isinstance(text, str) for text in texts):
            raise FieldError(f"messages[{place}]", f"messages[{place}].content has parts that are no text")
        content = "\n".join(map(str, texts))
    if content is not None and not isinstance(content, str):
        raise FieldError(
            f"messages[{place}]", f"messages[{place}].content must be a string, or parts of text"
        )
    return {**message, "content": content} if "content" in message else message


def _logit_bias(bias: object) -> dict[int, float]:
    """JSON has no integer keys."""
    if not isinstance(bias, dict):
        raise FieldError("logit_bias", "logit_bias must be an object from token ids to numbers")
    if len(bias) > MAX_BIASES:
        raise FieldError("logit_bias", f"logit_bias takes {MAX_BIASES} token ids at most")
    for key in bias:
        if not re.fullmatch("0|-?[1-9][0-9]{0,18}", key):
            raise FieldError("logit_bias", f"logit_bias has a key that is no token id: {clean(key)!r}")
    return {int(key): amount for key, amount in bias.items()}
