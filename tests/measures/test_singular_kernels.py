"""Kernels that are singular at 0, on every measure: a finite number or an error."""

from __future__ import annotations

import math

import pytest
import torch

import otflow as of

F64 = torch.float64
MEASURES: dict[str, of.measures.Measure] = {
    "atoms that coincide": of.Particles(torch.tensor([[0.0], [0.0], [1.0]], dtype=F64)),
    "atoms that coincide in the plane": of.Particles(
        torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 2.0]], dtype=F64)
    ),
    "quantiles": of.Quantiles(torch.linspace(-1, 1, 6, dtype=F64)),
    "float32 quantiles": of.Quantiles(torch.linspace(-1, 1, 6)),
    "a law on the line": of.Gaussian(torch.zeros(1, dtype=F64), torch.eye(1).double()),
    "a law": of.Gaussian(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64)),
    "a law in four dimensions": of.Gaussian(torch.zeros(4), torch.eye(4)),
    "a grid on the line": of.GridDensity(
        torch.ones(8), 0, 1, walls=True, normalize=True
    ),
    "a grid": of.GridDensity(
        torch.ones(6, 6).double(), 0, 6, walls=True, normalize=True
    ),
}
K = of.kernels
KERNELS: dict[str, of.kernels.Kernel] = {
    "log": K.Log(),
    "Riesz 1/2": K.Riesz(0.5),
    "Riesz 1": K.Riesz(1.0),
    "Riesz 2": K.Riesz(2.0),
    "Riesz 3": K.Riesz(3.0),
    "power 0": K.PowerLaw(2, 0),
    "power -1/2": K.PowerLaw(2, -0.5),
    "power -1": K.PowerLaw(2, -1),
    "distance": K.Energy(),
    "own log": K.Function(lambda z: -z.norm(dim=-1).log()),
    "own log, declared": K.Function(lambda z: -z.norm(dim=-1).log(), singular=True),
    "own pole": K.Function(lambda z: 1 / z.norm(dim=-1)),
    "own pole, declared": K.Function(lambda z: 1 / z.norm(dim=-1), singular=True),
    "0 over 0": K.Function(lambda z: z.square().sum(-1) / z.norm(dim=-1)),
    "wrapped": K.Function(K.Log()),
    "wrapped, declared": K.Function(K.Log(), singular=True),
}
# A law on few nodes says that the potential of a kink is rough.
pytestmark = pytest.mark.filterwarnings("ignore::otflow.errors.KernelWarning")
TYPED = (of.errors.NonFinite, of.errors.InvalidFunctional, of.errors.Unsupported)


def answer(verb):
    """Return a value, or the type of a typed error."""
    try:
        return verb()
    except TYPED as error:
        return type(error)


@pytest.mark.filterwarnings("ignore:diagonal=:DeprecationWarning")
@pytest.mark.parametrize("diagonal", [None, True, False])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", MEASURES)
def test_no_number_is_nan_or_infinite(name, kernel, diagonal):
    mu, W = MEASURES[name], KERNELS[kernel]
    x = mu.points[:2].clone()
    for verb in (
        lambda: mu.interaction(W, diagonal=diagonal),
        lambda: mu.convolve(W, diagonal=diagonal),
        lambda: mu.convolve(W, x, diagonal=diagonal),
        lambda: mu.convolve(W, x + 0.01, diagonal=diagonal),
    ):
        found = answer(verb)
        if isinstance(found, torch.Tensor):
            assert bool(found.isfinite().all())


@pytest.mark.parametrize("diagonal", [True, False])
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("name", [name for name in MEASURES if "atoms" not in name])
def test_a_density_has_no_pairs_to_leave_out(name, kernel, diagonal):
    mu, W = MEASURES[name], KERNELS[kernel]
    for verb in (mu.interaction, mu.convolve):
        with pytest.warns(DeprecationWarning, match="diagonal="):
            found = answer(lambda verb=verb: verb(W, diagonal=diagonal))
        plain = answer(lambda verb=verb: verb(W))
        if isinstance(plain, torch.Tensor):
            torch.testing.assert_close(found, plain)
        else:
            assert found is plain


def test_atoms_count_their_own_pairs_as_they_are_told():
    mu = of.Particles(torch.tensor([[0.0], [3.0]], dtype=F64))
    W = K.Function(lambda z: 1 + z.square().sum(-1))
    for kernel, diagonal, energy in ((W, True, 2.75), (W, False, 2.5)):
        with pytest.warns(DeprecationWarning, match="diagonal="):
            found = mu.interaction(kernel, diagonal=diagonal)
        assert float(found) == pytest.approx(energy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_undeclared_pole_is_seen_on_the_line(dtype):
    mu = of.Quantiles(torch.linspace(-1, 1, 6, dtype=dtype))
    for W in (lambda z: 1 / z.norm(dim=-1), lambda z: -1 / z.square().sum(-1)):
        for verb in (mu.interaction, mu.convolve):
            with pytest.raises(of.errors.NonFinite, match="not integrable at 0"):
                verb(W)
    # The law is uniform on (-1, 1): the mean of log|x - y| is log 2 - 3/2.
    log = mu.interaction(lambda z: z.norm(dim=-1).log())
    assert float(log) == pytest.approx(0.5 * (math.log(2) - 1.5), rel=1e-5)
    softened = mu.interaction(lambda z: 1 / (z.square().sum(-1) + 1e-4).sqrt())
    assert 0 < float(softened) < 10
