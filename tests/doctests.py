"""Settings of `make doctest`: numbers and tensors in examples agree to a tolerance."""

import torch
from scipy_doctest.conftest import dt_config

torch.set_num_threads(1)

dt_config.rtol = 1e-3
dt_config.atol = 1e-6
dt_config.check_namespace |= {
    "tensor": torch.tensor,
    "torch": torch,
    **{f"float{bits}": getattr(torch, f"float{bits}") for bits in (16, 32, 64)},
}
