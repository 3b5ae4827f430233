"""pearl_rt in CUDA graphs of one's own: an operator, a round of launches, and a round as a child node.

python examples/capture_in_your_graph.py TARGET DRAFT
"""

import ctypes
import sys

import torch
from tiny_pair import random_pair

import pearl_rt

GAMMA, PROMPT = 2, [7, 3, 5]


def an_operator(graph: "torch.cuda.CUDAGraph | None") -> None:
    """Every operator writes into tensors of its caller, and neither allocates nor waits."""
    device = "cuda" if graph is not None else "cpu"
    x, weight = torch.randn(3, 64, device=device), torch.ones(64, device=device)
    out = torch.empty_like(x)

    def launch() -> None:
        torch.ops.pearl_rt.rms_norm(x, weight, 1e-5, out, None)

    launch()  # compiles it
    if graph is not None:
        with torch.cuda.graph(graph):
            launch()
        x.mul_(-3.0)  # a replay reads what is there then
        graph.replay()
    expected = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
    torch.testing.assert_close(out, expected)


def a_round(engine: pearl_rt.Engine, graph: "torch.cuda.CUDAGraph | None") -> list[int]:
    """plan() on the host; run() is launches only, of which pearl's draft is a branch beside the score."""
    own = engine.round("pearl", GAMMA, greedy=True)
    own.plan()  # idle slots: compiles
    if graph is not None:
        with torch.cuda.graph(graph):
            own.run()
    own.plan([engine.request(PROMPT, pearl_rt.SamplingParams(max_tokens=8))])
    return answer(own, own.run if graph is None else graph.replay)


def a_child_node(engine: pearl_rt.Engine, library: str = "libcuda.so.1", stream: int = 0) -> list[int]:
    """The round's graph inside a graph that this function makes by the driver's own calls."""
    cuda = ctypes.CDLL(library)

    def call(name: str, *arguments: object) -> None:
        code = getattr(cuda, name)(*arguments)
        if code != 0:
            raise RuntimeError(f"{name} returned {code}")

    parent, node, instance = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
    with engine.round_graph("pearl", GAMMA, greedy=True) as own:
        call("cuGraphCreate", ctypes.byref(parent), 0)
        child = ctypes.c_void_p(own.raw_cuda_graph())
        call("cuGraphAddChildGraphNode", ctypes.byref(node), parent, None, ctypes.c_size_t(0), child)
        call("cuGraphInstantiateWithFlags", ctypes.byref(instance), parent, ctypes.c_ulonglong(0))
        own.plan([engine.request(PROMPT, pearl_rt.SamplingParams(max_tokens=8))])
        tokens = answer(own, lambda: call("cuGraphLaunch", instance, ctypes.c_void_p(stream)))
        call("cuStreamSynchronize", ctypes.c_void_p(stream))
        call("cuGraphExecDestroy", instance)
        call("cuGraphDestroy", parent)
    return tokens


def answer(own: "pearl_rt.Round | pearl_rt.RoundGraph", launch: object) -> list[int]:
    """Rounds until the answer ends; one is queued ahead of the verdict that is read."""
    tokens: list[int] = []
    for number in range(64):
        launch()  # type: ignore[operator]
        row = own.wait(number)
        tokens += row.token_ids
        if row.is_last:
            return tokens
    raise RuntimeError("the answer does not end")


def main() -> None:
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        engine = pearl_rt.Engine.from_pretrained(*sys.argv[1:], device="cuda", max_model_len=256)
    else:
        engine = pearl_rt.Engine(*random_pair(), device="interpret", max_model_len=20)
    with engine:
        [expected] = engine.generate(
            PROMPT, pearl_rt.SamplingParams(max_tokens=8), strategy="sd", gamma=GAMMA
        )
        an_operator(torch.cuda.CUDAGraph() if has_gpu else None)
        print("1 an operator:", "captured and replayed" if has_gpu else "called")
        tokens = a_round(engine, torch.cuda.CUDAGraph() if has_gpu else None)
        assert tokens == expected.token_ids
        print("2 a round:", "captured and replayed" if has_gpu else "launched", len(tokens), "tokens")
        if not has_gpu:
            print("no GPU: 1 and 2 ran in Triton's interpreter, uncaptured; 3, the child node, was left out")
            return
        assert a_child_node(engine) == expected.token_ids
        print("3 a child node: launched in a graph of ours")


if __name__ == "__main__":
    main()
