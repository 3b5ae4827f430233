"""The launches that are compiled ahead of time: every operator at the shapes that it ships for.

LAUNCHES[operator](record) runs its launcher on tensors without memory, once for each configuration. Sizes of
a batch are those of one sequence where kernels do not depend on them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from pearl_rt.state import State

from ..base.shapes import MODELS, SHAPES, ModelShape
from ..forward import attention as attention_kernels
from ..forward import feed as feed_kernels
from ..forward import gate_up_silu as gate_up_kernels
from ..forward import linear as linear_kernels
from ..forward.attention_prefill import attention_prefill
from ..forward.attention_tile import PagedBatch
from ..forward.embedding import embedding
from ..forward.qkv_rope_store import qkv_rope_store
from ..forward.rms_norm import rms_norm
from ..forward.weight_tile import UNIT, WeightForm
from ..sampling import filters as filters_kernels
from ..sampling import logprobs as logprobs_kernels
from ..sampling import penalties as penalties_kernels
from ..sampling import sample as sample_kernels
from ..verify import judge as judge_kernels
from ..verify import publish_logprobs as publish_kernels
from ..verify import verify as verify_kernels
from ..verify.phases import KINDS
from ..verify.rollback import rollback
from .compile import CompileCase
from .head_cases import head_input_launches, keep_rows_launches
from .record import META, Recorder, tensor

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
I32, I64, U8 = torch.int32, torch.int64, torch.uint8
NAMES = {F32: "fp32", F16: "fp16", BF16: "bf16"}
VOCABULARIES = sorted({shape.vocab for shape in SHAPES})
LARGEST = VOCABULARIES[-1]
EPS = 1e-5
ELEMENTS = WeightForm()
CODES_4, CODES_8 = WeightForm(4, 32, True), WeightForm(8)
OTHER_CODES = (
    WeightForm(8, 16),
    WeightForm(8, 32, True),
    WeightForm(8, 16, True),
)  # of files, and of their mixtures


def weight_of(N: int, K: int, dtype: torch.dtype, form: WeightForm) -> tuple[torch.Tensor, dict[str, Any]]:
    """A weight [N, K], and what operators are told of its codes."""
    if not form.bits:
        return tensor(dtype, N, K), {}
    units = -(-K // UNIT.value)
    codes = tensor(torch.int8 if form.bits == 8 else U8, N, units * form.unit_bytes)
    return codes, {"scales": tensor(I32, units * form.words, N), "group": form.group}


def words_of(form: WeightForm) -> str:
    """Behind a configuration's name."""
    if not form.bits:
        return ""
    minimums = " + minimums" if form.has_minimums and form.bits == 8 else ""
    return f" {form.bits} bits{' of 16' if form.group == 16 else ''}{minimums}"


def dtypes_of(shape: ModelShape) -> tuple[torch.dtype, ...]:
    """Llama-2-7B stands for fp16, which is compiled like bf16 but for one instruction."""
    return (BF16, F16) if shape.name == "Llama-2-7B" else (BF16,)


def rms_norm_launches(record: Recorder) -> None:
    """x is the fp32 residual stream, or is added to it."""
    for shape in SHAPES:
        H = shape.hidden
        for residual in (None, tensor(F32, 1, H)):
            x = tensor(F32 if residual is None else BF16, 1, H)
            with record(f"{H} bf16{'' if residual is None else ' + residual'}"):
                rms_norm(x, tensor(BF16, H), EPS, tensor(BF16, 1, H), residual)


