"""The endpoints, over one engine: completions, chat, responses, tokens, models, health and metrics.

Knows HTTP by Starlette; the shapes know the form of an answer, and the guard which clients may ask.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pearl_rt.checkpoint.chat_template import ChatTemplate
from pearl_rt.engine import Engine
from pearl_rt.errors import ConfigError, PearlError
from pearl_rt.scheduling.handle import RequestHandle
from pearl_rt.serve.answering import EventStream, cancel_all, encoded, outputs_of, watched
from pearl_rt.serve.chat.prompting import ChatPrompt, Prompting
from pearl_rt.serve.chat.shape import ChatShape
from pearl_rt.serve.completion_request import (
    OPENAI_DEFAULTS,
    CompletionRequest,
    read_chat,
    read_completion,
)
from pearl_rt.serve.faults import HttpError, error_response
from pearl_rt.serve.fields import FieldError, clean
from pearl_rt.serve.guard import Guard, json_body
from pearl_rt.serve.page.files import page_routes
from pearl_rt.serve.parsing.forms import Forms
from pearl_rt.serve.prometheus import CONTENT_TYPE, prometheus_text
from pearl_rt.serve.responses.request import read_responses
from pearl_rt.serve.responses.shape import ResponsesShape
from pearl_rt.serve.shapes import CompletionShape, Shape
from pearl_rt.serve.speculation.report import Report, finite
from pearl_rt.serve.tokens.request import TokenizeRequest, read_tokens
from pearl_rt.types.json import Json
from pearl_rt.types.request import check_prompt_length
from pearl_rt.types.sampling_params import SamplingParams

MAX_BODY = 4 * 2**20
MAX_ANSWERS = 128  # prompts of one body times n
MAX_LOGPROBS = 2**18  # entries of one body's answers: some hundred bytes each


@dataclass(frozen=True)
class Settings:
    """How a server answers.

    model     its name, in answers and /v1/models; a request that names another one gets 404
    template  None: there is no chat
    forms     in which the model writes calls and reasoning; None: as the template shows
    max_body  bytes of a body
    api_key   None: no client needs one
    hosts     names by which the server may be addressed; None: any
    origins   of web pages that may ask ("https://page.example", or "*"); none: no page may
    defaults  of sampling parameters, where a body has none
    """

    model: str
    template: ChatTemplate | None = None
    forms: Forms | None = None
    max_body: int = MAX_BODY
    api_key: str | None = None
    hosts: Iterable[str] | None = None
    origins: Sequence[str] = ()
    defaults: Json = field(default_factory=lambda: OPENAI_DEFAULTS)


class Service:
    """The endpoints."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        if engine.tokenizer is None:
            raise ConfigError("a server needs a tokenizer: build the engine with Engine.from_pretrained")
        self._engine = engine
        self._tokenizer = engine.tokenizer
        self._settings = settings
        self._prompting = None
        if settings.template is not None:
            forms = settings.forms or Forms.of(settings.template.whole_source)
            self._prompting = Prompting(settings.template, forms)
        self._created = int(time.time())

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        asked = await self._read(request, read_completion)
        prompts = [
            prompt if isinstance(prompt, list) else await run_in_threadpool(self._encoded, prompt)
            for prompt in asked.prompts
        ]
        shape = CompletionShape(self._settings.model, self._tokenizer, is_scored=asked.is_scored)
        if asked.echoes:
            texts = await run_in_threadpool(self._texts, asked.prompts)
            shape.echoes = [text for text in texts for _ in range(asked.params.n)]
        return await self._answer(request, asked, prompts, shape)

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        asked = await self._read(request, read_chat)
        asked, prompt, ids = await run_in_threadpool(self._prepared, asked)
        shape = ChatShape(
            self._settings.model,
            self._tokenizer,
            num_logprobs=asked.num_logprobs or 0,
            reading=prompt.reading,
        )
        return await self._answer(request, asked, [ids], shape)

    async def responses(self, request: Request) -> Response:
        """POST /v1/responses."""
        body = await json_body(request, self._settings.max_body)
        told = await run_in_threadpool(read_responses, body, self._settings.defaults)
        self._check_model(told.chat.model)
        asked, prompt, ids = await run_in_threadpool(self._prepared, told.chat)
        shape = ResponsesShape(self._settings.model, prompt.reading, len(ids), told.repeated)
        return await self._answer(request, asked, [ids], shape)

    async def tokenize(self, request: Request) -> Response:
        """POST /tokenize."""
        body = await json_body(request, self._settings.max_body)
        asked = await run_in_threadpool(TokenizeRequest.read, body)
        self._check_model(asked.model)

        def tokenized() -> Json:
            if asked.chat is not None:
                text, adds = self._chat_prompt(asked.chat).text, asked.add_special_tokens
            else:
                text, adds = asked.prompt or "", asked.add_special_tokens
            ids = self._encoded(text, add_special_tokens=adds)
            texts = [self._tokenizer.token_text(i) for i in ids] if asked.has_texts else None
            most = self._engine.max_model_len
            return {"count": len(ids), "max_model_len": most, "tokens": ids, "token_strs": texts}

        return _json_response(await run_in_threadpool(tokenized))

    async def detokenize(self, request: Request) -> Response:
        """POST /detokenize. Special tokens are told by their names."""
        body = await json_body(request, self._settings.max_body)
        model, ids = await run_in_threadpool(read_tokens, body)
        self._check_model(model)
        text = await run_in_threadpool(self._tokenizer.showing_all.decode, ids)
        return _json_response({"prompt": text})

    async def models(self, request: Request) -> Response:
        """GET /v1/models, and one of them."""
        asked = request.path_params.get("model")
        self._check_model(asked)
        model = {
            "id": self._settings.model,
            "object": "model",
            "created": self._created,
            "owned_by": "pearl_rt",
            "max_model_len": self._engine.max_model_len,
            "has_chat_template": self._prompting is not None,
        }
        return JSONResponse(model if asked else {"object": "list", "data": [model]})

    async def health(self, _: Request) -> Response:
        """GET /health: 503 once the engine is closed."""
        self._engine.check_open()
        return JSONResponse({"status": "ok"})

    async def stats(self, _: Request) -> Response:
        """GET /stats: Engine.stats(), with null for what is no number."""
        return _json_response(await run_in_threadpool(lambda: encoded(finite(self._engine.stats()))))

    async def metrics(self, _: Request) -> Response:
        """GET /metrics, for Prometheus."""
        text = await run_in_threadpool(lambda: prometheus_text(self._engine.stats(), self._settings.model))
        return Response(text, media_type=CONTENT_TYPE)

    async def _read(
        self, request: Request, read: Callable[[object, Json], CompletionRequest]
    ) -> CompletionRequest:
        body = await json_body(request, self._settings.max_body)
        asked = await run_in_threadpool(read, body, self._settings.defaults)  # schemas may be large
        self._check_model(asked.model)
        if (count := asked.params.n * max(len(asked.prompts), 1)) > MAX_ANSWERS:
            raise FieldError(
                "n", f"{count} answers were asked for: ask for {MAX_ANSWERS} at most in one body"
            )
        return asked

    def _check_model(self, asked: str | None) -> None:
        if asked and asked != self._settings.model:
            message = f"model {clean(asked)!r} is not served here: ask for {self._settings.model!r}"
            raise HttpError(404, message, "model_not_found")

    def _prepared(self, asked: CompletionRequest) -> tuple[CompletionRequest, ChatPrompt, list[int]]:
        """A chat's prompt and its ids, and the request as it runs: marks of the answer's form are shown, and
        a form begins behind the reasoning.
        """
        prompt = self._chat_prompt(asked)
        if (form := asked.params.structured_outputs) is not None and prompt.block:
            form = replace(form, reasoning=prompt.block)
            asked = replace(asked, params=replace(asked.params, structured_outputs=form))
        if any(mark in self._tokenizer.hidden.values() for mark in prompt.marks):
            asked = replace(asked, params=replace(asked.params, skip_special_tokens=False))
        return asked, prompt, self._encoded(prompt.text, add_special_tokens=False)

    def _chat_prompt(self, asked: CompletionRequest) -> ChatPrompt:
        if self._prompting is None:
            raise HttpError(400, "this model has no chat template: use /v1/completions", "no_chat_template")
        return self._prompting.prompt(
            asked.messages,
            asked.template_variables,
            asked.tool_use,
            shows_reasoning=asked.shows_reasoning,
        )

    def _encoded(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        self._tokenizer.check_length(text, self._engine.max_model_len)
        return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)

    def _texts(self, prompts: Sequence[str | list[int]]) -> list[str]:
        """What an answer repeats of each."""
        for prompt in prompts:
            if not isinstance(prompt, str):  # before a million ids are decoded
                check_prompt_length(len(prompt), self._engine.max_model_len)
        return [prompt if isinstance(prompt, str) else self._tokenizer.decode(prompt) for prompt in prompts]

    async def _answer(
        self, request: Request, asked: CompletionRequest, prompts: list[list[int]], shape: Shape
    ) -> Response:
        for prompt in prompts:  # before a million ids are checked, n times
            check_prompt_length(len(prompt), self._engine.max_model_len)
        self._check_reported(prompts, asked.params)
        num_answers = asked.params.n
        report = None
        if asked.is_reported:
            each = [prompt for prompt in prompts for _ in range(num_answers)]
            report = Report(self._tokenizer, each, has_trace=asked.has_trace)
        handles = await self._submitted(prompts, asked)
        if asked.is_streamed:
            counted = [len(prompt) for prompt in prompts for _ in range(num_answers)]
            return EventStream(
                handles,
                shape,
                has_usage=asked.has_usage,
                num_answers=num_answers,
                prompt_lengths=counted if asked.counts_usage else None,
                report=report,
            )
        async with watched(request.receive, handles):
            outputs = await outputs_of(handles)

        def whole() -> bytes:
            told = shape.whole(outputs, num_answers)
            if report is not None:
                for index, (choice, output) in enumerate(zip(told["choices"], outputs, strict=True)):
                    choice["speculation"] = report.tokens(index, output)
                told["usage"]["speculation"] = report.figures(outputs)
            return encoded(told)

        return _json_response(await run_in_threadpool(whole))

    def _check_reported(self, prompts: list[list[int]], params: SamplingParams) -> None:
        """Raises FieldError for more log-probabilities than one answer may have."""
        length, count = self._engine.max_model_len, 0
        for prompt in prompts:
            limit = length if params.max_tokens is None else params.max_tokens
            most = min(limit, length - len(prompt))
            count += 0 if params.logprobs is None else most * (1 + params.logprobs)
            count += 0 if params.prompt_logprobs is None else len(prompt) * (1 + params.prompt_logprobs)
        if (count := count * params.n) > MAX_LOGPROBS:
            raise FieldError(
                "logprobs",
                f"up to {count} log-probabilities were asked for: ask for {MAX_LOGPROBS} at most in one "
                "body, by a lower max_tokens, n or logprobs",
            )

    async def _submitted(self, prompts: list[list[int]], asked: CompletionRequest) -> list[RequestHandle]:
        """All answers, or none. In a thread: parameters and ids are checked again for each."""
        handles: list[RequestHandle] = []
        is_wanted = True

        def submit() -> None:
            for prompt in prompts:
                for index in range(asked.params.n):
                    params = asked.params.sample(index)
                    handles.append(self._engine.submit(prompt, params, **asked.speculative))
                    if not is_wanted:
                        cancel_all(handles)
                        return

        try:
            await run_in_threadpool(submit)
        except BaseException:
            is_wanted = False
            cancel_all(handles)
            raise
        return handles


