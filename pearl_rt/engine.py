"""The front door: loads a pair once, then generates with the program that pays, and says from which figures.

Knows lanes, the planner and tokenizers; not what a round does. Everything returned or streamed is verified.

The choice of program is never a choice of text: greedy output, and sampled output with judge="coupled", are
the same bits for every strategy, window, placement and number of threads. With judge="rejection" at
temperature > 0 the distribution is the same, not the tokens. Several sequences run at once, and join and
leave between rounds: those of generate() and stream() in their caller's thread, submitted ones in the
scheduler's.
"""

import os
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any

from pearl_rt.backends.base import Lanes, PackedModel
from pearl_rt.backends.select import backend
from pearl_rt.checkpoint.compatibility import check_tokenizer, max_length, with_draft_ids
from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.checkpoint.source import DraftConfig, kind_of, load_draft_tokenizer, load_pair, pair_sources
from pearl_rt.checkpoint.tokenizer import Tokenizer
from pearl_rt.errors import ConfigError, within_limits
from pearl_rt.lowlevel.round import Round
from pearl_rt.lowlevel.round_graph import RoundGraph
from pearl_rt.scheduling.at_exit import AtExit
from pearl_rt.scheduling.batch import Batch
from pearl_rt.scheduling.chat_prompts import RENDERING, ChatPrompts
from pearl_rt.scheduling.engine_lock import EngineLock
from pearl_rt.scheduling.handle import RequestHandle
from pearl_rt.scheduling.intake import Intake
from pearl_rt.scheduling.job import Job
from pearl_rt.scheduling.scheduler import Scheduler
from pearl_rt.strategy.engine_options import EngineOptions
from pearl_rt.types.json import Json
from pearl_rt.types.outputs import GenerationInterrupted, RequestOutput, StreamChunk
from pearl_rt.types.request import Prompt, Request
from pearl_rt.types.sampling_params import SamplingParams
from pearl_rt.types.totals import hit_rate, members, worth

if TYPE_CHECKING:
    import torch

    from pearl_rt.device.gpu import Gpu
    from pearl_rt.lowlevel.pair import DevicePair


