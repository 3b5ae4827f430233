"""`python -m pearl_rt search-skip`: which layers `--draft self` leaves out, by text that the target writes.

Prints the best draft of each number of layers, and keeps the best of all where `--draft self` looks.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pearl_rt.cli.flags import given, target_path
from pearl_rt.errors import ConfigError, RequestError
from pearl_rt.strategy.engine_options import EngineOptions
from pearl_rt.types.sampling_params import SamplingParams
from pearl_rt.types.values import Integer

if TYPE_CHECKING:
    from pearl_rt.engine import Engine

# How texts begin, of the kinds that people ask for.
STARTS = (
    "import os\nimport sys\n\n\ndef main():\n",
    "The history of the city begins",
    "Question: A train travels 60 miles in 90 minutes. How fast is it?\nAnswer:",
    "Dear Ms. Smith,\n\nthank you for your letter.",
)
TEMPERATURE, SEED = 0.8, 0  # of what the target writes
MOST_TOKENS = 1 << 20


def run_search(options: argparse.Namespace) -> int:
    """The command. Returns its exit code."""
    from pearl_rt.backends.cpu import Model, choose_cores
    from pearl_rt.backends.skip_search import search
    from pearl_rt.checkpoint.loader import loading_bar
    from pearl_rt.checkpoint.source import load_pair
    from pearl_rt.checkpoint.views.skip_cache import file_of, keep
    from pearl_rt.engine import Engine

    Integer(len(STARTS), MOST_TOKENS)("--tokens", options.tokens, ConfigError)
    target = target_path(options)
    config, tensors, _, _ = load_pair(target, None)
    if config.num_hidden_layers < 2:
        raise ConfigError(f"{target} has 1 layer: there is none that a draft could leave out")
    asked = given(options, EngineOptions) | {"device": "cpu"}
    with Engine.from_pretrained(target, "none", **asked) as engine:
        texts = _written(engine, _starts(options.prompt_file), options.tokens)
        model = engine.target
        assert isinstance(model, Model)
        cores = choose_cores(getattr(options, "num_threads", None))
        most = config.num_hidden_layers * (config.num_hidden_layers - 1) // 2
        with loading_bar("leaving layers out", most, unit=" drafts") as advance:
            found = search(model, cores, texts, tried=lambda: advance(1))
    print(f"on {sum(map(len, texts))} tokens of text that {target} wrote:")
    print("left out  agreement  weights read  gamma  expected x ar  layers")
    for draft in found:
        print(
            f"{len(draft.skipped):>8}  {draft.agreement:9.3f}  {draft.cost:12.2f}  {draft.gamma:>5}  "
            f"{draft.speed:13.2f}  {' '.join(map(str, draft.skipped))}"
        )
    best = max(found, key=lambda draft: draft.speed)
    file = file_of(config, tensors)
    keep(file, best.skipped, {"agreement": best.agreement, "weights_read": best.cost, "gamma": best.gamma})
    print(f"best: {' '.join(f'--skip-layers {layer}' for layer in best.skipped)}")
    print(f"kept in {file}, which --draft self reads")
    if best.speed <= 1:
        print("no set is expected to be faster than plain decoding: take a draft model, or lookup")
    return 0


def _starts(file: str | None) -> Sequence[str]:
    if file is None:
        return STARTS
    try:
        return [Path(file).read_text(encoding="utf-8")]
    except (OSError, ValueError) as error:
        raise RequestError(f"--prompt-file {file} cannot be read: {error}") from None


def _written(engine: "Engine", starts: Sequence[str], tokens: int) -> list[list[int]]:
    """Texts of so many tokens together, by the target, each with how it begins."""
    params = SamplingParams(
        temperature=TEMPERATURE, seed=SEED, max_tokens=-(-tokens // len(starts)), ignore_eos=True
    )
    outputs = engine.generate(list(starts), params)
    return [[*output.prompt_token_ids, *output.token_ids] for output in outputs]
