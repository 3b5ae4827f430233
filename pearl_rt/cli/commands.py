"""The command line: `python -m pearl_rt generate`, `chat`, `serve`, `plan`, `search-skip` and `info`.

stdout carries the text and nothing else; summaries and errors, one line each, go to stderr. Exit codes: 0, 2
for what cannot be run, 130 after Ctrl-C (with what was verified printed). Importing this loads no torch.
"""

import argparse
import json
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pearl_rt.checkpoint.config import Environment
from pearl_rt.cli.flags import add_engine_flags, add_flags, open_engine, sampling_params, target_path
from pearl_rt.cli.plan import Answer
from pearl_rt.cli.search_skip import run_search
from pearl_rt.cli.streams import gives_up_stdout, log_apart, note, open_stdin, prepare_stdout
from pearl_rt.errors import ConfigError, PearlError, RequestError, within_limits
from pearl_rt.types.sampling_params import SamplingParams
from pearl_rt.types.values import Integer

if TYPE_CHECKING:
    from pearl_rt.cli.chat import Conversation
    from pearl_rt.engine import Engine
    from pearl_rt.types.outputs import RequestOutput

MIB = 2**20


def _add_stats(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--stats", action="store_true", help="print as JSON, to stderr, what was chosen and why"
    )


def parser() -> argparse.ArgumentParser:
    """The arguments of all commands. Values are checked by the classes that take them, whose errors name the
    way out.
    """
    top = argparse.ArgumentParser(prog="python -m pearl_rt", description="Parallel speculative decoding.")
    commands = top.add_subparsers(dest="command", required=True)
    generate = commands.add_parser("generate", help="continue a prompt, streaming verified tokens to stdout")
    add_engine_flags(generate)
    generate.add_argument("--prompt", help="text to continue; without it, and without --prompt-file, stdin")
    generate.add_argument("--prompt-file", metavar="FILE", help="file with the text to continue; - is stdin")
    add_flags(generate, SamplingParams, but="draft_stop")  # the engine's says it
    _add_stats(generate)
    generate.set_defaults(run=run_generate)
    chat = commands.add_parser("chat", help="talk to a chat model: lines from stdin, answers to stdout")
    add_engine_flags(chat)
    add_flags(chat, SamplingParams, but="draft_stop")
    _add_stats(chat)
    chat.add_argument("--system", metavar="TEXT", help="a system message, before the first turn")
    chat.add_argument("--chat-template", type=Path, metavar="FILE", help="Jinja; default: the checkpoint's")
    chat.set_defaults(run=run_chat, max_tokens=None)
    serve = commands.add_parser("serve", help="serve completions and chat as OpenAI's API, over HTTP")
    add_engine_flags(serve)
    serve.add_argument("--host", default="127.0.0.1", help="default 127.0.0.1: this machine only")
    serve.add_argument("--port", type=int, default=8000, help="default 8000; 0: any that is free")
    serve.add_argument(
        "--api-key", help="that clients must send; default: PEARL_API_KEY, or none on loopback"
    )
    serve.add_argument("--model-name", help="by which clients ask; default: the target's name")
    serve.add_argument("--max-body", type=int, default=4 * MIB, help="bytes of a request; default 4 MiB")
    serve.add_argument(
        "--drain-seconds", type=int, default=30, help="for answers in flight at a stop; default 30"
    )
    serve.add_argument(
        "--keep-alive", type=int, default=75, metavar="S", help="seconds for an idle connection; default 75"
    )
    serve.add_argument(
        "--cors-origin",
        action="append",
        default=[],
        metavar="ORIGIN",
        help="of web pages that may ask, as https://page.example, or *; may be repeated; default: none",
    )
    serve.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another name for a server without a key: of a proxy, or a container's host; may be repeated",
    )
    serve.add_argument(
        "--proxy-headers",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="of a proxy, or its network, whose X-Forwarded-For and -Proto are believed; may be repeated",
    )
    serve.add_argument(
        "--root-path",
        default="",
        metavar="PATH",
        help="what a proxy takes from the front of each path; default: none",
    )
    serve.add_argument("--chat-template", type=Path, metavar="FILE", help="Jinja; default: the checkpoint's")
    for flag, what in (("--tool-call-parser", "calls of tools"), ("--reasoning-parser", "reasoning")):
        serve.add_argument(
            flag,
            default="auto",
            metavar="NAME",
            help=f"form in which the model writes {what}; auto: as the template shows (default); none",
        )
    serve.set_defaults(run=run_serve)
    plan = commands.add_parser("plan", help="which program would be fastest, by step times that you give")
    plan.add_argument("--target-ms", type=float, required=True, help="of one forward pass of the target")
    plan.add_argument("--draft-ms", type=float, required=True, help="of one forward pass of the draft")
    plan.add_argument("--alpha", type=float, required=True, help="share of drafts that are accepted, 0 to 1")
    plan.add_argument("--json", action="store_true", help="print the answer as JSON")
    plan.set_defaults(run=run_plan)
    search = commands.add_parser(
        "search-skip", help="find the layers that --draft self leaves out, on text that the target writes"
    )
    add_engine_flags(search, is_alone=True)
    search.add_argument("--tokens", type=int, default=512, help="of that text together; default 512")
    search.add_argument("--prompt-file", metavar="FILE", help="how it begins; default: four short texts")
    search.set_defaults(run=run_search)
    info = commands.add_parser("info", help="print the machine: instruction sets, cores, memory, bandwidth")
    info.set_defaults(run=run_info)
    return top


