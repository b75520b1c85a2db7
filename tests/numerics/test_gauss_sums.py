"""Gaussian sums and envelopes along rows: against all pairs, with and without numba."""

from __future__ import annotations

import pytest
import torch

from otflow.numerics import envelopes, gauss_sums
from otflow.numerics.envelopes import has_compiler, lower_envelope
from otflow.numerics.gauss_sums import log_gauss_sums

F64 = torch.float64


@pytest.fixture(
    params=[
        False,
        pytest.param(
            True, marks=pytest.mark.skipif(not has_compiler(), reason="needs numba")
        ),
    ],
    ids=["plain", "numba"],
)
def compiled(request, monkeypatch):
    for module in (envelopes, gauss_sums):
        monkeypatch.setattr(module, "has_compiler", lambda: request.param)


def rows(kind, n, g):
    v = torch.randn(40, n, generator=g, dtype=F64)
    if kind == "wide":
        return 1e4 * v
    if kind == "barred":
        v[torch.rand(40, n, generator=g) < 0.6] = -torch.inf
        v[3] = -torch.inf
    return v


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("kind", ["plain", "wide", "barred"])
@pytest.mark.parametrize("alpha", [1e-3, 0.7, 300.0])
@pytest.mark.parametrize(("n", "m"), [(30, 30), (17, 44), (1, 5), (6, 1)])
def test_sums_and_means_over_all_pairs(kind, alpha, n, m):
    g = torch.Generator().manual_seed(n)
    v = rows(kind, n, g)
    y = torch.linspace(-3, 5, n, dtype=F64)
    x = torch.linspace(-4, 4.5, m, dtype=F64)
    u = torch.randn(40, n, 2, generator=g, dtype=F64)
    log, means = log_gauss_sums(v, y, x, alpha, u)
    terms = v[:, None] - alpha * (x[:, None] - y).square()
    torch.testing.assert_close(log, terms.logsumexp(-1), rtol=1e-14, atol=1e-13)
    wanted = terms.softmax(-1).nan_to_num(0.0) @ u
    torch.testing.assert_close(means, wanted, rtol=1e-10, atol=1e-11)
    low, place = lower_envelope(-v, y, x, alpha)
    torch.testing.assert_close(low, (-terms).amin(-1), rtol=1e-14, atol=1e-13)
    there = low < torch.inf
    at_place = (-terms).gather(2, place[..., None])[..., 0]
    torch.testing.assert_close(at_place[there], low[there], rtol=1e-14, atol=1e-13)


@pytest.mark.skipif(not has_compiler(), reason="needs numba")
def test_threads_do_not_change_a_bit(monkeypatch):
    g = torch.Generator().manual_seed(0)
    v, y = torch.randn(41, 30, generator=g, dtype=F64), torch.arange(30, dtype=F64)
    u = torch.randn(41, 30, 1, generator=g, dtype=F64)
    one = log_gauss_sums(v, y, y, 0.2, u)
    monkeypatch.setattr(envelopes, "FEW", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    three = log_gauss_sums(v, y, y, 0.2, u)
    assert all(torch.equal(a, b) for a, b in zip(one, three, strict=True))
