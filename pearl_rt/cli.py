"""The command line: `python -m pearl_rt generate` streams an answer, `python -m pearl_rt info` names the
machine.

stdout carries the text and nothing else; summaries and errors, one line each, go to stderr. Exit codes: 0, 2
for what cannot be run, 130 after Ctrl-C (with what was verified printed). Importing this loads no torch.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pearl_rt.errors import ConfigError, PearlError
from pearl_rt.planner import MAX_GAMMA, PLACEMENTS, STRATEGIES
from pearl_rt.sampling_params import SamplingParams

if TYPE_CHECKING:
    from pearl_rt.outputs import RequestOutput

MIB = 2**20


def parser() -> argparse.ArgumentParser:
    """The arguments of both commands. Values are checked by the engine, whose errors name the way out."""
    top = argparse.ArgumentParser(prog="python -m pearl_rt", description="Parallel speculative decoding.")
    commands = top.add_subparsers(dest="command", required=True)
    generate = commands.add_parser("generate", help="continue a prompt, streaming verified tokens to stdout")
    generate.add_argument(
        "--target", type=Path, help="directory of the target model (config.json, safetensors)"
    )
    generate.add_argument("--draft", type=Path, help="directory of a small model with the same tokenizer")
    generate.add_argument("--prompt", required=True, help="text to continue")
    generate.add_argument("--strategy", default="auto", help=f"auto, {', '.join(STRATEGIES)}; default auto")
    generate.add_argument("--gamma", type=int, help=f"drafts per window, 1 to {MAX_GAMMA}; default: measured")
    generate.add_argument("--placement", default="auto", help=f"auto, {', '.join(PLACEMENTS)}; default auto")
    generate.add_argument("--judge", default="rejection", help="rejection or coupled; default rejection")
    generate.add_argument("--temperature", type=float, default=0.0, help="0 is greedy; default 0")
    generate.add_argument("--seed", type=int, default=0)
    generate.add_argument("--max-tokens", type=int, default=128)
    generate.add_argument("--ignore-eos", action="store_true", help="go on past the end of the text")
    generate.add_argument(
        "--dtype", default="auto", help="auto, bfloat16 or float32; default: the checkpoint's"
    )
    generate.add_argument(
        "--device",
        default="auto",
        help="auto, cpu, or interpret (the kernels in their interpreter: slow, for tests)",
    )
    generate.add_argument("--max-model-len", type=int, help="tokens of prompt and answer")
    generate.add_argument("--threads", type=int, help="cores to use; default all")
    generate.add_argument("--isa", help="instruction set of the executor; see `info`")
    generate.add_argument(
        "--stats", action="store_true", help="print as JSON, to stderr, what was chosen and why"
    )
    generate.set_defaults(run=run_generate)
    info = commands.add_parser("info", help="print the machine: instruction sets, cores, memory, bandwidth")
    info.set_defaults(run=run_info)
    return top


def run_generate(options: argparse.Namespace) -> int:
    """Streams one answer. Returns the exit code."""
    params = SamplingParams(
        temperature=options.temperature,
        max_tokens=options.max_tokens,
        seed=options.seed,
        ignore_eos=options.ignore_eos,
    )
    target = _target(options.target)

    from pearl_rt.engine import Engine

    with Engine.from_pretrained(
        target,
        options.draft,
        strategy=options.strategy,
        gamma=options.gamma,
        judge=options.judge,
        device=options.device,
        dtype=options.dtype,
        placement=options.placement,
        max_model_len=options.max_model_len,
        num_threads=options.threads,
        isa=options.isa,
    ) as engine:
        printed = 0
        interrupted = False
        stream = engine.stream(options.prompt, params)
        try:
            for chunk in stream:
                sys.stdout.write(chunk.text)
                printed += len(chunk.text)
                sys.stdout.flush()  # where a reader that is slow makes us wait, and Ctrl-C finds us
        except KeyboardInterrupt:
            interrupted = True
        finally:
            stream.close()
        output = engine.last_output
        if output is not None:
            sys.stdout.write(output.text[printed:] + "\n")
            sys.stdout.flush()
            print(summary(output), file=sys.stderr)
        if options.stats:
            print(json.dumps(engine.stats(), indent=1), file=sys.stderr)
    return 130 if interrupted else 0


def summary(output: "RequestOutput") -> str:
    """One line: how much, how fast, by which program."""
    m = output.metrics
    program = m.strategy if m.strategy == "ar" else f"{m.strategy}, gamma {m.gamma}, {m.placement} cores"
    line = f"[{len(output.token_ids)} tokens, {output.finish_reason}; {program}"
    line += f"; first after {m.ttft * 1e3:.1f} ms" if m.token_times else ""
    if len(m.token_times) > 1:
        line += f", then {m.tpot * 1e3:.2f} ms a token ({m.tokens_per_second:.1f} tokens/s)"
    if m.judged:
        line += f"; {m.acceptance_rate:.0%} of drafts accepted, {m.tokens_per_round:.2f} tokens a round"
    return line + "]"


def run_info(options: argparse.Namespace) -> int:
    """Prints what the executor finds on this machine. Returns the exit code."""
    import pearl_rt._C as _C
    from pearl_rt.lane import available_memory, choose_cores

    cores = choose_cores(None)
    bandwidth = _C.measure_bandwidth(_C.CoreSet(cores), 256 * MIB, 0.5)
    memory = available_memory()
    print(f"instruction sets  {', '.join(map(str, _C.available_isas()))} (in use: {_C.detect_isa()})")
    print(f"cores             {len(cores)} ({', '.join(map(str, cores))})")
    print(f"memory free       {'unknown' if memory is None else f'{memory / 2**30:.1f} GiB'}")
    print(f"read bandwidth    {bandwidth / 1e9:.1f} GB/s on all of them")
    print(f"at most           {bandwidth / 1e9:.1f} tokens/s for a model of 1 GB without speculation")
    return 0


def _target(target: Path | None) -> Path:
    if target is not None:
        return target
    shipped = Path("models/target")
    hint = f"; --target {shipped} --draft models/draft is the pair that ships" if shipped.is_dir() else ""
    raise ConfigError(f"--target is missing: give the directory of a model{hint}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; returns the exit code."""
    options: Any = parser().parse_args(argv)
    try:
        return int(options.run(options))
    except PearlError as error:
        print(f"pearl_rt: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("pearl_rt: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # nobody reads on; exit without a complaint
        return 141
