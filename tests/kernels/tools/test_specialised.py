"""Every launch of an engine's steps, as Triton specialises it on a GPU, without one; and how many there are.

An integer argument that is 1 is a constant to the compiler there, and one that 16 divides is known to be so:
the interpreter does neither, and the compiler's report names its arguments by hand. Here the steps run on
tensors without memory, and each kernel that a launch would compile is brought to Triton's own IR.
"""

from __future__ import annotations

from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

PROGRAM = """
import torch, triton
from triton._C.libtriton import ir
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction

from pearl_rt.checkpoint.config import ModelConfig
from pearl_rt.device.logits_processors import LogitsProcessors
from pearl_rt.device.logprob_ring import LogprobRing
from pearl_rt.device.state import DeviceState, StateSizes
from pearl_rt.device.steps import DraftSteps, TargetSteps
from pearl_rt.kernels.base import checks
from pearl_rt.model.llama import Llama, LlamaWeights, Sizes
from pearl_rt.checkpoint.shapes import tensor_shapes

TARGET, META, DTYPE = GPUTarget("cuda", 90, 32), torch.device("meta"), torch.bfloat16
BACKEND = make_backend(TARGET)
seen, launches, dependent = {}, 0, set()

class Driver:
    def get_current_target(self):
        return TARGET
    def get_current_device(self):
        return 0
    def get_current_stream(self, device):
        return 0

def lowered(*, key, fn, compile, **_):
    # What a launch would compile, once; True: Triton goes no further.
    if (fn.name, str(key)) not in seen:
        seen[fn.name, str(key)] = True
        if not LOWERS:
            return True
        chosen = {name: compile[name] for name in ("num_warps", "num_stages", "enable_fp_fusion")}
        options = BACKEND.parse_options(chosen)
        source = ASTSource(fn.jit_function, compile["signature"], compile["constants"], compile["configs"][0])
        context = ir.context()
        ir.load_dialects(context)
        BACKEND.load_dialects(context)
        codegen, modules = BACKEND.get_codegen_implementation(options), BACKEND.get_module_map()
        source.make_ir(TARGET, options, codegen, modules, context)
    return True

def launch(self, *arguments, grid, warmup, **options):
    global launches
    launches += 1
    dependent.add((self.__name__, options["PDL"], options.get("launch_pdl", False)))
    return run(self, *arguments, grid=grid, warmup=True, **options)

def llama(config, sizes):
    tensors = {n: torch.empty(s, dtype=DTYPE, device=META) for n, s in tensor_shapes(config).items()}
    weights = LlamaWeights.pack(config, tensors, dtype=DTYPE, device=META)
    return Llama(config, weights, sizes, vocab_size=config.vocab_size, pdl=PDL)

def config_of(hidden, heads, kv_heads):
    return ModelConfig(
        model_type="llama", vocab_size=VOCAB, hidden_size=hidden, intermediate_size=4 * hidden,
        num_hidden_layers=1, num_attention_heads=heads, num_key_value_heads=kv_heads,
        head_dim=hidden // heads, max_position_embeddings=512, torch_dtype="bfloat16",
    )

triton.runtime.driver.set_active(Driver())
triton.knobs.runtime.jit_cache_hook = lowered
run, JITFunction.run = JITFunction.run, launch
checks.runs_kernels = lambda device: True  # they are on no device

state = DeviceState(StateSizes(1, max(GAMMAS) + 1, 512, VOCAB, VOCAB), META)
sizes = Sizes(max(GAMMAS) + 2, 256, max(GAMMAS) + 2, 1, 512)
target = TargetSteps(llama(config_of(256, 4, 1), sizes), state)
draft = DraftSteps(llama(config_of(192, 3, 3), sizes), state)
processors, ring = LogitsProcessors(state, captured=True, pdl=PDL), LogprobRing(state, PDL)
target.prefill_chunk(), draft.prefill_chunk(), target.prefill_logits(3, 0)
variants = []
for gamma in GAMMAS:
    target.score(gamma, include_window=False), target.score(gamma, include_window=gamma > 0)
    for judge in ("coupled", "rejection"):
        for processed in (None, processors):
            target.verify(gamma, judge, processed), target.verify(gamma, judge, processed, joining=True)
            if PDL:
                ring.publish(gamma, keeps=True)
            if gamma:
                draft.draft(gamma, judge, judge == "rejection", processed)
    variants.append(len(seen))
if PDL:
    print(*(f"{name} {word} {option}" for name, word, option in sorted(dependent)), sep="\\n")
elif LOWERS:
    print(launches, len(seen), *sorted({name.rpartition(".")[2] for name, _ in seen}))
else:
    print(*variants)
    print(*(name for name, _ in list(seen)[variants[0]:]))
"""


@pytest.mark.slow
def test_every_launch_of_the_steps_compiles_as_it_is_specialised(
    compiled_python: Callable[[str], CompletedProcess[str]],
) -> None:
    done = compiled_python("VOCAB, GAMMAS, LOWERS, PDL = 4999, (0, 1, 3), True, False" + PROGRAM)
    assert done.returncode == 0, done.stdout[-3000:]
    launches, variants, *names = done.stdout.split()
    assert int(launches) > 200 and int(variants) > 40
    assert {"linear_kernel", "split_kernel", "feed_kernel", "coupled_kernel"} <= set(names)


def test_another_window_compiles_nothing(
    compiled_python: Callable[[str], CompletedProcess[str]],
) -> None:
    """Behind one of two tokens, which merges attention in one launch, and one of eight, which takes two. 16
    divides the vocabulary, as it divides all shipped ones: with another, the address of a slot's draft rows
    is a second case when 8 divides gamma."""
    done = compiled_python(
        "VOCAB, GAMMAS, LOWERS, PDL = 4992, (2, 8, 1, 3, 4, 5, 6, 7), False, False" + PROGRAM
    )
    assert done.returncode == 0, done.stdout[-3000:]
    counts, later = done.stdout.splitlines()
    first, second, *others = map(int, counts.split())
    assert 40 <= first < 60 and second <= first + 2, later
    assert others == [second] * 6, later


def test_with_pdl_every_launch_of_the_steps_is_dependent(
    compiled_python: Callable[[str], CompletedProcess[str]],
) -> None:
    """A constant of the kernel, which then waits, and the option that Triton's launcher reads."""
    done = compiled_python("VOCAB, GAMMAS, LOWERS, PDL = 4992, (0, 3), False, True" + PROGRAM)
    assert done.returncode == 0, done.stdout[-3000:]
    said = done.stdout.splitlines()
    assert len(said) >= 20 and all(line.endswith(" True True") for line in said), said


LAUNCHED = """
from collections import Counter
from pearl_rt.kernels.tools.cases import cases_of
for operator in ("filters", "sample", "verify"):
    print(operator, *set(Counter(case.name.rpartition(" ")[0] for case in cases_of(operator)).values()))
"""


def test_launches_of_a_row(compiled_python: Callable[[str], CompletedProcess[str]]) -> None:
    """At every vocabulary, with all filters, for both judges: a step is as long as its launches."""
    done = compiled_python(LAUNCHED)
    assert done.stdout.splitlines() == ["filters 2", "sample 3", "verify 2"], done.stdout