def linear_launches(record: Recorder) -> None:
    """Every shipped layer as steps run it: with num_live, with squares where a norm is read, the head with
    rows too, and with the next norm where the residual is written. Of Qwen2.5-0.5B, a qkv_proj with a bias
    and a down_proj that splits K, plain ones without num_live too. Of codes, the widest and the narrowest
    programs of 8B and 135M, and the forms that files bring.
    """

    def launch(
        N: int,
        K: int,
        dtype: torch.dtype,
        out: torch.dtype | None,
        bias: bool = False,
        live: bool = True,
        normed: bool = True,
        picked: bool = False,
        form: WeightForm = ELEMENTS,
    ) -> None:
        def parts(size: int) -> torch.Tensor:
            return tensor(F32, 1, linear_kernels.num_parts(size))

        norm: dict[str, Any] = {}
        if normed and out is None:
            norm = {"next_norm": tensor(dtype, N), "scaled": tensor(dtype, 1, N), "next_squares": parts(N)}
        elif normed:
            norm = {"squares": parts(K), "eps": EPS}
        words = f"{N}x{K} {NAMES[dtype]}{' + bias' if bias else ''}{' + residual' if out is None else ''}"
        weight, codes = weight_of(N, K, dtype, form)
        with record(words + ("" if live else " always") + ("" if normed else " plain") + words_of(form)):
            linear_kernels.linear(
                tensor(dtype, 1, K),
                weight,
                tensor(out, 1, N) if out else None,
                tensor(dtype, N) if bias else None,
                None if out else tensor(F32, 1, N),
                tensor(U8, linear_kernels.workspace_size(1, N, K)),
                tensor(I32, 1) if live else None,
                tensor(I32, 1) if picked else None,
                **norm,
                **codes,
            )

    for shape in SHAPES:
        for layer, (N, K) in shape.linears.items():
            for dtype in dtypes_of(shape):
                adds = layer in ("o_proj", "down_proj")
                launch(N, K, dtype, None if adds else F32, picked=layer == "lm_head")
    launch(1152, 896, BF16, F32, bias=True)
    launch(1152, 896, BF16, BF16, bias=True, live=False, normed=False)
    launch(896, 4864, BF16, None, live=False, normed=False)
    launch(896, 4864, BF16, None)
    launch(6144, 4096, BF16, F32, form=CODES_4)
    launch(4096, 14336, BF16, None, form=CODES_4)
    launch(576, 1536, F16, None, form=CODES_4)
    for form in (CODES_4, CODES_8):
        launch(128256, 4096, BF16, F32, picked=True, form=form)
    launch(6144, 4096, BF16, F32, form=CODES_8)
    for form in OTHER_CODES:
        launch(6144, 4096, BF16, F32, form=form)


def gate_up_silu_launches(record: Recorder) -> None:
    """Every shipped MLP, and the second half of the path for many rows. Of codes, that of 8B."""

    def launch(T: int, shape: ModelShape, dtype: torch.dtype, form: WeightForm = ELEMENTS) -> None:
        I, K = shape.intermediate, shape.hidden  # noqa: E741
        weight, codes = weight_of(2 * I, K, dtype, form)
        gate_up_kernels.gate_up_silu(
            tensor(dtype, T, K),
            weight,
            tensor(dtype, T, I),
            tensor(U8, gate_up_kernels.workspace_size(T, I, K)),
            tensor(I32, 1),
            tensor(F32, T, linear_kernels.num_parts(K)),
            EPS,
            **codes,
        )

    for shape in SHAPES:
        for dtype in dtypes_of(shape):
            with record(f"2x{shape.intermediate}x{shape.hidden} {NAMES[dtype]}"):
                launch(1, shape, dtype)
    with record("of many rows bf16"):
        launch(linear_kernels.MAX_ROWS + 1, SHAPES[0], BF16)
    shape = MODELS["8b"]
    for form in (CODES_4, CODES_8):
        with record(f"2x{shape.intermediate}x{shape.hidden} bf16{words_of(form)}"):
            launch(1, shape, BF16, form)


