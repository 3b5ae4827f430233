"""The front door: loads a pair once, then generates with the program that pays, and says from which figures.

Knows lanes, the planner and tokenizers; not what a round does. Everything returned or streamed is verified.

The choice of program is never a choice of text: greedy output, and sampled output with judge="coupled", are
the same bits for every strategy, window, placement and number of threads. With judge="rejection" at
temperature > 0 the distribution is the same, not the tokens. Requests run one after another.
"""

import os
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pearl_rt._C as _C
from pearl_rt.chooser import Chooser
from pearl_rt.config import Environment, ModelConfig
from pearl_rt.errors import ConfigError, RequestError
from pearl_rt.lane import POLL_MS, Lanes, backend, check_memory, choose_cores
from pearl_rt.loader import load_tensors
from pearl_rt.metrics import measure
from pearl_rt.options import (
    DEVICES,
    JUDGES,
    Limits,
    Wanted,
    check_tokenizer,
    check_vocabularies,
    choice,
    max_length,
    threads,
)
from pearl_rt.outputs import GenerationInterrupted, RequestOutput, StreamChunk
from pearl_rt.planner import Plan
from pearl_rt.request import Prompt, Request, prepare_prompt, prompt_list
from pearl_rt.sampling_params import SamplingParams
from pearl_rt.tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch


