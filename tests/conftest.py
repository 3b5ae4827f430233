"""What every test shares: one thread for reference models, and the device that kernels run on."""

import os
import signal

import pytest
import torch

# A shell starts what runs in its background with Ctrl-C ignored: tests of an interrupt would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
# On two busy cores torch's threads mostly wait for each other.
torch.set_num_threads(1)
# Kernels ask once, when they are imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture
def device() -> torch.device:
    """A GPU if there is one, else the CPU, where kernels run in Triton's interpreter."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
