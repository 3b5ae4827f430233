"""One answer to one prompt: what is asked, how it may run, and what it has got so far.

Knows round records by their fields, and programs by name; not lanes, and not the scheduler.
"""

import time
from collections.abc import Iterable, Sequence
from itertools import islice

import pearl_rt._C as _C
from pearl_rt.checkpoint.tokenizer import Tokenizer
from pearl_rt.reference.logprobs import Logprob
from pearl_rt.scheduling.text_stream import TextStream
from pearl_rt.strategy.planner import Plan
from pearl_rt.strategy.program_choice import ProgramChoice
from pearl_rt.types.metrics import TraceRow, measure
from pearl_rt.types.outputs import RequestOutput, StreamChunk, TokenLogprobs
from pearl_rt.types.request import Request
from pearl_rt.types.rounds import origins
from pearl_rt.types.sampling_params import SamplingParams

NOT_RUN = Plan("", 0, "", 0.0, 0.0)  # the program of a job that was cancelled before it ran


class Job:
    """A request that was checked, until its output is there. The batch sets plan, is_alone and request_id.

    request     as coordinators take it, but for the window
    choice      the programs that may run it
    judge       "rejection" or "coupled"
    plan        the program that runs it
    is_alone    no other job has run beside it, nor was expected to
    request_id  the scheduler's
    """

    def __init__(
        self,
        prompt: str | None,
        request: Request,
        params: SamplingParams,
        choice: ProgramChoice,
        judge: str,
        *,
        tokenizer: Tokenizer | None,
        index: int = 0,
    ) -> None:
        """prompt: None where token ids were given. index: which of the n answers to the prompt."""
        self.request, self.params = request, params
        self.choice, self.judge = choice, judge
        self.plan, self.is_alone, self.request_id = NOT_RUN, False, -1
        self.output: RequestOutput | None = None  # set by finish
        self.is_ended = False  # a verdict or a stop string has ended it; set last by add
        self._prompt = prompt
        self._index = index
        self._tokenizer = tokenizer
        self._asked_ns = self._begun_ns = 0  # set by ask, begin
        self._rounds: list[_C.RoundResult] = []
        self._texts: list[str] = []
        self._stream = self._text_stream()

    @property
    def regime(self) -> str:
        """The kind of sampling, as the chooser distinguishes them."""
        return self.judge if self.params.temperature > 0 else "greedy"

    @property
    def rounds(self) -> Sequence[_C.RoundResult]:
        """So far."""
        return self._rounds

    def ask(self) -> None:
        """The request's clock starts."""
        self._asked_ns = self._begun_ns = time.monotonic_ns()

    def begin(self) -> None:
        """The lanes are about to start on it: what passed since it was asked for was waiting."""
        self._begun_ns = time.monotonic_ns()

    def add(self, results: Sequence[_C.RoundResult]) -> StreamChunk:
        """Takes rounds, returns what they add: nothing after the end."""
        if self.is_ended:
            return StreamChunk([], "", None)
        self._rounds += results
        ids = [token_id for result in results for token_id in result.token_ids]
        before = self._stream.num_tokens
        text = self._stream.push(ids, is_end=results[-1].finish_reason == "stop")
        reason = "stop" if self._stream.stop is not None else results[-1].finish_reason or None
        if reason is not None:
            text += self._stream.finish()
        self._texts.append(text)
        self.is_ended = reason is not None
        taken = self._stream.num_tokens - before
        came = origins(results, results[0].round)[:taken]
        return StreamChunk(ids[:taken], text, reason, _logprobs(results, taken), came)

    def finish(self, trace: Iterable[TraceRow] = (), plain_tpot: float | None = None) -> RequestOutput:
        """The whole answer. One that nothing ended was interrupted, or cancelled. plain_tpot: of metrics."""
        # Ctrl-C may have hit between a read of the ring and add(): what follows the gap is no answer.
        rounds = [record for place, record in enumerate(self._rounds) if record.round == place]
        ids = [token_id for record in rounds for token_id in record.token_ids]
        if not self.is_ended:  # Ctrl-C may have hit between tokens and their text
            self._stream = self._text_stream()
            is_end = bool(rounds) and rounds[-1].finish_reason == "stop"
            self._texts = [self._stream.push(ids, is_end=is_end), self._stream.finish()]
        reason = "stop" if self._stream.stop is not None else rounds[-1].finish_reason if rounds else ""
        ids = ids[: self._stream.num_tokens]
        stop_reason: str | int | None = self._stream.stop
        if stop_reason is None and reason == "stop" and ids[-1] in self.params.stop_token_ids:
            stop_reason = ids[-1]
        self.output = RequestOutput(
            prompt=self._prompt,
            prompt_token_ids=list(self.request.prompt_ids),
            token_ids=ids,
            text="".join(self._texts),
            finish_reason=reason or "abort",
            stop_reason=stop_reason,
            metrics=measure(
                rounds,
                start_ns=self._asked_ns,
                num_prompt_tokens=len(self.request.prompt_ids),
                strategy=self.plan.strategy,
                gamma=self.plan.gamma,
                placement=self.plan.placement,
                trace=trace,
                num_tokens=len(ids),
                queue_time=(self._begun_ns - self._asked_ns) * 1e-9,
                plain_tpot=plain_tpot,
            ),
            logprobs=_logprobs(rounds, len(ids)),
            prompt_logprobs=self._prompt_logprobs(),
            index=self._index,
        )
        return self.output

    def _prompt_logprobs(self) -> list[TokenLogprobs | None] | None:
        """None if they were not asked for, or not reached."""
        if self.params.prompt_logprobs is None or not self._rounds:
            return None
        told = self._rounds[0].prompt_logprobs(len(self.request.prompt_ids))
        return [None, *map(_named, told or ())]

    def _text_stream(self) -> TextStream:
        tokenizer, params = self._tokenizer, self.params
        if tokenizer is not None and not params.skip_special_tokens:
            tokenizer = tokenizer.showing_all
        return TextStream(
            None if tokenizer is None else tokenizer.decoder(after=self.request.prompt_ids),
            params.stop,
            hidden=None if tokenizer is None else tokenizer.hidden,
            include_stop_str_in_output=params.include_stop_str_in_output,
            min_tokens=params.min_tokens,
        )


def _logprobs(rounds: Sequence[_C.RoundResult], num_tokens: int) -> list[TokenLogprobs] | None:
    """For each of the first tokens of these rounds; None if none were asked for."""
    known = [record.logprobs for record in rounds]
    if not known or None in known:
        return None
    reported = (entries for logprobs in known for entries in logprobs or ())
    return [_named(entries) for entries in islice(reported, num_tokens)]


def _named(entries: Iterable[tuple[int, float, int]]) -> TokenLogprobs:
    return {token_id: Logprob(logprob, rank) for token_id, logprob, rank in entries}
