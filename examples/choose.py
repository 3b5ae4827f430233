"""Lets the engine choose its program, and prints what it chose and why as it learns.

python examples/choose.py TARGET DRAFT
"""

import sys

import pearl_rt

PROMPTS = ("class Stack:\n", "import json\n\n\ndef load(", "def quicksort(items):\n", "#include <stdio.h>\n")


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    target, draft = sys.argv[1:]
    with pearl_rt.Engine.from_pretrained(target, draft, strategy="auto") as engine:
        for prompt in PROMPTS:
            [output] = engine.generate(prompt, pearl_rt.SamplingParams(temperature=0.8, max_tokens=128))
            stats = engine.stats()
            chosen, acceptance = stats["chosen"], stats["acceptance"]["rejection"]
            print(f"{prompt!r}: {chosen['strategy']}, gamma {chosen['gamma']}, {chosen['placement']} cores:")
            expected, seen = chosen["tokens_per_second"], output.metrics.tokens_per_second
            print(f"    {expected:.0f} tokens/s expected, {seen:.0f} seen; acceptance now {acceptance:.2f}")
        print("best now:")
        for plan in stats["candidates"][:5]:
            program = f"{plan['strategy']:5} gamma {plan['gamma']:2} {plan['placement']:6}"
            print(f"  {program} {plan['tokens_per_second']:8.1f} tokens/s")


if __name__ == "__main__":
    main()
