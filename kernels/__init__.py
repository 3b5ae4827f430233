"""Triton kernels of pearl_rt, imported as ``pearl_rt.kernels``: this registers torch.ops.pearl_rt, all of it.

A second import under another name would register every operator twice. The bare name ``kernels`` belongs to a
package of Hugging Face that transformers looks for by importing it: under that name this one is empty.

Importing Triton decides whether kernels are compiled or interpreted (TRITON_INTERPRET). What a host needs
before that stands elsewhere: pearl_rt.state.
"""

from importlib import import_module

# The files that have kernels to compile, and operators to register.
MODULES = (
    *("rms_norm", "linear", "gate_up_silu", "qkv_rope_store", "attention", "attention_prefill", "embedding"),
    *("feed", "penalties", "filters", "sample", "judge", "verify", "logprobs", "tell", "rollback"),
)

if __name__ == "pearl_rt.kernels":
    for name in MODULES:
        import_module(f"{__name__}.{name}")
else:
    __path__ = []  # no submodule can be found