class Engine:
    """A target model, perhaps a draft, and the lanes that run them.

    The options are those of EngineOptions: there each has its range and its meaning.

    submit() may be called from any thread; generate() and stream() not from several at once, nor while
    submitted requests are in flight. `last_output` is the latest answer of these two, whole or interrupted.
    An engine is its process's: in the child of a fork whatever is asked of it raises EngineClosedError.
    """

    @within_limits()
    def __init__(
        self,
        target_config: ModelConfig,
        target_tensors: "Mapping[str, torch.Tensor]",
        draft_config: DraftConfig | None = None,
        draft_tensors: "Mapping[str, torch.Tensor] | None" = None,
        *,
        tokenizer: Tokenizer | None = None,
        draft_tokenizer: Tokenizer | None = None,
        strategy: str = "auto",
        gamma: int | None = None,
        judge: str = "rejection",
        drafter: str = "auto",
        skip_layers: Sequence[int] | None = None,
        draft_stop: str = "auto",
        draft_parallel: bool = True,
        draft_lookup: bool | None = None,
        candidates: int = 1,
        lookup_pool: int = 65536,
        device: str = "auto",
        draft_device: str | None = None,
        dtype: str = "auto",
        weights: str = "auto",
        draft_weights: str = "auto",
        placement: str = "auto",
        form: str = "events",
        rounds_ahead: int = 2,
        pdl: bool = False,
        max_memory: int | None = None,
        max_model_len: int | None = None,
        num_threads: int | None = None,
        isa: str | None = None,
        max_num_seqs: int | None = None,
        kv_cache_tokens: int | None = None,
        prefix_caching: bool = True,
        max_waiting: int = 256,
    ) -> None:
        """From tensors in memory, by their Hugging Face names. The tensors are packed, and may be dropped."""
        options = EngineOptions.of(locals())
        sources = pair_sources(
            target_config,
            target_tensors,
            draft_config,
            draft_tensors,
            dtype=options.dtype,
            weights=options.weights,
            draft_weights=options.draft_weights,
            drafter=options.drafter,
            skip_layers=options.skip_layers,
            draft_parallel=options.draft_parallel,
        )
        self._backend, self._drafter = backend(options, kind_of(draft_config, sources[-1]))
        capabilities = self._backend.capabilities(self._drafter)
        self._choice = capabilities.narrowed(
            capabilities.everything, options.strategy, options.gamma, options.placement, options.draft_stop
        )
        self._options = options
        self._tokenizer = tokenizer and tokenizer.hiding(target_config.eos_token_ids)
        sources = with_draft_ids(sources, tokenizer, draft_tokenizer, capabilities.translates_ids)
        check_tokenizer(target_config, tokenizer)
        followers = sources[:1] if capabilities.outlives_draft else sources
        self.max_model_len = max_length(options.max_model_len, [source.config for source in followers])
        lengths = [source.longest(self.max_model_len) for source in sources[1:]]
        self._draft_max_model_len = lengths[0] if lengths else None
        self._shares = sources[-1].shares
        self._kv_pool = kv_pool = self._backend.kv_pool(self.max_model_len)
        sources = [replace(source, dtype=self._backend.dtype(source)) for source in sources]
        self._backend.check_memory(sources, kv_pool, num_placements=len(self._choice.placements))
        target = self._backend.pack(sources[0], self.max_model_len)
        drafts = [
            self._backend.pack_beside(source, length, target)
            for source, length in zip(sources[1:], lengths, strict=True)
        ]
        self.target: PackedModel | None = target  # None: closed
        self.draft = drafts[0] if drafts else None
        self._engine_lock = EngineLock()
        self._batch = Batch(self._backend, target, self.draft, pool=kv_pool, engine_lock=self._engine_lock)
        self._intake = Intake(
            self._engine_lock,
            config=target_config,
            tokenizer=self._tokenizer,
            choice=self._choice,
            capabilities=capabilities,
            judge=options.judge,
            kv_pool=kv_pool,
        )
        self._ids = count()  # of requests: none is used twice
        self._scheduler = Scheduler(
            self._batch, engine_lock=self._engine_lock, ids=self._ids, max_waiting=options.max_waiting
        )
        self._chat_prompts = ChatPrompts(None, self._tokenizer)
        self.last_output: RequestOutput | None = None
        AtExit(self.close)
        for name in self._choice.placements:
            self._batch.place(name)

    @classmethod
    def from_pretrained(
        cls, target: str | os.PathLike[str], draft: str | os.PathLike[str] | None = None, **options: Any
    ) -> "Engine":
        """From checkpoint directories in the Hugging Face layout. `options` are those of Engine.

        draft may also be "self", "lookup" or "none": no directory, but what drafts. (A directory of that
        name is "./lookup".)

        Raises CheckpointError for what cannot be read, ConfigError for what cannot be run, ResourceError for
        what this machine has not got.
        """
        if draft in ("self", "lookup", "none"):
            draft, options = None, {"drafter": draft, **options}
        made = cls(
            *load_pair(target, draft),
            tokenizer=Tokenizer.from_pretrained(target),
            draft_tokenizer=load_draft_tokenizer(draft),
            **options,
        )
        made._chat_prompts = ChatPrompts(target, made.tokenizer)
        return made

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The target's tokenizer, if the engine was built with one."""
        return self._tokenizer

    @property
    def lanes(self) -> Mapping[str, Lanes]:
        """The lanes of each placement that was used, for measurements."""
        return self._batch.lanes

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        strategy: str | None = None,
        gamma: int | None = None,
        placement: str | None = None,
        judge: str | None = None,
    ) -> list[RequestOutput]:
        """One output for each prompt, or params.n of them: a text, a list of token ids, or a list of either.
        params: for all of them, or a list with one for each.

        strategy, gamma, placement and judge override the engine's own for this call. Raises RequestError for
        what cannot run, before anything has run; NumericsError if logits are NaN or infinite;
        GenerationInterrupted (a KeyboardInterrupt) on Ctrl-C, with the outputs so far.
        """
        jobs = self._intake.jobs(prompts, params, (strategy, gamma, placement, judge))
        for job in jobs:
            job.ask()
        min_results = 1 if any(job.params.stop for job in jobs) else 64
        with self._engine_lock:
            self._batch.clear()
            self.last_output = None
            waiting = deque((next(self._ids), job) for job in jobs)
            try:
                while waiting or self._batch.is_busy:
                    while waiting and self._batch.can_start(waiting[0][1]):
                        self._batch.start(*waiting.popleft(), len(waiting))
                    for _, news in self._batch.poll(1 if waiting else min_results):  # no slot stays idle
                        if isinstance(news, Exception):
                            raise news
            except KeyboardInterrupt:
                raise GenerationInterrupted(self._cut(jobs[: len(jobs) - len(waiting)])) from None
            finally:
                outputs = self._cut(jobs[: len(jobs) - len(waiting)])
                self.last_output = outputs[-1] if outputs else None
        return outputs

    def chat(
        self,
        messages: Sequence[Any],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        chat_template: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> list[RequestOutput]:
        """generate() for a conversation [{"role": ..., "content": ...}, ...], or a list of them. `more`:
        tools, add_generation_prompt and continue_final_message, as ChatTemplate.render() has them, or options
        of generate(). chat_template: Jinja; None: the checkpoint's.
        """
        variables = {**(chat_template_kwargs or {}), **{n: more.pop(n) for n in RENDERING if n in more}}
        return self.generate(self._chat_prompts.encoded(messages, chat_template, variables), params, **more)

    def stream(
        self,
        prompt: Prompt,
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
        job = self._intake.job("stream", "generate()", prompt, params, (strategy, gamma, placement, judge))
        return self._stream(job)

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams | None = None,
        *,
        strategy: str | None = None,
        gamma: int | None = None,
        placement: str | None = None,
        judge: str | None = None,
    ) -> RequestHandle:
        """Puts one prompt in the queue and returns at once. Arguments as in generate(); from any thread.

        Requests run first come first served. What goes wrong with one is raised by its handle and touches no
        other. Raises RequestError for what cannot run, and while generate() or a stream runs; QueueFullError
        if max_waiting requests wait.
        """
        job = self._intake.job("submit", "it for each", prompt, params, (strategy, gamma, placement, judge))
        job.ask()
        return self._scheduler.submit(job)

    def request(self, prompt: Prompt, params: SamplingParams | None = None) -> Request:
        """One prompt, a text or token ids, as a round() takes it. Errors as in generate()."""
        return self._intake.job("request", "generate()", prompt, params, (None, None, None, None)).request

    def round(
        self, strategy: str, gamma: int = 0, *, judge: str | None = None, greedy: bool = False
    ) -> Round:
        """One round of this engine's pair, as something to launch on a stream of yours: see Round.

        judge None: the engine's. The slots are those of generate(): a request of one ends what the other had
        planned. Raises ConfigError where the lanes are not on one GPU or "interpret", RequestError while a
        request runs.
        """
        with self._engine_lock:
            pair, _ = self._pair_on_one_gpu()
            judge = self._options.judge if judge is None else judge
            return Round(pair, strategy, gamma, judge=judge, greedy=greedy, guard=self._check_idle)

    def round_graph(
        self, strategy: str, gamma: int = 0, *, judge: str | None = None, greedy: bool = False
    ) -> RoundGraph:
        """round(), captured in a graph of its own: to replay, or to add to one of yours as a child node."""
        gpu = self._pair_on_one_gpu()[1]
        return RoundGraph(self.round(strategy, gamma, judge=judge, greedy=greedy), gpu)

    def stats(self) -> Json:
        """What was chosen last, what would be chosen now, and the figures behind it; sums over all requests
        (`totals`) and what is in flight (`queue`). Times are in seconds.
        """
        self._engine_lock.check_open()
        figures = self._batch.figures(self._choice)
        return {
            "strategy": self._options.strategy,
            "drafter": {
                "kind": self._drafter,
                **self._shares,
                **worth(figures["totals"]),
                "members": members(figures["totals"], self._drafter) if self._choice.looks_up else None,
            },
            **figures,
            "queue": self._scheduler.counts(),
            **self._batch.described(),
            "prefix_cache": {"is_on": self._kv_pool.prefix_caching, "hit_rate": hit_rate(figures["totals"])},
            "dtype": {n: m.dtype for n in ("target", "draft") if (m := getattr(self, n)) is not None},
            "weights": {"target": self._options.weights, "draft": self._options.draft_weights},
            "judge": self._options.judge,
            "max_model_len": self.max_model_len,
            # Past it nothing is drafted: the target goes on alone.
            "draft_max_model_len": self._draft_max_model_len,
        }

    def close(self) -> None:
        """Stops what runs, joins the threads and gives the memory back. Calling it again does nothing.

        Submitted requests in flight end with EngineClosedError, a stream with finish_reason "abort". The
        interpreter's end closes every engine. In the child of a fork nothing happens.
        """
        if not self._engine_lock.is_home:
            return
        self._engine_lock.close()
        self._scheduler.close()
        self._batch.close()
        self.target = self.draft = None

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _pair_on_one_gpu(self) -> "tuple[DevicePair, Gpu | None]":
        """What launches both models on one GPU, and that GPU."""
        self._engine_lock.check_open()
        for lanes in self._batch.lanes.values():
            if lanes.pair is not None:
                return lanes.pair, lanes.gpu
        if self._drafter == "eagle3":
            raise ConfigError(
                "a round is launched with a draft model, and this engine's draft is an EAGLE-3 head: call "
                "generate(), or take a draft model"
            )
        where = self._batch.described()["device"]
        raise ConfigError(
            f"a round is launched on one GPU, and this engine's lanes are on {where}: build it with "
            "device='cuda' and no draft_device, or with device='interpret' for tests"
        )

    def _check_idle(self) -> None:
        with self._engine_lock:
            pass

    def check_open(self) -> None:
        """Raises EngineClosedError once the engine is closed."""
        self._engine_lock.check_open()

    def _stream(self, job: Job) -> Generator[StreamChunk, None, None]:
        with self._engine_lock:
            self._batch.clear()
            self.last_output = None
            job.ask()
            try:
                self._batch.start(next(self._ids), job)
                while self._batch.is_busy:
                    for _, news in self._batch.poll():
                        if isinstance(news, Exception):
                            raise news
                        if isinstance(news, StreamChunk):
                            yield news
            finally:
                self.last_output = self._cut([job])[-1]

    def _cut(self, jobs: Sequence[Job]) -> list[RequestOutput]:
        """Ends what runs -> the outputs of jobs that were started; Ctrl-C may have hit anywhere."""
        self._batch.clear()
        return [job.output or job.finish() for job in jobs]
