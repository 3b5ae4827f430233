"""The report on the answers of one body: each token with its text and its origin, and the figures of all.

Knows chunks, outputs and tokens by their text; not HTTP, and not shapes.
"""

import math
from collections import Counter
from collections.abc import Sequence

from pearl_rt.checkpoint.tokenizer import Tokenizer
from pearl_rt.types.json import Json
from pearl_rt.types.metrics import RequestMetrics
from pearl_rt.types.outputs import RequestOutput, StreamChunk
from pearl_rt.types.rounds import ORIGINS, Origin

MAX_TRACE_ROWS = 20_000  # of one answer: about a megabyte


class Report:
    """Tokens are taken in as they come, and handed out with the next event of their answer."""

    def __init__(self, tokenizer: Tokenizer, prompts: Sequence[Sequence[int]], *, has_trace: bool) -> None:
        """prompts: of each answer. has_trace: the figures of a single answer have what its lanes did."""
        self._decoders = [tokenizer.decoder(after=prompt) for prompt in prompts]
        self._waiting: list[list[Json]] = [[] for _ in prompts]
        self._has_trace = has_trace

    def add(self, index: int, chunk: StreamChunk) -> None:
        """Takes in the tokens of a chunk."""
        self._add(index, chunk.token_ids, chunk.origins, is_last=chunk.finish_reason is not None)

    def taken(self, index: int) -> list[Json]:
        """Tokens that no event had yet."""
        told, self._waiting[index] = self._waiting[index], []
        return told

    def tokens(self, index: int, output: RequestOutput) -> list[Json]:
        """All tokens of an answer."""
        self._add(index, output.token_ids, output.metrics.origins, is_last=True)
        return self.taken(index)

    def _add(self, index: int, token_ids: Sequence[int], origins: Sequence[Origin], *, is_last: bool) -> None:
        """The text of a token is what it adds to the answer: "" for a special one, and for a part of a
        character that a later one completes. The last one has what none completes.
        """
        for token_id, origin in zip(token_ids, origins, strict=True):
            text = self._decoders[index].push([token_id])
            told = {"token_id": token_id, "text": text, "origin": origin.kind, "round": origin.round}
            self._waiting[index].append(told)
        if is_last and self._waiting[index]:
            self._waiting[index][-1]["text"] += self._decoders[index].finish()

    def figures(self, outputs: Sequence[RequestOutput]) -> Json:
        """Sums over all answers; for a single one its program, times and lanes too."""
        metrics = [output.metrics for output in outputs]
        came = Counter(origin.kind for own in metrics for origin in own.origins)
        rounds, judged = sum(own.rounds for own in metrics), sum(own.judged for own in metrics)
        accepted = sum(own.accepted for own in metrics)
        later = sum(max(len(own.token_times) - 1, 0) for own in metrics)
        sums = {
            "origins": {kind: came[kind] for kind in ORIGINS},
            "rounds": rounds,
            "judged": judged,
            "accepted": accepted,
            "judged_at": _sums([own.judged_at for own in metrics]),
            "accepted_at": _sums([own.accepted_at for own in metrics]),
            "tokens_per_round": later / rounds if rounds else None,
            "acceptance_rate": accepted / judged if judged else None,
        }
        return sums if len(metrics) != 1 else sums | self._of_one(metrics[0])

    def _of_one(self, metrics: RequestMetrics) -> Json:
        found: Json = {
            "strategy": metrics.strategy,
            "gamma": metrics.gamma,
            "placement": metrics.placement,
            "queue_seconds": metrics.queue_time,
            "first_token_seconds": _finite(metrics.ttft),
            "tokens_per_second": _finite(metrics.tokens_per_second),
            "plain_tokens_per_second": 1 / metrics.plain_tpot if metrics.plain_tpot else None,
        }
        return found | ({"trace": _trace(metrics)} if self._has_trace else {})


def finite(content: Json) -> Json:
    """As JSON has it: names are strings, and NaN and infinities are null."""
    return {str(name): _finite_inside(value) for name, value in content.items()}


def _finite_inside(value: object) -> object:
    if isinstance(value, dict):
        return finite(value)
    if isinstance(value, (list, tuple)):
        return [_finite_inside(item) for item in value]
    return _finite(value) if isinstance(value, float) else value


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _sums(counts: Sequence[Sequence[int]]) -> list[int]:
    """Place by place; what is shorter ends with zeros."""
    longest = max((len(own) for own in counts), default=0)
    return [sum(own[place] for own in counts if place < len(own)) for place in range(longest)]


def _trace(metrics: RequestMetrics) -> Json:
    """Rows [lane, op, round, begin, end], in microseconds from when the request was asked for. None of a
    request that ran beside others.
    """
    rows = [
        [row.lane, row.op, row.round, *((at - metrics.start_ns) / 1e3 for at in (row.begin_ns, row.end_ns))]
        for row in metrics.trace[:MAX_TRACE_ROWS]
    ]
    return {"rows": rows, "num_left_out": max(len(metrics.trace) - MAX_TRACE_ROWS, 0)}