def run_generate(options: argparse.Namespace) -> int:
    """Streams the answers, one after the other. Returns the exit code."""
    params = sampling_params(options)
    target_path(options)
    prompt = _prompt(options)
    with open_engine(options) as engine:
        interrupted = False
        for index in range(params.n):
            interrupted = not _stream_answer(engine, prompt, params.sample(index))
            if interrupted:
                break
        if options.stats:
            note(json.dumps(engine.stats(), indent=1))
    return 130 if interrupted else 0


def run_chat(options: argparse.Namespace) -> int:
    """A question a line, until the end of stdin. Returns the exit code."""
    params = sampling_params(options)
    with _extra("chat"):
        from pearl_rt.checkpoint.chat_template import ChatTemplate
        from pearl_rt.cli.chat import Conversation
    template = ChatTemplate.from_pretrained(target_path(options), options.chat_template)
    with open_engine(options) as engine:
        conversation = Conversation(engine, template, params, system=options.system)
        note("[a question a line; /reset forgets, Ctrl-C ends an answer, Ctrl-D the chat]")
        while (line := _question()) is not None:
            if line == "/reset":
                conversation.reset()
            elif line:
                _stream_reply(conversation, line)
        if options.stats:
            note(json.dumps(engine.stats(), indent=1))
    return 0


def run_serve(options: argparse.Namespace) -> int:
    """Serves until SIGINT or SIGTERM. Returns the exit code."""
    with _extra("serve"):
        from pearl_rt.checkpoint.chat_template import ChatTemplate
        from pearl_rt.serve.app import Settings, build_app
        from pearl_rt.serve.completion_request import sampling_defaults
        from pearl_rt.serve.parsing.forms import Forms
        from pearl_rt.serve.server import Server, allowed_hosts, bound_socket, check_address, check_proxies
    api_key = options.api_key or Environment.read().api_key
    check_address(options.host, api_key)
    check_proxies(options.proxy_headers, options.root_path)
    for name, least in (("max_body", 1), ("drain_seconds", 0), ("keep_alive", 0)):
        Integer(least, 2**31 - 1)(f"--{name.replace('_', '-')}", getattr(options, name), ConfigError)
    target = target_path(options)
    try:
        template = ChatTemplate.from_pretrained(target, options.chat_template)
    except ConfigError as error:
        template = None
        note(f"[no chat: {error}]")
    source = "" if template is None else template.whole_source
    forms = Forms.of(source, options.tool_call_parser, options.reasoning_parser)
    with bound_socket(options.host, options.port) as bound:
        host = f"[{options.host}]" if ":" in options.host else options.host
        address = f"http://{host}:{bound.getsockname()[1]}"
        with open_engine(options) as engine:
            settings = Settings(
                model=options.model_name or target.resolve().name.removesuffix(".gguf"),
                template=template,
                forms=forms,
                max_body=options.max_body,
                api_key=api_key,
                hosts=allowed_hosts(options.host, api_key, options.allowed_host),
                origins=options.cors_origin,
                defaults=sampling_defaults(target),
            )
            server = Server(
                build_app(engine, settings),
                drain_seconds=options.drain_seconds,
                keep_alive_seconds=options.keep_alive,
                proxies=options.proxy_headers,
                root_path=options.root_path,
                on_listening=lambda: note(
                    f"[{settings.model} at {address}/v1; Ctrl-C stops]\n[a page to try it: {address}/]"
                ),
            )
            with log_apart():
                server.serve_until_stopped(bound)
    return 0


