"""What a client asks, read from the body of a completion or a chat completion.

Every sampling parameter is a field of the body, which SamplingParams checks. Some names and defaults are
OpenAI's own. A field that would change the answer and is not supported is refused, by name.
"""

from dataclasses import dataclass, field

from pearl_rt.errors import RequestError
from pearl_rt.serve.fields import FieldError, Fields
from pearl_rt.types.json import Json
from pearl_rt.types.sampling_params import SamplingParams
from pearl_rt.types.values import parameters

COMPLETION_MAX_TOKENS = 16  # OpenAI's default where the prompt is plain text
# Fields that change nothing here.
IGNORED = frozenset(
    {
        *("user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier"),
        *("prompt_cache_key", "prompt_cache_retention"),
    }
)
DEFAULTS = {"temperature": 1.0, "seed": None}  # OpenAI's: a seed is drawn where none is given
MAX_PROMPTS = 64
# What every token is compared with, while others wait.
MAX_STOPS = 16
MAX_STOP_LENGTH = 1024
MAX_STOP_IDS = 256


@dataclass(frozen=True)
class CompletionRequest:
    """One body: prompts or messages, how to sample, and how to answer.

    params        for each prompt; its n answers are params.sample(0), ...
    num_logprobs  log-probabilities to report, None for none (chat: 0 reports the token's own only)
    """

    model: str
    params: SamplingParams
    is_streamed: bool
    has_usage: bool  # a stream ends with a chunk of usage
    prompts: tuple[str | list[int], ...] = ()
    messages: tuple[Json, ...] = ()
    template_variables: Json = field(default_factory=dict)

    @property
    def num_logprobs(self) -> int | None:
        """How many likeliest tokens are reported beside each; None: nothing."""
        return self.params.logprobs


def read_completion(body: object) -> CompletionRequest:
    """Of /v1/completions. Raises FieldError or RequestError for what cannot be answered."""
    fields = Fields(body)
    prompt = fields.any("prompt")
    fields.unsupported("echo", False, "the prompt is not repeated in the answer")
    fields.unsupported("suffix", "", "these models write on from a prompt")
    fields.unsupported("best_of", fields.any("n", 1), "answers are not ranked; take n")
    logprobs = fields.integer("logprobs")
    max_tokens = fields.integer("max_tokens", COMPLETION_MAX_TOKENS)
    return _request(fields, max_tokens, logprobs, prompts=_prompts(prompt))


def read_chat(body: object) -> CompletionRequest:
    """Of /v1/chat/completions. Raises FieldError or RequestError for what cannot be answered."""
    fields = Fields(body)
    max_tokens = fields.integer("max_completion_tokens", fields.integer("max_tokens"))
    top_logprobs = fields.integer("top_logprobs")
    logprobs = (top_logprobs or 0) if fields.boolean("logprobs") else None
    if top_logprobs and logprobs is None:
        raise FieldError("top_logprobs", "top_logprobs needs logprobs: pass logprobs true")
    messages = fields.any("messages")
    if not isinstance(messages, list) or not messages:
        raise FieldError("messages", "messages must be an array with at least one message")
    fields.unsupported("tools", [], "calls of tools are not parsed")
    for name in ("tool_choice", "function_call"):
        if fields.any(name) not in (None, "none", "auto"):
            raise FieldError(name, f"{name} is not supported: calls of tools are not parsed")
    fields.unsupported("functions", [], "calls of tools are not parsed")
    fields.unsupported("modalities", ["text"], "answers are text")
    variables = fields.any("chat_template_kwargs", {})
    if not isinstance(variables, dict) or {"messages", "tools", "documents"} & variables.keys():
        raise FieldError(
            "chat_template_kwargs", "chat_template_kwargs must be an object of the template's own names"
        )
    return _request(
        fields,
        max_tokens,
        logprobs,
        messages=tuple(_message(place, message) for place, message in enumerate(messages)),
        template_variables=variables,
    )


def _request(
    fields: Fields,
    max_tokens: int | None,
    logprobs: int | None,
    *,
    prompts: tuple[str | list[int], ...] = (),
    messages: tuple[Json, ...] = (),
    template_variables: Json | None = None,
) -> CompletionRequest:
    """What both have in common."""
    model = fields.text("model") or ""
    is_streamed = fields.boolean("stream")
    stream_options = fields.inside("stream_options")
    has_usage = stream_options.boolean("include_usage")
    stream_options.end(frozenset({"include_obfuscation"}))
    form = fields.inside("response_format")
    if form.any("type", "text") != "text":
        raise FieldError("response_format", "response_format is not supported: answers are free text")
    given = {row.name: fields.any(row.name) for row in parameters(SamplingParams)}
    given = {name: value for name, value in given.items() if value is not None}
    _check_stops(given.get("stop"), given.get("stop_token_ids"))
    given |= {"max_tokens": max_tokens, "logprobs": logprobs}
    given["logit_bias"] = _logit_bias(given.get("logit_bias", {}))
    params = SamplingParams(**DEFAULTS | given)
    fields.end(IGNORED)
    return CompletionRequest(
        model, params, is_streamed, has_usage, prompts, messages, template_variables or {}
    )


def _check_stops(stop: object, stop_token_ids: object) -> None:
    """Bounds; what they are is SamplingParams' to check."""
    texts = [stop] if isinstance(stop, str) else stop if isinstance(stop, list) else []
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
    return {**message, "content": content}


def _logit_bias(bias: object) -> dict[int, float]:
    """JSON has no integer keys."""
    if not isinstance(bias, dict):
        raise FieldError("logit_bias", "logit_bias must be an object from token ids to numbers")
    try:
        return {int(key): amount for key, amount in bias.items()}
    except ValueError as error:
        raise RequestError(f"logit_bias has a key that is no token id: {error}") from None
