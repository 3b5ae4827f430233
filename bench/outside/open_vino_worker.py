"""The process of one OpenVINO GenAI pipeline: `open_vino_worker.py MODEL THREADS plain|lookup`.

Runs in the Python of `make peers`, and imports nothing of ours. Each line of its input is a JSON object with
ids, count and gamma; each line of its output the new ids with ttft and seconds, or an error.
"""

import json
import os
import sys
from typing import Any, TextIO


def load(model: str, num_threads: int, *, looks_up: bool) -> Any:
    """A pipeline on the CPU for one sequence at a time."""
    import openvino_genai

    own = {"prompt_lookup": True} if looks_up else {}
    return openvino_genai.LLMPipeline(
        model, "CPU", INFERENCE_NUM_THREADS=num_threads, PERFORMANCE_HINT="LATENCY", NUM_STREAMS=1, **own
    )


def answer(pipeline: Any, ids: list[int], count: int, gamma: int) -> dict[str, Any]:
    """Greedy, past any end of text. gamma: drafts of a lookup, 0: there is none."""
    import numpy
    import openvino
    import openvino_genai

    config = openvino_genai.GenerationConfig()
    config.do_sample, config.ignore_eos, config.max_new_tokens = False, True, count
    if gamma:
        config.num_assistant_tokens, config.max_ngram_size = gamma, 3
    prompt = numpy.array([ids], dtype=numpy.int64)
    inputs = openvino_genai.TokenizedInputs(openvino.Tensor(prompt), openvino.Tensor(numpy.ones_like(prompt)))
    result = pipeline.generate(inputs, config)
    times = result.perf_metrics
    return {
        "ids": [int(token) for token in result.tokens[0]],
        "ttft": times.get_ttft().mean * 1e-3,
        "seconds": times.get_generate_duration().mean * 1e-3,
    }


def serve(model: str, num_threads: int, kind: str, out: TextIO) -> None:
    """Answers each line of the input."""

    def say(found: dict[str, Any]) -> None:
        print(json.dumps(found), file=out, flush=True)

    try:
        pipeline = load(model, num_threads, looks_up=kind == "lookup")
        from openvino_genai import __version__

        say({"version": __version__})
    except Exception as error:
        say({"error": f"{type(error).__name__}: {error}"})
        return
    for line in sys.stdin:
        try:
            say(answer(pipeline, **json.loads(line)))
        except Exception as error:
            say({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    # What the library prints must not stand between the lines.
    lines = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(sys.argv[1], int(sys.argv[2]), sys.argv[3], lines)
