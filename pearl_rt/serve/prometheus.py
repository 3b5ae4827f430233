"""The sums of an engine in Prometheus's text form. Needs prometheus_client (extra `serve`).

Knows the dictionary of Engine.stats(). Nothing is counted here: a scrape reads what the engine has summed.
"""

from collections.abc import Iterator, Mapping

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from pearl_rt.types.json import Json

CONTENT_TYPE = CONTENT_TYPE_LATEST
PREFIX = "pearl_rt"
VLLM = "vllm"
COUNTERS = {  # of totals
    "prompt_tokens": "Tokens of prompts.",
    "generated_tokens": "Tokens generated.",
    "rounds": "Verify steps.",
    "judged": "Draft tokens that the target looked at.",
    "accepted": "Draft tokens that the target accepted.",
    "prefix_cache_queries": "Tokens of prompts that were looked for in the KV cache.",
    "prefix_cache_hits": "Of these, tokens that were found.",
}
SECONDS = {  # of totals["seconds"]
    "queue": "Seconds that requests waited for a slot.",
    "decode": "Seconds from first to last token, summed over requests.",
    "draft_busy": "Of these, seconds in which the draft lane worked.",
    "target_busy": "Of these, seconds in which the target lane worked.",
}


def prometheus_text(stats: Json, model: str = "") -> bytes:
    """One scrape of Engine.stats(). `model` labels every series, if it is not empty."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Stats(stats, {"model": model} if model else {}))
    return generate_latest(registry)


class _Stats(Collector):
    """A collector of one reading."""

    def __init__(self, stats: Json, labels: Mapping[str, str]) -> None:
        self._stats = stats
        self._labels = dict(labels)

    def collect(self) -> Iterator[Metric]:
        """All families."""
        totals, queue = self._stats["totals"], self._stats["queue"]
        names, values = list(self._labels), list(self._labels.values())
        finished = CounterMetricFamily(
            f"{PREFIX}_requests", "Requests that ended, by reason.", labels=[*names, "finish_reason"]
        )
        for reason in ("stop", "length", "abort"):
            finished.add_metric([*values, reason], totals["finished"].get(reason, 0))
        yield finished
        counters = [(name, text, totals[name]) for name, text in COUNTERS.items()]
        counters += [(f"{name}_seconds", text, totals["seconds"][name]) for name, text in SECONDS.items()]
        for name, text, value in counters:
            family = CounterMetricFamily(f"{PREFIX}_{name}", text, labels=names)
            family.add_metric(values, value)
            yield family
        for name in ("judged_at", "accepted_at"):
            text = f"Draft tokens {name.removesuffix('_at')}, by their place in a window."
            family = CounterMetricFamily(f"{PREFIX}_{name}", text, labels=[*names, "position"])
            for place, value in enumerate(totals[name]):
                family.add_metric([*values, str(place)], value)
            yield family
        for name, text in (("running", "Requests that run."), ("waiting", "Requests that wait.")):
            gauge = GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=names)
            gauge.add_metric(values, queue[name])
            yield gauge
        blocks = self._stats["kv_blocks"]
        share = GaugeMetricFamily(
            f"{PREFIX}_kv_blocks_share", "KV blocks, as a share of all.", labels=[*names, "state"]
        )
        free = blocks["free"] / blocks["total"]
        share.add_metric([*values, "free"], free)
        share.add_metric([*values, "used"], 1.0 - free)
        yield share
        for name, text in (
            ("ttft", "Seconds to the first token."),
            ("tpot", "Seconds a token after the first."),
        ):
            yield _histogram(f"{PREFIX}_{name}_seconds", text, totals[name], self._labels)
        yield from _as_vllm(self._stats, self._labels.get("model", ""))


def _as_vllm(stats: Json, model: str) -> Iterator[Metric]:
    """The same figures under vLLM's names, where they mean the same: for dashboards that exist."""
    labels = {"model_name": model, "engine": "0"}
    names, values = list(labels), list(labels.values())
    totals, queue, blocks = stats["totals"], stats["queue"], stats["kv_blocks"]
    for gauge, text, value in (
        ("num_requests_running", "Requests that run.", queue["running"]),
        ("num_requests_waiting", "Requests that wait.", queue["waiting"]),
        ("kv_cache_usage_perc", "Used KV blocks, 1 is all.", 1.0 - blocks["free"] / blocks["total"]),
    ):
        family = GaugeMetricFamily(f"{VLLM}:{gauge}", text, labels=names)
        family.add_metric(values, value)
        yield family
    for counter, text, value in (
        ("prompt_tokens", COUNTERS["prompt_tokens"], totals["prompt_tokens"]),
        ("generation_tokens", COUNTERS["generated_tokens"], totals["generated_tokens"]),
        ("spec_decode_num_accepted_tokens", COUNTERS["accepted"], totals["accepted"]),
        ("prefix_cache_queries", COUNTERS["prefix_cache_queries"], totals["prefix_cache_queries"]),
        ("prefix_cache_hits", COUNTERS["prefix_cache_hits"], totals["prefix_cache_hits"]),
    ):
        counted = CounterMetricFamily(f"{VLLM}:{counter}", text, labels=names)
        counted.add_metric(values, value)
        yield counted
    places = CounterMetricFamily(
        f"{VLLM}:spec_decode_num_accepted_tokens_per_pos", "By place.", labels=[*names, "position"]
    )
    for place, value in enumerate(totals["accepted_at"]):
        places.add_metric([*values, str(place)], value)
    yield places
    ended = CounterMetricFamily(
        f"{VLLM}:request_success", "Requests that ended, by reason.", labels=[*names, "finished_reason"]
    )
    for reason in ("stop", "length", "abort"):
        ended.add_metric([*values, reason], totals["finished"].get(reason, 0))
    yield ended
    for name, text, own in (
        ("time_to_first_token_seconds", "Seconds to the first token.", "ttft"),
        ("request_time_per_output_token_seconds", "Seconds a token after the first.", "tpot"),
    ):
        yield _histogram(f"{VLLM}:{name}", text, totals[own], labels)


def _histogram(name: str, text: str, counted: Json, labels: Mapping[str, str]) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, text, labels=list(labels))
    buckets, seen = [], 0
    for bound, count in zip([*counted["bounds"], "+Inf"], counted["counts"], strict=True):
        seen += count
        buckets.append((str(bound), float(seen)))
    family.add_metric(list(labels.values()), buckets=buckets, sum_value=counted["sum"])
    return family