class Engine:
    """A target model, perhaps a draft, and the lanes that run them.

    strategy       "auto" picks the program with the best expected tokens per second before each request;
                   "ar", "sd" and "pearl" fix it
    gamma          drafts per window, 1 to 16; None: the planner's choice
    device         "cpu", which is also "auto"; "interpret": the kernels in Triton's interpreter, for tests
    judge          at temperature > 0: "rejection" (highest acceptance) or "coupled" (tokens depend on the
                   seed and the target alone)
    dtype          of weights and KV cache; "auto" is each checkpoint's own, unless that is float16 (float32
                   on "interpret")
    placement      "shared" (all cores for both models), "split" (one core for the draft, the rest for the
                   target) or "auto"
    max_model_len  tokens of prompt and answer; None: what both models were made for, but 4096 at most
    num_threads    cores to use; None: all that this process may use
    isa            instruction set of the executor; None: the best that this machine has

    Not for use from several threads at once. `last_output` is the latest answer, whole or interrupted.
    """

    def __init__(
        self,
        target_config: ModelConfig,
        target_tensors: "Mapping[str, torch.Tensor]",
        draft_config: ModelConfig | None = None,
        draft_tensors: "Mapping[str, torch.Tensor] | None" = None,
        *,
        tokenizer: Tokenizer | None = None,
        draft_tokenizer: Tokenizer | None = None,
        strategy: str = "auto",
        gamma: int | None = None,
        judge: str = "rejection",
        device: str = "auto",
        dtype: str = "auto",
        placement: str = "auto",
        max_model_len: int | None = None,
        num_threads: int | None = None,
        isa: str | None = None,
    ) -> None:
        """From tensors in memory, by their Hugging Face names. The tensors are packed, and may be dropped."""
        environment = Environment.read()
        choice("device", device, DEVICES)
        choice("judge", judge, JUDGES)
        isa = isa or environment.isa
        if isa is not None:
            choice("isa", isa, _C.available_isas())
        cores = choose_cores(threads(num_threads, environment.num_threads))
        has_draft = draft_config is not None and draft_tensors is not None
        if not has_draft and (draft_config is not None or draft_tensors is not None):
            raise ConfigError("a draft is a configuration and tensors: pass both, or neither")
        self._limits = Limits(has_draft, len(cores))
        self._wanted = Wanted.checked(strategy, gamma, placement, self._limits)
        self._judge = judge
        self._tokenizer = tokenizer
        self._config = target_config
        parts = [("target", target_config, target_tensors)]
        if draft_config is not None and draft_tensors is not None:
            check_vocabularies(target_config, draft_config, tokenizer, draft_tokenizer)
            parts.append(("draft", draft_config, draft_tensors))
        check_tokenizer(target_config, tokenizer)
        self.max_model_len = max_length(max_model_len, [config for _, config, _ in parts])
        candidates = self._wanted.narrowed(self._limits)
        self._backend = backend(device, cores, isa)
        described = [(name, config, self._backend.dtype(name, dtype, config)) for name, config, _ in parts]
        check_memory(described, max_model_len=self.max_model_len, num_placements=len(candidates.placements))

        packed = [
            self._backend.pack(config, tensors, name=name, dtype=own, max_model_len=self.max_model_len)
            for (name, config, own), (_, _, tensors) in zip(described, parts, strict=True)
        ]
        self.target, self.draft = packed[0], packed[1] if has_draft else None
        self._lanes: dict[str, Lanes] = {}
        self._chooser = Chooser()
        self._closed = False
        self._in_use = threading.Lock()
        self.last_output: RequestOutput | None = None
        for name in candidates.placements:
            self._placed(name)

    @classmethod
    def from_pretrained(
        cls, target: str | os.PathLike[str], draft: str | os.PathLike[str] | None = None, **options: Any
    ) -> "Engine":
        """From checkpoint directories in the Hugging Face layout. `options` are those of Engine.

        Raises CheckpointError for what cannot be read, ConfigError for what cannot be run, ResourceError for
        what this machine has not got.
        """
        config, tokenizer = ModelConfig.from_pretrained(target), Tokenizer.from_pretrained(target)
        if draft is None:
            return cls(config, load_tensors(target, config), tokenizer=tokenizer, **options)
        draft_config, draft_tokenizer = ModelConfig.from_pretrained(draft), Tokenizer.from_pretrained(draft)
        return cls(
            config,
            load_tensors(target, config),
            draft_config,
            load_tensors(draft, draft_config),
            tokenizer=tokenizer,
            draft_tokenizer=draft_tokenizer,
            **options,
        )

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The target's tokenizer, if the engine was built with one."""
        return self._tokenizer

    def generate(
        self,
        prompts: Any,
        params: SamplingParams | None = None,
        *,
        strategy: str | None = None,
        gamma: int | None = None,
        placement: str | None = None,
        judge: str | None = None,
    ) -> list[RequestOutput]:
        """One output for each prompt: a text, a list of token ids, or a list of either.

        strategy, gamma, placement and judge override the engine's own for this call. Raises RequestError for
        what cannot run, before anything has run; NumericsError if logits are NaN or infinite;
        GenerationInterrupted (a KeyboardInterrupt) on Ctrl-C, with the outputs so far.
        """
        params = _checked_params(params)
        wanted = self._wanted.override(strategy, gamma, placement, self._limits)
        judge = self._judge if judge is None else choice("judge", judge, JUDGES, RequestError)
        prepared = [self._prepare(prompt, params) for prompt in prompt_list(prompts)]
        outputs: list[RequestOutput] = []
        with self._use():
            for prompt in prepared:
                answer = self._answer(prompt, params, wanted, judge, min_results=64)
                try:
                    for _ in answer:
                        pass
                except KeyboardInterrupt:
                    answer.close()
                    last = self.last_output
                    cut = [] if last is None or any(last is output for output in outputs) else [last]
                    raise GenerationInterrupted([*outputs, *cut]) from None
                assert self.last_output is not None
                outputs.append(self.last_output)
        return outputs

    def stream(
        self,
        prompt: Any,
        params: SamplingParams | None = None,
        *,
        strategy: str | None = None,
        gamma: int | None = None,
        placement: str | None = None,
        judge: str | None = None,
    ) -> Generator[StreamChunk, None, None]:
        """Chunks of one answer, each as soon as it is verified. Arguments and errors as in generate().

        The engine is in use until the iterator is exhausted or closed; `last_output` is then the answer.
        """
        params = _checked_params(params)
        wanted = self._wanted.override(strategy, gamma, placement, self._limits)
        judge = self._judge if judge is None else choice("judge", judge, JUDGES, RequestError)
        listed = prompt_list(prompt)
        if len(listed) != 1:
            raise RequestError(f"stream takes one prompt, got {len(listed)}: call generate() for several")
        return self._stream(self._prepare(listed[0], params), params, wanted, judge)

    def stats(self) -> dict[str, Any]:
        """What was chosen last, what would be chosen now, and the figures behind it. Times are in seconds."""
        self._check_open()
        return {
            "strategy": self._wanted.strategy,
            **self._chooser.described(self._wanted.narrowed(self._limits)),
            "cores": {
                name: {"target": lanes.target_cores, "draft": lanes.draft_cores if lanes.has_draft else []}
                for name, lanes in self._lanes.items()
            },
            "dtype": {
                name: model.dtype
                for name, model in (("target", self.target), ("draft", self.draft))
                if model is not None
            },
            "isa": self.target.isa,
            "judge": self._judge,
            "max_model_len": self.max_model_len,
        }

    def close(self) -> None:
        """Stops what runs, joins the threads and gives the memory back. Calling it again does nothing."""
        if self._closed:
            return
        self._closed = True
        for lanes in self._lanes.values():
            lanes.coordinator.stop()
        self._lanes = {}
        del self.target, self.draft

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _use(self) -> Iterator[None]:
        self._check_open()
        if not self._in_use.acquire(blocking=False):
            raise RequestError(
                "the engine is in use, by another thread or by a stream that was not read to its end: wait, "
                "close() the stream, or give each thread its own engine"
            )
        try:
            yield
        finally:
            self._in_use.release()

    def _check_open(self) -> None:
        if self._closed:
            raise RequestError("the engine is closed: build another one")

    def _prepare(self, prompt: Any, params: SamplingParams) -> Prompt:
        self._check_open()
        vocab_size = self._config.vocab_size
        for token_id in params.stop_token_ids:
            if token_id >= vocab_size:
                raise RequestError(
                    f"stop_token_ids has {token_id}, out of range: the vocabulary has {vocab_size} ids"
                )
        return prepare_prompt(prompt, self._tokenizer, vocab_size, self.max_model_len)

    def _stream(
        self, prompt: Prompt, params: SamplingParams, wanted: Wanted, judge: str
    ) -> Generator[StreamChunk, None, None]:
        with self._use():
            yield from self._answer(prompt, params, wanted, judge, min_results=1)

    def _answer(
        self, prompt: Prompt, params: SamplingParams, wanted: Wanted, judge: str, *, min_results: int
    ) -> Generator[StreamChunk, None, None]:
        """Runs one request. However it ends, lanes are idle and `last_output` holds what was verified."""
        self.last_output = None
        regime = judge if params.temperature > 0 else "greedy"
        candidates = wanted.narrowed(self._limits)
        for name in candidates.placements:
            self._placed(name)
        chosen = self._chooser.choose(candidates, regime)
        lanes = self._placed(chosen.placement)
        answer = _Answer(prompt, self._tokenizer)
        request = Request(
            prompt.token_ids,
            gamma=chosen.gamma,
            temperature=params.temperature,
            seed=params.seed,
            max_tokens=min(params.max_tokens, self.max_model_len),
            eos_ids=self._config.eos_token_ids,
            stop_ids=params.stop_token_ids,
            ignore_eos=params.ignore_eos,
        )
        lanes.coordinator.stop()  # a second Ctrl-C may have left it at work
        answer.start_ns = time.monotonic_ns()
        try:
            lanes.start(chosen.strategy, request, judge)
            while (results := lanes.coordinator.next(POLL_MS, min_results)) is not None:
                if results:
                    yield answer.add(results)
        finally:
            lanes.coordinator.stop()
            while (results := lanes.coordinator.next(0)) is not None:
                answer.add(results)
            self.last_output = answer.output(chosen, lanes)
            self._chooser.learn(chosen, regime, self.last_output.metrics)

    def _placed(self, placement: str) -> Lanes:
        """The lanes of a placement, built and measured when they are first needed."""
        if placement not in self._lanes:
            self._check_open()
            lanes = self._backend.lanes(placement, self.target, self.draft)
            self._chooser.times[placement] = lanes.measure()
            self._lanes[placement] = lanes
        return self._lanes[placement]