def attention_launches(record: Recorder, max_q_len: int = 1) -> None:
    """Every shipped head shape, in bf16, with blocks of 16 and of 256; with counters, and without."""
    for shape in SHAPES:
        for block_size in (16, 256):
            q, cache = (tensor(BF16, 1, heads, shape.head_dim) for heads in (shape.heads, shape.kv_heads))
            pages = cache.expand(block_size, -1, -1)[None].contiguous()
            lengths = tensor(I32, 1, 512 // block_size), tensor(I32, 1), tensor(I32, 2)
            batch = PagedBatch(q, pages, pages, *lengths, q)
            heads = f"{shape.heads}/{shape.kv_heads}x{shape.head_dim}"
            with record(f"{shape.name} {heads} blocks of {block_size} bf16"):
                if max_q_len > attention_kernels.MAX_Q_LEN:
                    attention_prefill(batch, 1.0, max_q_len)
                    continue
                size = attention_kernels.workspace_size(1, shape.heads, shape.head_dim, 2 * 256)
                for counters in (tensor(I32, shape.heads), None):
                    attention_kernels.attention(batch, 1.0, max_q_len, tensor(U8, size), counters)


def attention_prefill_launches(record: Recorder) -> None:
    """As attention's."""
    attention_launches(record, attention_kernels.MAX_Q_LEN + 1)


def qkv_rope_store_launches(record: Recorder) -> None:
    """Every shipped head shape, in bf16, from an fp32 projection, as models run it; the last one with norms
    too, and from bf16."""
    for shape in SHAPES:
        others = ((F32, True), (BF16, False)) if shape is SHAPES[-1] else ()
        for source, has_norm in ((F32, False), *others):
            D, heads = shape.head_dim, shape.heads + 2 * shape.kv_heads
            rotary, norm = tensor(F32, 1024, D // 2), tensor(BF16, D) if has_norm else None
            pages = tensor(BF16, 1, 16, shape.kv_heads, D)
            given: tuple[Any, ...] = (
                *(tensor(source, 1, heads * D), tensor(I32, 1), rotary, rotary, tensor(I64, 1)),
                *(tensor(BF16, 1, shape.heads, D), pages, pages, norm, norm, EPS),
            )
            with record(f"{shape.name} {NAMES[source]}{' norm' if has_norm else ''}"):
                qkv_rope_store(*given)


def embedding_launches(record: Recorder) -> None:
    """One for each dtype, with what the first layer reads and without; sizes are run-time arguments. Of
    codes, one for each number of bits."""
    for dtype in (BF16, F16):
        table, out = tensor(dtype, 32000, 4096), tensor(F32, 1, 4096)
        norm = tensor(dtype, 4096), tensor(dtype, 1, 4096), tensor(F32, 1, linear_kernels.num_parts(4096))
        for given in (norm, ()):
            with record(NAMES[dtype] + (" norm" if given else "")):
                embedding(tensor(I32, 1), table, out, *given)
    for form in (CODES_4, CODES_8):
        table, codes = weight_of(32000, 4096, BF16, form)
        norm = tensor(BF16, 4096), tensor(BF16, 1, 4096), tensor(F32, 1, linear_kernels.num_parts(4096))
        with record(f"bf16 norm{words_of(form)}"):
            embedding(tensor(I32, 1), table, tensor(F32, 1, 4096), *norm, **codes)


def feed_launches(record: Recorder) -> None:
    """Every kind, for one sequence with a window of 16, and for 32 of them."""
    fed = {"SCORE": (16, 16), "SCORE_WINDOW": (32, 32), "DRAFT_WINDOW": (32, 16), "HEAD_FIRST": (17, 1)}
    fed |= {"PREFILL": (256, 1), "HEAD_PREFILL": (256, 1)}
    for kind, word in enumerate(feed_kernels.KINDS):
        for B in (1, 32):
            q, num_logits = fed.get(word, (2 if word == "DRAFT_FIRST" else 1, 1))
            T, one = q if word.endswith("PREFILL") else q * B, tensor(I32, B)
            places = tensor(I64, B, num_logits if word == "DRAFT_WINDOW" else 1)
            of = feed_kernels.Sequences(
                *(tensor(I32, B, 1023), one, one, one, one, one, one, tensor(I32, B, 17)),
                *(tensor(I32, B, 2), tensor(I32, B, 65)),
            )
            fed_to = feed_kernels.Fed(
                *(tensor(I32, T), tensor(I32, T), tensor(I64, T), tensor(I32, B + 1), one),
                *(tensor(I32, B, num_logits), one, one, places, places),
            )
            with record(f"{word} B{B}"):
                feed_kernels.feed(kind, 0, of, 17, q, 33, fed_to)


def penalties_launches(record: Recorder) -> None:
    """Both kernels at every shipped vocabulary; lists of up to 64 ids."""
    for vocab in VOCABULARIES:
        for dtype in (F32, BF16) if vocab == LARGEST else (F32,):
            one, amount, ids = tensor(I32, 1), tensor(F32, 1), tensor(I32, 1, 64)
            window = tensor(I32, 1, 8)
            before = penalties_kernels.Before(tensor(I32, 1, 1024), window, one, one, one, one, one)
            asked = penalties_kernels.Parameters(amount, amount, amount, one, ids, ids, tensor(F32, 1, 64))
            space = tensor(U8, penalties_kernels.workspace_size(1, vocab))
            with record(f"{vocab} {NAMES[dtype]}"):
                penalties_kernels.penalties(
                    tensor(dtype, 9, vocab), before, penalties_kernels.TARGET_ROWS, asked, space
                )


def filters_launches(record: Recorder) -> None:
    """Every shipped vocabulary, with all three filters."""
    for vocab in VOCABULARIES:
        share = tensor(F32, 1)
        with record(str(vocab)):
            filters_kernels.filters(
                *(tensor(F32, 1, vocab), share, tensor(I32, 1), share, share, share),
                tensor(U8, filters_kernels.workspace_size(1, vocab)),
            )


def sample_launches(record: Recorder) -> None:
    """Every shipped vocabulary; the largest in every dtype of logits, and with rows that are kept."""
    for vocab in VOCABULARIES:
        for dtype in (F32, F16, BF16) if vocab == LARGEST else (F32,):
            number, share, logits = tensor(I64, 1), tensor(F32, 1), tensor(dtype, 1, vocab)
            for kept in ((), (logits, number)) if vocab == LARGEST else ((),):
                with record(f"{vocab} {NAMES[dtype]}{' kept' if kept else ''}"):
                    sample_kernels.sample(
                        *(logits, share, number, number, 4, tensor(I32, 1), share),
                        *(tensor(U8, sample_kernels.workspace_size(1, vocab)), *kept),
                    )


def logprobs_launches(record: Recorder) -> None:
    """Every shipped vocabulary, with no likeliest tokens and with the most."""
    for vocab in VOCABULARIES:
        for k in (0, logprobs_kernels.MAX_K):
            ids = tensor(I32, 1, 1 + k)
            with record(f"{vocab} k {k}"):
                logprobs_kernels.logprobs(
                    *(tensor(F32, 1, vocab), tensor(I32, 1), k, ids, tensor(F32, 1, 1 + k), ids),
                    tensor(U8, logprobs_kernels.workspace_size(1, vocab, k)),
                )


def judge_launches(record: Recorder) -> None:
    """Two vocabularies, dtypes and windows, the last launch at all vocabularies; see verify's too."""

    def is_last(case: CompileCase) -> bool:
        return case.kernel.__name__ in ("rejection_kernel", "coupled_kernel")

    choices: list[tuple[int, torch.dtype, int, Callable[[CompileCase], bool]]] = [
        (32000, F32, 4, lambda case: not is_last(case)),
        (LARGEST, BF16, 8, lambda case: True),
        *((vocab, F32, 8, is_last) for vocab in VOCABULARIES),
    ]
    one = tensor(I32, 1)
    for vocab, dtype, window, keep in choices:
        for kind in KINDS:
            given: tuple[Any, ...] = (
                *(tensor(dtype, window + 1, vocab), tensor(dtype, 1, window, vocab)),
                *(tensor(I32, 1, window), one, tensor(I32, 2), tensor(I64, window + 1)),
                *(tensor(F32, 1), tensor(I64, 1), kind, one, one, one),
                tensor(U8, judge_kernels.workspace_size(1, window, vocab, kind)),
                one,
            )
            with record(f"{kind} {vocab} gamma {window} {NAMES[dtype]}", keep):
                judge_kernels.judge(*given)


def verify_launches(record: Recorder) -> None:
    """Every shipped vocabulary, for windows of 8 and fp32 logits."""
    G = 8
    for vocab in VOCABULARIES:
        state = State.allocate(1, G, 1023, vocab, vocab, num_stop_ids=4, ring_size=5, device=META)
        for kind in KINDS:
            space = tensor(U8, verify_kernels.workspace_size(1, G, vocab, kind))
            given: tuple[Any, ...] = (*state.verify_arguments(), kind, space)
            with record(f"{kind} {vocab} gamma {G}"):
                verify_kernels.verify(*given)


def publish_logprobs_launches(record: Recorder) -> None:
    """Windows of 16, with no likeliest tokens and with twenty; without the launches of logprobs."""

    def is_own(case: CompileCase) -> bool:
        return bool(case.kernel.__module__ == publish_kernels.__name__)

    for k in (0, 20):
        one, width = tensor(I32, 1), publish_kernels.entry_size(17, k)
        with record(f"gamma 16 k {k}", is_own):
            publish_kernels.publish_logprobs(
                *(tensor(F32, 1, 17, 32000), tensor(I32, 1, 1023), one, one, one, one, k),
                tensor(I32, 5, 1, width),
                tensor(U8, publish_kernels.workspace_size(1, 17, 32000, k)),
            )


def rollback_launches(record: Recorder) -> None:
    """One: nothing here depends on a model."""
    one, table = tensor(I32, 1), tensor(I32, 1, 65)
    with record():
        rollback(table, one, one, table, one, 16, 17)


LAUNCHES: dict[str, Callable[[Recorder], None]] = {
    function.__name__.removesuffix("_launches"): function
    for function in (
        *(rms_norm_launches, linear_launches, gate_up_silu_launches, qkv_rope_store_launches),
        *(attention_launches, attention_prefill_launches, embedding_launches, feed_launches),
        *(keep_rows_launches, head_input_launches),
        *(penalties_launches, filters_launches, sample_launches, judge_launches, verify_launches),
        *(logprobs_launches, publish_logprobs_launches, rollback_launches),
    )
}
LOAD_BYTES = {"linear_kernel": 16, "gate_up_silu_kernel": 16}  # of weights
SCALE_BYTES = 4  # likewise, where the narrowest copies are those of scales


def load_bytes(case: CompileCase) -> int:
    """How wide a case must read at least."""
    wanted = LOAD_BYTES.get(case.kernel.__name__, 0)
    names = list(case.signature)
    return SCALE_BYTES if wanted and case.constants[(names.index("FORM"),)] is not None else wanted


def cases_of(operator: str) -> list[CompileCase]:
    """Every configuration of an operator's kernels."""
    record = Recorder(operator)
    LAUNCHES[operator](record)
    return [replace(case, load_bytes=load_bytes(case)) for case in record.cases]
