"""A process that may not start one more thread says so, wherever that happens, and goes on."""

import os
import subprocess
import sys
from pathlib import Path

import fake_cuda
import pytest
from tiny_pairs import Pair

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import ctypes, sys
import fake_cuda
from pearl_rt import _C, Engine, PearlError, ResourceError, SamplingParams
allow_threads = ctypes.CDLL(None).allow_threads
target, draft = sys.argv[1:]
fake = fake_cuda.load()
fake.reset(devices=1)
params = SamplingParams(max_tokens=4)

def engine():
    return Engine.from_pretrained(target, draft, max_model_len=32, strategy="pearl", gamma=2)

with engine() as first:
    expected = first.generate("abc", params)[0].token_ids
    allow_threads(0)
    try:
        first.submit("abc", params)
    except ResourceError as error:
        assert "one is needed for submitted requests" in str(error) and "pids.max" in str(error), error
    else:
        raise AssertionError("a request was taken that no thread runs")
    allow_threads(1000)
    assert first.generate("abc", params)[0].token_ids == expected  # no thread holds its lock
    assert first.submit("abc", params).result().token_ids == expected
allow_threads(0)
try:
    _C.CudaIssuer(_C.CudaDriver(str(fake.path)))
except ResourceError as error:
    assert "one is needed for the issuer" in str(error), error
else:
    raise AssertionError("an issuer without a thread")
refused = 0
for count in range(1000):
    allow_threads(count)
    try:
        built = engine()
    except ResourceError as error:
        refused += 1
        assert "no more threads can be started, and one is needed for" in str(error), error
        assert "pids.max" in str(error), error
    else:
        break
allow_threads(1000)
with built:
    assert built.generate("abc", params)[0].token_ids == expected
print("refused", refused)
"""


@pytest.mark.slow
@pytest.mark.skipif(bool(fake_cuda.SANITIZE), reason="a sanitizer has a pthread_create of its own")
def test_no_more_threads(tmp_path: Path) -> None:
    """Cores, lanes, packing and submitted requests: each thread is the first that cannot be had."""
    library = fake_cuda.compiled(
        "few_threads.so",
        [ROOT / "tests" / "fakes" / "few_threads.cpp"],
        ["-std=c++20", "-O1", "-fPIC", "-shared"],
    )
    pair = Pair.make("half-right", num_hidden_layers=1).save(tmp_path)
    environment = os.environ | {
        "LD_PRELOAD": str(library),
        "PYTHONPATH": os.pathsep.join(
            map(str, (ROOT, *(ROOT / "tests" / n for n in ("", "fakes", "support"))))
        ),
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, pair)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[1]) > 20