class _Answer:
    """One answer as it grows: rounds in order, and their text."""

    def __init__(self, prompt: Prompt, tokenizer: Tokenizer | None) -> None:
        self.start_ns = 0
        self._prompt = prompt
        self._tokenizer = tokenizer
        self._decoder = None if tokenizer is None else tokenizer.decoder(after=prompt.token_ids)
        self._rounds: list[Any] = []  # of _C.RoundResult
        self._texts: list[str] = []

    def add(self, results: Sequence[Any]) -> StreamChunk:
        """Takes rounds, returns what they add."""
        self._rounds += results
        ids = [token_id for result in results for token_id in result.token_ids]
        reason = results[-1].finish_reason or None
        text = ""
        if self._decoder is not None:
            text = self._decoder.push(ids)
            if reason is not None:
                text += self._decoder.finish()
        self._texts.append(text)
        return StreamChunk(ids, text, reason)

    def output(self, chosen: Plan, lanes: Lanes) -> RequestOutput:
        """The whole answer. One that no verdict ended was interrupted."""
        # Ctrl-C may have hit between a read of the ring and add(): what follows the gap is no answer.
        self._rounds = [record for place, record in enumerate(self._rounds) if record.round == place]
        reason = self._rounds[-1].finish_reason if self._rounds else ""
        ids = [token_id for record in self._rounds for token_id in record.token_ids]
        if not reason and self._tokenizer is not None:  # Ctrl-C may have hit between tokens and their text
            decoder = self._tokenizer.decoder(after=self._prompt.token_ids)
            self._texts = [decoder.push(ids), decoder.finish()]
        return RequestOutput(
            prompt=self._prompt.text,
            prompt_token_ids=list(self._prompt.token_ids),
            token_ids=ids,
            text="".join(self._texts),
            finish_reason=reason or "abort",
            metrics=measure(
                self._rounds,
                start_ns=self.start_ns,
                num_prompt_tokens=len(self._prompt.token_ids),
                strategy=chosen.strategy,
                gamma=chosen.gamma,
                placement=chosen.placement,
                trace=lanes.trace(),
            ),
        )


def _checked_params(params: SamplingParams | None) -> SamplingParams:
    if params is None:
        return SamplingParams()
    if not isinstance(params, SamplingParams):
        raise RequestError(f"params must be pearl_rt.SamplingParams, got {params!r}")
    return params
