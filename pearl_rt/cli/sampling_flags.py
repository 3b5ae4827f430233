"""SamplingParams as flags of a command line; SamplingParams checks their values and names the field."""

import argparse

from pearl_rt.errors import RequestError
from pearl_rt.types.sampling_params import SamplingParams

FLOATS = {
    "temperature": "0 is greedy; default 0",
    "top_p": "keep the likeliest tokens that have this mass; default 1, all",
    "min_p": "keep tokens at least this times as likely as the likeliest; default 0, all",
    "repetition_penalty": "divides logits of tokens in prompt and answer; default 1, off",
    "presence_penalty": "taken from logits of tokens in the answer, -2 to 2; default 0",
    "frequency_penalty": "the same, for each time a token is there; default 0",
}
INTEGERS = {
    "top_k": "keep the k likeliest tokens; default 0, all",
    "seed": "default 0: the same command gives the same text",
    "max_tokens": "default 128",
    "min_tokens": "tokens before which nothing ends the text; default 0",
    "logprobs": "with each token its log-probability and the k likeliest, as JSON, to stderr",
    "n": "answers, one after the other; default 1",
}


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    """One flag for each parameter; those that are not given stay SamplingParams' own."""
    for kind, flags in ((float, FLOATS), (int, INTEGERS)):
        for name, text in flags.items():
            parser.add_argument(
                f"--{name.replace('_', '-')}", type=kind, default=argparse.SUPPRESS, metavar="X", help=text
            )
    parser.add_argument(
        "--logit-bias", action="append", default=[], metavar="ID=X", help="added to a logit; may be repeated"
    )
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="ends the answer; may be repeated"
    )
    parser.add_argument(
        "--stop-token-id",
        action="append",
        type=int,
        default=[],
        metavar="ID",
        help="ends the answer; may be repeated",
    )
    parser.add_argument("--ignore-eos", action="store_true", help="go on past the end of the text")


def sampling_params(options: argparse.Namespace) -> SamplingParams:
    """Of parsed flags. Raises RequestError for a value that cannot be."""
    given = {name: getattr(options, name) for name in (*FLOATS, *INTEGERS) if hasattr(options, name)}
    return SamplingParams(
        **given,
        ignore_eos=options.ignore_eos,
        stop=options.stop,
        stop_token_ids=options.stop_token_id,
        logit_bias=dict(_bias(text) for text in options.logit_bias),
    )


def _bias(text: str) -> tuple[int, float]:
    token_id, _, amount = text.partition("=")
    try:
        return int(token_id), float(amount)
    except ValueError:
        raise RequestError(
            f"--logit-bias {text} is not ID=X: pass a token id and a number, as 42=-5"
        ) from None
