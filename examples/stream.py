"""Streams an answer by each strategy in turn, and shows that they wrote the same.

python examples/stream.py TARGET DRAFT
"""

import sys

import pearl_rt


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    target, draft = sys.argv[1:]
    params = pearl_rt.SamplingParams(max_tokens=64)
    answers = set()
    with pearl_rt.Engine.from_pretrained(target, draft) as engine:
        for strategy in ("ar", "sd", "pearl"):
            print(f"--- {strategy}")
            text = ""
            for chunk in engine.stream("import os\n\n\ndef read_lines(path):\n", params, strategy=strategy):
                print(chunk.text, end="", flush=True)
                text += chunk.text
            metrics = engine.last_output.metrics
            print(f"\n--- {metrics.tokens_per_second:.0f} tokens/s, {metrics.rounds} rounds")
            answers.add(text)
    assert len(answers) == 1, "greedy answers are the same bits whatever the strategy"


if __name__ == "__main__":
    main()