def _json_response(content: Json | bytes) -> Response:
    body = content if isinstance(content, bytes) else encoded(content)
    return Response(body, media_type="application/json")


def build_app(engine: Engine, settings: Settings) -> Starlette:
    """The ASGI application. It does not own the engine: close that when the server has stopped."""
    service = Service(engine, settings)
    routes = [
        Route("/v1/completions", service.completions, methods=["POST"]),
        Route("/v1/chat/completions", service.chat, methods=["POST"]),
        Route("/v1/responses", service.responses, methods=["POST"]),
        Route("/tokenize", service.tokenize, methods=["POST"]),
        Route("/detokenize", service.detokenize, methods=["POST"]),
        Route("/v1/models", service.models),
        Route("/v1/models/{model:path}", service.models),
        Route("/health", service.health),
        Route("/metrics", service.metrics),
        Route("/stats", service.stats),
        *page_routes(),
    ]
    pages = Middleware(
        CORSMiddleware,
        allow_origins=settings.origins,
        allow_methods=("GET", "POST"),
        allow_headers=("*",),
        expose_headers=("retry-after",),
    )
    guard = Middleware(Guard, api_key=settings.api_key, hosts=settings.hosts)

    async def refused(_: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            code = error.detail.lower().replace(" ", "_")
            message = f"{error.detail}: see docs/serving.md for the endpoints"
            error = HttpError(error.status_code, message, code, error.headers)
        return error_response(error)

    handled: tuple[type[Exception], ...] = (HTTPException, HttpError, PearlError)
    return Starlette(
        routes=routes,
        # What a browser asks ahead of a page's request comes without a key.
        middleware=[pages, guard] if settings.origins else [guard],
        exception_handlers=dict.fromkeys((*handled, Exception), refused),
    )
