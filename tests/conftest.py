"""One thread a test: two workers share two cores, and results do not depend on how a sum was split."""

import torch

torch.set_num_threads(1)
