"""Serial speculation as a loop of one's own, from pearl_rt's low-level calls.

python examples/serial_loop.py TARGET DRAFT
"""

import itertools
import sys

import torch
from tiny_pair import random_pair

import pearl_rt
from pearl_rt.checkpoint.tokenizer import Tokenizer


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    tokenizer, prompt = Tokenizer.from_pretrained(sys.argv[1]), [7, 3]
    if torch.cuda.is_available():
        prompt = tokenizer.encode("import os\n\n\ndef read_lines(path):\n")
        pair = pearl_rt.DevicePair.from_pretrained(*sys.argv[1:], gamma_max=4, max_model_len=256)
    else:
        print("no GPU: a tiny random pair in Triton's interpreter, where yours would take minutes")
        pair = pearl_rt.DevicePair.from_tensors(*random_pair(), gamma_max=4, max_model_len=14)
    pair.start([pearl_rt.Request(prompt, gamma=4, max_tokens=64)])
    pair.prefill()
    pair.verify()  # round 0: the first token is the target's alone
    for number in itertools.count():
        pair.draft()
        pair.score()
        pair.verify()  # round number + 1 is queued before the verdict of round number is read
        row = pair.wait(number)
        print(f"{row.accept_len} of {row.num_judged}: {tokenizer.decode(row.token_ids)!r}")
        if row.is_last:
            break


if __name__ == "__main__":
    main()
