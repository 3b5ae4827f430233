"""What every test shares: one thread for reference models, and the device that kernels run on."""

import gc
import os
import signal
from typing import Any

import pytest
import torch

pytest_plugins = ["skips"]

# A shell starts what runs in its background with Ctrl-C ignored: tests of an interrupt would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
# On two busy cores torch's threads mostly wait for each other.
torch.set_num_threads(1)
# An engine that is not told where to run does so on the CPU here, whatever the machine has.
os.environ["PEARL_DEVICE"] = "cpu"
# Kernels ask when they are imported, which the conftest.py of a folder may do.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


PTX_DRIVER = pytest.StashKey[Any]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """--browser: the program that tests of the server's page drive. --long: of tests that draw random
    cases, as many as `make exactness` runs. --schedules: of each program in test_cuda_lane. --ptx: kernels
    are compiled for that GPU, and run on the host. --cases, --first-case and --fuzz-seed: of each fuzzer
    (tests/fuzz). --published: tests over a model that pip fetches.
    """
    parser.addoption("--browser", metavar="PROGRAM", help="run the tests of the page in this browser")
    parser.addoption("--ptx", metavar="ARCH", help="run compiled kernels on the host: sm_80 or sm_90")
    parser.addoption("--long", action="store_true", help="run random tests for longer")
    parser.addoption("--schedules", type=int, default=120, help="random schedules of each program")
    parser.addoption("--published", action="store_true", help="run tests over a published model, too")
    parser.addoption("--cases", type=int, help="cases of each fuzzer; default: some hundred")
    parser.addoption("--first-case", type=int, default=0, help="the number of the first one")
    parser.addoption("--fuzz-seed", type=int, default=0, help="what the cases are drawn with")


def pytest_configure(config: pytest.Config) -> None:
    """With --ptx kernels are compiled for that architecture, and run on the host."""
    if architecture := config.getoption("--ptx"):
        os.environ.pop("TRITON_INTERPRET", None)
        from ptx.driver import install

        config.stash[PTX_DRIVER] = install(architecture)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """How much compiled kernels did."""
    if driver := config.stash.get(PTX_DRIVER, None):
        terminalreporter.line(f"kernels of {driver.architecture} on the host: {driver.work}")


def pytest_collection_finish() -> None:
    """What imports and collection made stays: gc.collect() in a test looks at what tests made."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def device(pytestconfig: pytest.Config) -> torch.device:
    """A GPU if there is one, else the CPU, where kernels run in Triton's interpreter, or compiled (--ptx)."""
    has_gpu = torch.cuda.is_available() and not pytestconfig.getoption("--ptx")
    return torch.device("cuda" if has_gpu else "cpu")
