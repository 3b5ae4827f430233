"""What every test shares: one thread for reference models, and the device that kernels run on."""

import gc
import os
import signal

import pytest
import torch

pytest_plugins = ["skips"]

# A shell starts what runs in its background with Ctrl-C ignored: tests of an interrupt would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
# On two busy cores torch's threads mostly wait for each other.
torch.set_num_threads(1)
# An engine that is not told where to run does so on the CPU here, whatever the machine has.
os.environ["PEARL_DEVICE"] = "cpu"
# Kernels ask once, when they are imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    """--long: of tests that draw random cases, as many as `make exactness` runs. --schedules: of each program
    in test_cuda_lane.
    """
    parser.addoption("--long", action="store_true", help="run random tests for longer")
    parser.addoption("--schedules", type=int, default=120, help="random schedules of each program")


def pytest_collection_finish() -> None:
    """What imports and collection made stays: gc.collect() in a test looks at what tests made."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def device() -> torch.device:
    """A GPU if there is one, else the CPU, where kernels run in Triton's interpreter."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
