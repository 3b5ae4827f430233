"""Triton kernels of pearl_rt, imported as ``pearl_rt.kernels``: this registers torch.ops.pearl_rt, all of it.

Importing Triton decides whether kernels are compiled or interpreted (TRITON_INTERPRET). What a host needs
before that stands elsewhere: pearl_rt.state.

A second import under another name would register every operator twice. The bare name ``kernels`` belongs to a
package of Hugging Face that transformers looks for by importing it: under that name this one is empty.
"""

from importlib import import_module

# The files that have kernels to compile, and operators to register.
MODULES = (
    *(f"forward.{name}" for name in ("rms_norm", "linear", "gate_up_silu", "qkv_rope_store", "attention")),
    *(f"forward.{name}" for name in ("attention_prefill", "embedding", "feed")),
    *(f"head.{name}" for name in ("keep_rows", "head_input")),
    *(f"sampling.{name}" for name in ("penalties", "filters", "sample", "logprobs")),
    *(f"verify.{name}" for name in ("judge", "verify", "publish_logprobs", "rollback")),
)

if __name__ == "pearl_rt.kernels":
    for name in MODULES:
        import_module(f"{__name__}.{name}")
else:
    __path__ = []  # no submodule can be found