@contextmanager
def _extra(command: str) -> Iterator[None]:
    """Around imports of packages that only some commands need."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"`{command}` needs {error.name}, which is not installed: pip install 'pearl_rt[serve]'"
        ) from None


def _prompt(options: argparse.Namespace) -> str:
    """The text of --prompt or --prompt-file, or what stdin holds. Raises RequestError if it cannot be
    read.
    """
    if options.prompt is not None and options.prompt_file is not None:
        raise RequestError("--prompt and --prompt-file are two prompts: give one")
    if options.prompt is not None:
        return str(options.prompt)
    file = options.prompt_file or "-"
    try:
        data = open_stdin().buffer.read() if file == "-" else Path(file).read_bytes()
        return data.decode()
    except (OSError, UnicodeError) as error:
        raise RequestError(
            f"the prompt of {'stdin' if file == '-' else file} cannot be read: {error}"
        ) from None


def _question() -> str | None:
    """The next line of stdin; None at its end, or after Ctrl-C."""
    stdin = open_stdin()
    if stdin.isatty():
        note("> ", end="")
    try:
        line = stdin.readline()
    except KeyboardInterrupt:
        return None
    return line.strip() if line else None


def _stream_reply(conversation: "Conversation", line: str) -> None:
    """Prints one answer as it comes; one that does not fit gets an error line, and the chat goes on."""
    try:
        answer = conversation.ask(line)
        try:
            for text in answer:
                sys.stdout.write(text)
                sys.stdout.flush()
        except KeyboardInterrupt:
            answer.close()
        sys.stdout.write("\n")
        sys.stdout.flush()
    except RequestError as error:
        note(f"pearl_rt: {error}; /reset forgets what was said")


@contextmanager
def _unbroken() -> Iterator[None]:
    """Ctrl-C waits for the end of the block. In a thread that gets none there is nothing to do."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


def _stream_answer(engine: "Engine", prompt: str, params: SamplingParams) -> bool:
    """Prints one answer as it comes, and what it cost. False after Ctrl-C."""
    printed, whole = 0, True
    stream = engine.stream(prompt, params)
    try:
        for chunk in stream:
            with _unbroken():  # else it might be printed and not counted
                sys.stdout.write(chunk.text)
                printed += len(chunk.text)
            sys.stdout.flush()  # where a reader that is slow makes us wait, and Ctrl-C finds us
    except KeyboardInterrupt:
        whole = False
    finally:
        stream.close()
    output = engine.last_output
    if output is not None:
        sys.stdout.write(output.text[printed:] + "\n")
        sys.stdout.flush()
        note(summary(output))
        for entries in output.logprobs or ():
            note(json.dumps({token_id: list(entry) for token_id, entry in entries.items()}))
    return whole


def summary(output: "RequestOutput") -> str:
    """One line: how much, how fast, by which program."""
    m = output.metrics
    program = m.strategy if m.strategy == "ar" else f"{m.strategy}, gamma {m.gamma}, {m.placement}"
    line = f"[{len(output.token_ids)} tokens, {output.finish_reason}; {program}"
    line += f"; first after {m.ttft * 1e3:.1f} ms" if m.token_times else ""
    if len(m.token_times) > 1:
        line += f", then {m.tpot * 1e3:.2f} ms a token ({m.tokens_per_second:.1f} tokens/s)"
    if m.judged:
        line += f"; {m.acceptance_rate:.0%} of drafts accepted, {m.tokens_per_round:.2f} tokens a round"
    return line + "]"


def run_plan(options: argparse.Namespace) -> int:
    """Prints what the planner says of these figures. Returns the exit code."""
    answer = Answer.of(options.target_ms, options.draft_ms, options.alpha)
    print(json.dumps(answer.to_dict()) if options.json else answer)
    return 0


def run_info(options: argparse.Namespace) -> int:
    """Prints what the executor finds on this machine. Returns the exit code."""
    import pearl_rt._C as _C
    from pearl_rt.backends.cpu import available_memory, choose_cores

    cores = choose_cores(None)
    bandwidth = _C.measure_bandwidth(_C.CoreSet(cores), 256 * MIB, 0.5)
    memory = available_memory()
    print(f"instruction sets  {', '.join(map(str, _C.available_isas()))} (in use: {_C.detect_isa()})")
    print(f"cores             {len(cores)} ({', '.join(map(str, cores))})")
    print(f"memory free       {'unknown' if memory is None else f'{memory / 2**30:.1f} GiB'}")
    print(f"read bandwidth    {bandwidth / 1e9:.1f} GB/s on all of them")
    print(f"at most           {bandwidth / 1e9:.1f} tokens/s for a model of 1 GB without speculation")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command line; returns the exit code."""
    options = parser().parse_args(argv)
    try:
        if options.command != "serve":
            prepare_stdout()
        with warnings.catch_warnings(), within_limits():
            warnings.showwarning = lambda message, *_: note(f"[{message}]")
            code = int(options.run(options))
        if sys.stdout is not None:
            sys.stdout.flush()  # here a failure can be told
        return code
    except PearlError as error:
        note(f"pearl_rt: {' '.join(str(error).split())}")
        return 2
    except KeyboardInterrupt:
        note("pearl_rt: interrupted")
        return 130
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # the reader has closed the pipe: exit without an error
        return 141
    except OSError as error:
        if not gives_up_stdout(error):
            raise
        note(f"pearl_rt: stdout cannot be written: {error.strerror}")
        return 2
