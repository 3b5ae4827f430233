"""Every launch of an engine's steps, as Triton specialises it on a GPU, without one; and how many there are.

An integer argument that is 1 is a constant to the compiler there, and one that 16 divides is known to be so:
the interpreter does neither, and the compiler's report names its arguments by hand. Here the steps run on
tensors without memory, and each kernel that a launch would compile is brought to Triton's own IR.
"""

from __future__ import annotations

from collections.abc import Callable
from subprocess import CompletedProcess

import pytest

LOWERED = """
from triton._C.libtriton import ir
from triton.compiler import make_backend

from bench.kernel_cases.pair_launches import TARGET, PairLaunches

pair, backend = PairLaunches(4999, 3), make_backend(TARGET)
pair.prefill(3)
for gamma in (0, 1, 3):
    pair.rounds(gamma, ("coupled", "rejection"), (False, True))
variants = pair.launches.variants.values()
for variant in variants:
    options, context = backend.parse_options(variant.options), ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    codegen, modules = backend.get_codegen_implementation(options), backend.get_module_map()
    variant.source.make_ir(TARGET, options, codegen, modules, context)
print(pair.launches.count, len(variants), *sorted({variant.name for variant in variants}))
"""


@pytest.mark.slow
def test_every_launch_of_the_steps_compiles_as_it_is_specialised(
    compiled_python: Callable[[str], CompletedProcess[str]],
) -> None:
    done = compiled_python(LOWERED)
    assert done.returncode == 0, done.stdout[-3000:]
    launches, variants, *names = done.stdout.split()
    assert int(launches) > 200 and int(variants) > 34
    assert {"linear_kernel", "split_kernel", "feed_kernel", "coupled_kernel"} <= set(names)


WINDOWS = """
from bench.kernel_cases.pair_launches import PairLaunches

pair, counts = PairLaunches(4992, 16), []
pair.prefill(2)
for gamma in (2, 8, 0, 1, 3, 4, 5, 6, 7, 16):
    pair.rounds(gamma, ("coupled", "rejection"), (False, True))
    counts.append(len(pair.launches.variants))
print(*counts)
print(*(name for name, _ in list(pair.launches.variants)[counts[0]:]))
print(*sorted({name for name, _ in list(pair.launches.variants)[counts[-2]:]}))
"""


@pytest.mark.slow
def test_another_window_compiles_nothing(
    compiled_python: Callable[[str], CompletedProcess[str]],
) -> None:
    """Behind one of two tokens, which merges attention in one launch, and one of eight, in a second one.
    With both kinds of drafts: one that fills a window in one pass samples as many rows as that has.
    `ar`, which has no window, is among the later ones.

    16 divides the vocabulary, as it divides all shipped ones: with another, the address of a slot's draft
    rows is a second case when 8 divides gamma. A window of 16 is one for the judges, and no other kernel.
    """
    done = compiled_python(WINDOWS)
    assert done.returncode == 0, done.stdout[-3000:]
    counts, later, of_16 = done.stdout.splitlines()
    first, second, *others, _ = map(int, counts.split())
    assert of_16 == "coupled_kernel rejection_kernel"
    assert 34 <= first < 60 and second <= first + 1, later
    assert others == [second] * 7, later


DEPENDENT = """
from bench.kernel_cases.pair_launches import PairLaunches

pair = PairLaunches(4992, 3, pdl=True)
pair.prefill(3)
for gamma in (0, 3):
    pair.rounds(gamma, ("coupled", "rejection"), (False, True))
    pair.publish(gamma)
print(*(f"{name} {word} {option}" for name, word, option in sorted(pair.launches.dependent)), sep="\\n")
"""


@pytest.mark.slow
def test_with_pdl_every_launch_of_the_steps_is_dependent(
    compiled_python: Callable[[str], CompletedProcess[str]],
) -> None:
    """A constant of the kernel, which then waits, and the option that Triton's launcher reads."""
    done = compiled_python(DEPENDENT)
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
