"""The manual lists the operations that proofs know: each of them, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional as nn

import otflow as of
from otflow.numerics.enclosures import OPERATIONS, Enclosure
from otflow.testing.clouds import normal

F64 = torch.float64
PAGE = Path(of.__file__).parent.parent / "docs" / "extending.rst"
A = normal(3, 3, seed=3)
C = normal(5, 3, seed=4)

# Each name of the manual: a use of it on positive points x of shape (5, 3).
CALLS = {
    "+": lambda x: x + C + 1,
    "-": lambda x: -(2 - (x - C)),
    "*": lambda x: x * C * x,
    "/": lambda x: C / x / 2,
    "**": lambda x: x**2 + x**-1.5 + 2.0**x,
    "@": lambda x: x @ A + C @ (x.mT @ x),
    "abs": lambda x: (x - 1).abs(),
    "square": torch.square,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "reciprocal": torch.reciprocal,
    "exp": torch.exp,
    "expm1": torch.expm1,
    "log": torch.log,
    "log1p": torch.log1p,
    "sin": torch.sin,
    "cos": torch.cos,
    "sinh": torch.sinh,
    "cosh": torch.cosh,
    "tanh": torch.tanh,
    "atan": torch.atan,
    "erf": torch.erf,
    "hypot": lambda x: torch.hypot(x, C),
    "pow": lambda x: x.pow(3),
    "neg": torch.neg,
    "relu": lambda x: torch.relu(x - 1),
    "leaky_relu": lambda x: nn.leaky_relu(x - 1, 0.1),
    "hardtanh": lambda x: nn.hardtanh(x - 1, -0.3, 0.4),
    "sigmoid": torch.sigmoid,
    "softplus": nn.softplus,
    "gelu": nn.gelu,
    "silu": nn.silu,
    "logsigmoid": nn.logsigmoid,
    "maximum": lambda x: torch.maximum(x, C),
    "minimum": lambda x: torch.minimum(x, C),
    "clamp": lambda x: x.clamp(0.8, 1.2) + x.clamp_min(1.0) + x.clamp_max(1.0),
    "amax": lambda x: x.amax(-1),
    "amin": lambda x: x.amin(-1),
    "logsumexp": lambda x: x.logsumexp(-1),
    "where": lambda x: torch.where(C > 0, x, 2 * x),
    "sum": lambda x: x.sum(-1),
    "mean": lambda x: x.mean(-1),
    "prod": lambda x: x.prod(-1),
    "cumsum": lambda x: x.cumsum(-1),
    "norm": lambda x: x.norm(dim=-1) + torch.linalg.norm(x, ord=1, dim=-1),
    "linalg.vector_norm": lambda x: torch.linalg.vector_norm(x, dim=-1),
    "dot": lambda x: x[:, 0].dot(C[:, 0]),
    "mv": lambda x: x.mv(A[0]),
    "mm": lambda x: x.mm(A),
    "bmm": lambda x: x[:, None].bmm(C[:, :, None]),
    "matmul": lambda x: torch.matmul(x, A),
    "einsum": lambda x: torch.einsum("ki,ij,kj->k", x, A, x),
    "linear": lambda x: nn.linear(x, A, A[0]) + nn.linear(x, A)[:, :1],
    "addmm": lambda x: torch.addmm(C, x, A),
    "addmv": lambda x: torch.addmv(C[:, 0], x, A[0]),
    "x[...]": lambda x: x[..., 0] + x[:, 1:2].squeeze(-1) + x[:, [0, 2]].sum(-1),
    "reshape": lambda x: x.reshape(-1),
    "view": lambda x: x.view(15),
    "flatten": lambda x: x.flatten(),
    "permute": lambda x: x.permute(1, 0),
    "transpose": lambda x: x.transpose(0, 1),
    "t": torch.t,
    "mT": lambda x: x.mT,
    "squeeze": lambda x: x.unsqueeze(0).squeeze(0),
    "unsqueeze": lambda x: x.unsqueeze(-1),
    "expand": lambda x: x.unsqueeze(0).expand(2, 5, 3),
    "select": lambda x: x.select(1, 0),
    "narrow": lambda x: x.narrow(1, 0, 2),
    "index_select": lambda x: x.index_select(1, torch.tensor([2, 0])),
    "flip": lambda x: x.flip(-1),
    "roll": lambda x: x.roll(1, -1),
    "unbind": lambda x: x.unbind(-1)[1],
    "split": lambda x: x.split(2, -1)[1] + x.split([1, 2], -1)[0],
    "chunk": lambda x: x.chunk(2, -1)[0],
    "cat": lambda x: torch.cat([x, C], -1),
    "stack": lambda x: torch.stack([x, C], -1),
    "clone": torch.clone,
    "contiguous": lambda x: x.mT.contiguous(),
    "detach": lambda x: x.detach() + torch.positive(x),
    "double": lambda x: x.double() + x.to(F64),
    "ones_like": lambda x: x * torch.ones_like(x),
    "zeros_like": lambda x: x + torch.zeros_like(x),
    "full_like": lambda x: x + torch.full_like(x, 2.0),
    "new_zeros": lambda x: x + x.new_zeros(3),
    "new_ones": lambda x: x + x.new_ones(3),
    "new_full": lambda x: x + x.new_full((3,), 2.0),
    "new_tensor": lambda x: x + x.new_tensor([1.0, 2.0, 3.0]),
}
# What torch calls in the course of others, or by another name.
INNER = {
    "_reshape_copy",
    "_unsafe_view",
    "alias",
    "lift_fresh",
    "new_empty",
    "view_copy",
    "_to_copy",
    # These are composed of others, in the torch of today.
    "contiguous",
    "norm",
    "positive",
    "reshape",
    "square",
}


def documented():
    """Return the names of the list in the manual."""
    text = PAGE.read_text("utf-8")
    rows = text.split(".. list-table:: Operations that can be enclosed", 1)[1]
    rows = rows.split("\n\n.. ", 1)[0].split("\n\nA ", 1)[0]
    return re.findall(r"``([^`]+)``", rows)


def test_the_manual_lists_each_operation_once():
    names = documented()
    assert len(names) == len(set(names))
    assert set(names) == set(CALLS)


@pytest.mark.parametrize("name", CALLS)
def test_a_listed_operation_encloses_its_values(name):
    x = 1 + 0.3 * normal(5, 3, seed=1).tanh()
    size = 1e-2 * normal(5, 3, seed=2).abs()
    exact = CALLS[name](x)
    found = CALLS[name](Enclosure.of(x - size, x + size, 2))
    assert isinstance(found, Enclosure)
    assert found.shape == exact.shape
    assert bool((found.value[0] <= exact + 1e-14).all())
    assert bool((found.value[1] >= exact - 1e-14).all())
    assert float((found.value[1] - found.value[0]).max()) < 1.0


def test_the_list_holds_all_that_the_table_holds(monkeypatch):
    """An operation that is added to the table must be added to the manual."""
    seen = set()

    class Counted(dict):
        def get(self, name, default=None):
            seen.add(name)
            return super().get(name, default)

    module = "otflow.numerics.enclosures.OPERATIONS"
    monkeypatch.setattr(module, Counted(OPERATIONS))
    x = 1 + 0.3 * normal(5, 3, seed=1).tanh()
    for call in CALLS.values():
        call(Enclosure.of(x, x, 1))
    assert set(OPERATIONS) - INNER <= seen
    assert seen <= set(OPERATIONS)
