"""How an engine runs: the table of its options, with name, default, range and meaning.

Engine takes them by keyword, the command line as flags. Knows names and ranges; whether a device or a pair
can do what is asked is for the back end to say.
"""

from dataclasses import dataclass, fields

from pearl_rt.checkpoint.config import MODEL_LENGTH, MOST_TOKENS
from pearl_rt.checkpoint.shapes import WEIGHT_BITS
from pearl_rt.errors import ConfigError
from pearl_rt.strategy.program import JUDGES, MAX_CANDIDATES, MAX_GAMMA, PLACEMENTS, STRATEGIES
from pearl_rt.types.draft_stop import DraftStop
from pearl_rt.types.json import Json
from pearl_rt.types.values import Boolean, Choice, Integer, Layers, Text, check_fields, parameter

GPU_NAME = r"cuda(:\d{1,3})?"
CAPTURED_FORMS = ("events", "graph")
FORMS = (*CAPTURED_FORMS, "eager")
DTYPES = ("auto", "bfloat16", "float32", "float16")
DRAFTERS = ("auto", "model", "self", "lookup", "none")
# That draft by rows of a model, with a KV cache, and perhaps behind a lookup; and of these, what can fill
# several windows of a sequence.
MODEL_DRAFTERS = ("model", "parallel", "diffusion", "self", "exit", "eagle3")
VIEW_DRAFTERS = ("self", "exit")  # whose weights are the target's, all or but for a layer
BRANCHING_DRAFTERS = ("model", "self", "exit")


