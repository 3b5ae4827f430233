"""Reference models take one thread: on two busy cores torch's threads mostly wait for each other."""

import torch

torch.set_num_threads(1)
