"""Requests of every kind for many minutes: joins, cancels, readers that fail, NaN; no wrong token, no growth.

    make soak                               20 minutes of clients, and then 5 of requests that are submitted
    python tests/soak.py --minutes 1 --seed 7

First 200 clients ask a server (tests/soak_clients.py). Then four threads submit to one engine, with a
strategy and parameters of their own each time; another engine says what the target alone writes. Exit status
1 at the first answer that differs, or if memory has grown.
"""

import argparse
import random
import resource
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), *map(str, (ROOT / "tests", ROOT / "tests" / "support"))]

from soak_clients import ClientsSoak  # noqa: E402
from tiny_pairs import Pair  # noqa: E402

from pearl_rt import Engine, NumericsError, RequestOutput, SamplingParams  # noqa: E402

LENGTH = 1024
POISON = 200  # its embedding is NaN
MOST_GROWTH = 24 << 20  # bytes, from the first tenth of the time to the end
THREADS = 4


class ReaderFailed(Exception):
    """What a reader raises in the middle of its answer."""


class Soak:
    """The engines, what was found, and the first thing that was wrong."""

    def __init__(self, seed: int) -> None:
        pair = Pair.make("half-right", max_position_embeddings=LENGTH)
        for tensors in (pair.target, pair.draft):
            tensors["model.embed_tokens.weight"][POISON] = float("nan")
        # Of four sequences one or two of the longest kind fit at once: the others wait for KV blocks.
        self.engine = pair.engine(
            max_model_len=LENGTH, max_num_seqs=4, kv_cache_tokens=LENGTH, judge="coupled", max_waiting=64
        )
        self.reference = Engine(
            pair.config,
            pair.target,
            drafter="none",
            max_model_len=LENGTH,
            judge="coupled",
            prefix_caching=False,
        )
        self.seed = seed
        self.counts: Counter[str] = Counter()
        self.wrong: str | None = None
        self._lock = threading.Lock()  # of the reference, the counts and the first wrong thing
        self._stop = threading.Event()

    def run(self, seconds: float, report: Callable[[str], object]) -> bool:
        """Whether all was well."""
        threads = [threading.Thread(target=self._work, args=(self.seed + n,)) for n in range(THREADS)]
        begin = time.monotonic()
        for thread in threads:
            thread.start()
        start_bytes = 0
        while (passed := time.monotonic() - begin) < seconds and self.wrong is None:
            time.sleep(min(1.0, seconds / 20))
            if not start_bytes and passed > seconds / 10:
                start_bytes = resident()
            report(f"{passed:.0f} s, {resident() >> 20} MiB, {dict(self.counts)}")
        self._stop.set()
        for thread in threads:
            thread.join()
        grown = resident() - start_bytes
        if self.wrong is None and grown > MOST_GROWTH:
            self.wrong = f"memory has grown by {grown >> 20} MiB"
        self.engine.close()
        self.reference.close()
        return self.wrong is None

    def _work(self, seed: int) -> None:
        rng = random.Random(seed)
        while not self._stop.is_set() and self.wrong is None:
            try:
                self._one(rng)
            except Exception as error:  # a thread that dies would only look like less work
                self._fail(f"{type(error).__name__}: {error}")

    def _one(self, rng: random.Random) -> None:
        shared = random.Random(rng.randrange(3))  # many begin alike
        prompt = [shared.randrange(1, 190) for _ in range(rng.choice([0, 0, 40, 333]))]
        prompt += [rng.randrange(1, 190) for _ in range(rng.choice([1, 2, 20, 300, 600]))]
        params = SamplingParams(
            max_tokens=rng.choice([1, 3, 20, 60]),
            temperature=rng.choice([0.0, 0.8]),
            seed=rng.randrange(2**64),
            top_p=rng.choice([1.0, 0.9]),
            repetition_penalty=rng.choice([1.0, 1.2]),
            stop_token_ids=rng.choice([(), (rng.randrange(250),)]),
            logit_bias={POISON: -100},  # or the model itself would write it
        )
        strategy = rng.choice([None, None, None, "ar", "sd", "pearl"])
        kind = rng.choice(["whole", "whole", "cancel", "reader", "nan"])
        if kind == "nan":
            prompt[rng.randrange(len(prompt))] = POISON
        handle = self.engine.submit(prompt, params, strategy=strategy)
        try:
            if kind == "cancel":
                time.sleep(rng.random() * 0.01)
                handle.cancel()
            elif kind == "reader":
                for _ in handle:
                    raise ReaderFailed
        except ReaderFailed:
            handle.cancel()
        try:
            output = handle.result(60)
        except NumericsError:
            if kind != "nan":
                raise
        else:
            if kind == "nan":
                self._fail("a prompt of NaN got an answer")
                return
            self._compare(prompt, params, output)
        with self._lock:
            self.counts[kind] += 1

    def _compare(self, prompt: list[int], params: SamplingParams, output: RequestOutput) -> None:
        with self._lock:
            [expected] = self.reference.generate(prompt, params, strategy="ar")
        found = output.token_ids
        cut = output.finish_reason == "abort"
        if found != expected.token_ids[: len(found)] or (not cut and len(found) != len(expected.token_ids)):
            self._fail(f"{params} after {prompt[:8]}..: {found}, alone {expected.token_ids}")

    def _fail(self, what: str) -> None:
        with self._lock:
            self.wrong = self.wrong or what


def resident() -> int:
    """Bytes of memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Requests of every kind for many minutes.")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clients", type=int, default=200)
    options = parser.parse_args(argv)

    def report(line: str) -> None:
        print(f"\r{line}", end="", file=sys.stderr)

    with tempfile.TemporaryDirectory() as folder:
        clients = ClientsSoak(Path(folder), options.seed, num_clients=options.clients)
        fine = clients.run(options.minutes * 60, report, resident)
    fine_words = "all answers as alone, memory flat"
    print(f"\n{options.clients} clients, {dict(clients.counts)}: {clients.wrong or fine_words}")
    print(clients.tail())
    soak = Soak(options.seed)
    fine &= soak.run(options.minutes * 15, report)
    print(f"\n{dict(soak.counts)}: {soak.wrong or fine_words}")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