@dataclass(frozen=True)
class EngineOptions:
    """How an engine runs. Checked when built; raises ConfigError with the value and the way out.

    strategy       "auto" picks the program with the best expected tokens per second before each request;
                   "ar", "sd" and "pearl" fix it
    gamma          drafts per window, 1 to 16; None: the planner's choice
    judge          at temperature > 0: "rejection" (highest acceptance) or "coupled" (tokens depend on the
                   seed and the target alone)
    drafter        what drafts: "model" (a draft model was given), "self" (the target without skip_layers;
                   no weights of its own), "lookup" (what followed the last tokens when they stood before in
                   prompt or answer; no weights; on the host, whatever the device), "none"; "auto" is the
                   draft model if one is given, else "lookup" on the CPU, else "none"
    skip_layers    layers that drafter "self" leaves out; None: those that `python -m pearl_rt search-skip`
                   has found for this target
    draft_stop     where a window of a draft model ends before gamma, on the CPU: "auto" where the planner
                   chooses windows, behind a lookup, and a row is not worth what it was measured to cost;
                   "confidence:P" behind a row
                   whose likeliest token has less than P, as 0.4; "adaedl" (or "adaedl:L", L its first
                   threshold) by the entropy of a row; "marginal" (or "marginal:C") where a row is worth less
                   than it costs, C steps of the target (weights read, unless given); "thompson" by chance,
                   with the chance that drafts stood so far; "none"
    draft_parallel  whether a draft that was made for it fills a window in one pass (pard_token in its
                   config.json, PARD) or, on the CPU, in a few (diffusion_mask_token, SpecDiff); else it
                   drafts token by token
    draft_lookup   whether a lookup drafts in front of the draft model (or exit layer, head, "self"), on the
                   CPU: a window is the lookup's where what it expects of it is worth more than the model's
                   windows have been; None: for requests whose windows the planner chooses, where it can
    candidates     windows of a sequence that begin with different tokens and are judged together, 1 to 8;
                   fewer, where the planner chooses windows and fewer are worth more for their time:
                   of a draft model, "self" or an exit layer, by strategy "sd", on "cpu" or "interpret"
    lookup_pool    tokens of earlier answers that lookup reads too, where drafts cannot change the text:
                   greedy or judge="coupled"; 0: none
    device         "cpu", "cuda", "cuda:N"; "auto": a GPU that the kernels run on, if there is one and nothing
                   of the CPU's own was asked for; "interpret": the kernels in their interpreter, for tests
    draft_device   for the draft of a target on a GPU: another GPU ("cuda:N") or "cpu"; None: the target's,
                   as "self" and an exit layer have it
    dtype          of weights and KV cache; "auto" is each checkpoint's own, but bfloat16 for float16 on
                   the CPU (and float32 on "interpret")
    weights        of the target's matrices: "int8" or "int4" rounds what is wider to 8 or 4 bits
                   in groups of 32, embedding and head to 8; "auto" keeps what the checkpoint has
    draft_weights  the same of the draft: fewer bits cost acceptance, never correctness
    placement      "shared" (both models on all cores, or on one GPU), "split" (one core for the
                   draft, the rest for the target), "devices" (with draft_device) or "auto"
    form           how a GPU's rounds are launched: "events" (two streams), "graph" (one graph a round) or
                   "eager" (kernel by kernel from Python, for checking); the same bits
    rounds_ahead   rounds that are queued on a GPU before their verdict is read
    pdl            programmatic dependent launch, on GPUs of compute capability 9.0 or more: a kernel begins
                   while the one ahead of it still runs; the same bits
    max_memory     bytes of each GPU that may be taken; None: all that is free
    max_model_len  tokens of prompt and answer; None: what the target was made for, but 4096 at most. Where
                   the draft was made for fewer, the target goes on alone; on a GPU, both are made for them
    num_threads    cores to use; None: all that this process may use
    isa            instruction set of the CPU's executor; None: the best that this machine has
    max_num_seqs   sequences that run at once; None: 8 on the CPU, 1 elsewhere
    kv_cache_tokens  tokens of KV cache for all sequences together, of each model: a request waits for as much
                   as its prompt and max_tokens may need; None: max_num_seqs times max_model_len
    prefix_caching  whether a prompt begins in the KV cache of earlier ones, as far as they agree, but for a
                   target on a GPU beside a draft on the CPU, and beside an EAGLE-3 head; the same bits either
                   way. What no sequence holds is kept until its blocks are needed
    max_waiting    submitted requests that may wait while others run
    """

    strategy: str = parameter("auto", Choice(("auto", *STRATEGIES)))
    gamma: int | None = parameter(
        None,
        Integer(
            1,
            MAX_GAMMA,
            optional=True,
            words=f"1 to {MAX_GAMMA}, None for the planner's choice, or strategy='ar' to draft nothing",
        ),
    )
    judge: str = parameter("rejection", Choice(JUDGES))
    drafter: str = parameter("auto", Choice(DRAFTERS))
    skip_layers: tuple[int, ...] | None = parameter(None, Layers())
    draft_stop: str = parameter("auto", DraftStop())
    draft_parallel: bool = parameter(True, Boolean())
    draft_lookup: bool | None = parameter(None, Boolean(optional=True))
    candidates: int = parameter(
        1, Integer(1, MAX_CANDIDATES, words=f"1 for one window of a sequence, to {MAX_CANDIDATES}")
    )
    lookup_pool: int = parameter(65536, Integer(0, 2**24, words="0 for no earlier answers, to 16777216"))
    device: str = parameter("auto", Choice(("auto", "cpu", "cuda", "cuda:N", "interpret"), GPU_NAME))
    draft_device: str | None = parameter(None, Choice(("cpu", "cuda:N"), GPU_NAME, optional=True))
    dtype: str = parameter("auto", Choice(DTYPES))
    weights: str = parameter("auto", Choice(tuple(WEIGHT_BITS)))
    draft_weights: str = parameter("auto", Choice(tuple(WEIGHT_BITS)))
    placement: str = parameter("auto", Choice(("auto", *PLACEMENTS)))
    form: str = parameter("events", Choice(FORMS))
    rounds_ahead: int = parameter(2, Integer(1, 32))
    pdl: bool = parameter(False, Boolean())
    max_memory: int | None = parameter(None, Integer(1, 2**63 - 1, optional=True))
    max_model_len: int | None = parameter(None, MODEL_LENGTH)
    num_threads: int | None = parameter(
        None, Integer(1, 2**31 - 1, optional=True, words="1 or more, or None for all cores")
    )
    isa: str | None = parameter(None, Text(optional=True))
    max_num_seqs: int | None = parameter(None, Integer(1, 256, optional=True))
    kv_cache_tokens: int | None = parameter(
        None,
        Integer(
            MODEL_LENGTH.low,
            MOST_TOKENS,
            optional=True,
            words=f"{MODEL_LENGTH.low} to {MOST_TOKENS}, or None for max_num_seqs times max_model_len",
        ),
    )
    prefix_caching: bool = parameter(True, Boolean())
    max_waiting: int = parameter(256, Integer(0, 2**31 - 1, words="0 to queue nothing, or more"))

    def __post_init__(self) -> None:
        check_fields(self, ConfigError)
        for name in ("device", "draft_device"):
            if getattr(self, name) == "cuda:N":
                raise ConfigError(f"{name} 'cuda:N' wants a number for N: pass 'cuda:0'")

    @classmethod
    def of(cls, keywords: Json) -> "EngineOptions":
        """Those among the arguments of a function, by name."""
        return cls(**{field.name: keywords[field.name] for field in fields(cls)})
