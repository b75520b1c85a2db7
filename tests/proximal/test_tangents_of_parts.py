"""The joint proximal step of parts, and that of parameters: laws and exact steps."""

from __future__ import annotations

import pytest
import torch

import otflow as of
from otflow.functionals import OfPart
from otflow.measures import Euclidean, Parts
from otflow.proximal import TangentProximal
from otflow.testing import ProximalContract, clouds
from otflow.testing.clouds import normal

F64 = torch.float64


def root(scale, centre=0.5):
    return of.Potential(
        lambda x: scale**2 * (1 + (x / scale - centre).square().sum(-1)).sqrt(),
        modulus=0.0,
    )


class Between(of.Functional):
    """Half the squared distance of the means of two parts."""

    def value(self, mu):
        a, b = (mu[k].expectation(lambda x: x.sum(-1)) for k in ("atoms", "line"))
        return 0.5 * (a - b).square()


class TestParts(ProximalContract):
    """Atoms, quantiles and parameters, coupled; the units are those of length."""

    def make(self):
        return TangentProximal(tolerance=1e-6)

    def crude(self):
        return TangentProximal(max_gradients=3)

    def start(self, dtype=F64, seed=0, scale=1.0):
        line = (normal(5, seed=seed) * 0.3).exp().cumsum(0) - 2
        parts = {
            "atoms": of.Particles(scale * normal(6, 1, seed=seed).to(dtype)),
            "line": of.Quantiles(scale * line.to(dtype)),
            "tensor": Euclidean(scale * normal(2, 3, seed=seed + 9).to(dtype), 0.7),
        }
        return Parts(parts)

    def functional(self, scale=1.0):
        names = ("atoms", "line", "tensor")
        return sum(OfPart(name, root(scale, k)) for k, name in enumerate(names)) + (
            Between()
        )

    def distance(self, mu, nu):
        return float(mu.norm(mu.displacement_to(nu)))


class TestParameters(ProximalContract):
    """The step of Euclidean space with a scaled metric, against its closed form."""

    scale = 0.25

    def make(self):
        return TangentProximal(tolerance=1e-7)

    def crude(self):
        return TangentProximal(max_gradients=2)

    def start(self, dtype=F64, seed=0, scale=1.0):
        return Euclidean(scale * normal(3, 2, seed=seed).to(dtype), self.scale)

    def functional(self, scale=1.0):
        del scale  # a quadratic has no unit
        return Quadratic()

    def exact(self, F, mu, dt):
        system = self.scale * torch.eye(6, dtype=F64) + dt * F.form
        right = self.scale * mu.values.flatten() + dt * F.form @ F.centre
        return Euclidean(torch.linalg.solve(system, right).reshape(3, 2), self.scale)

    def scaled(self, coordinates, scale):
        return None

    def distance(self, mu, nu):
        return float(mu.norm(mu.displacement_to(nu)))


class Quadratic(of.Functional):
    """Half a quadratic form of six parameters, about a centre."""

    def __init__(self):
        half = normal(6, 6, seed=4)
        self.form = half @ half.T / 6 + 0.1 * torch.eye(6, dtype=F64)
        self.centre = normal(6, seed=5)

    def value(self, mu):
        z = mu.values.flatten() - self.centre.to(mu.values)
        return 0.5 * z @ self.form.to(z) @ z


def test_the_length_of_a_step_of_parts_adds_up_and_no_atom_is_relabelled():
    """Two atoms that would rather exchange places, beside parameters that do not."""
    atoms = of.Particles(torch.tensor([[-1.0], [1.0]], dtype=F64))
    mu = Parts({"atoms": atoms, "rest": Euclidean(torch.zeros(2, dtype=F64), 2.0)})
    goal = torch.tensor([3.0, -3.0], dtype=F64)

    class Pulled(of.Functional):
        def value(self, mu):
            x = mu["atoms"].points[:, 0]
            return 0.25 * (x - goal).square().sum() + mu["rest"].values.sum()

    result = TangentProximal(tolerance=1e-10).solve(Pulled(), mu, 9.0)
    x = result.measure["atoms"].points[:, 0]
    torch.testing.assert_close(x, (atoms.points[:, 0] + 9 * goal) / 10)
    torch.testing.assert_close(
        result.measure["rest"].values, torch.full((2,), -4.5, dtype=F64)
    )
    square = 0.5 * float((x - atoms.points[:, 0]).square().sum()) + 2 * 2 * 4.5**2
    assert abs(result.certificate.w2 - square**0.5) < 1e-8
    # The atoms crossed: a solver of particles would exchange them, and say so.
    assert float(x[0]) > float(x[1])
    assert result.certificate.guarantee == "upper-bound"


def test_a_long_run_of_steps_ends_at_the_minimum_of_all_parts():
    start = TestParts().start()
    F = TestParts().functional()
    run = of.flow(F, start, of.JKO(), dt=2.0, steps=12)
    assert run.converged
    assert bool((run.records["energy"].diff() <= 1e-12).all())
    slope = float(run.final.norm(F.velocity(run.final)))
    assert slope < 1e-3 * float(start.norm(F.velocity(start)))


def test_a_bound_on_the_density_of_a_part_stalls_and_the_cure_is_part_by_part():
    # All parts at once the descent stands still at the bound, where the exact step
    # moves all cells on.
    bounded = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
    line = of.Quantiles(torch.linspace(0, 3, 6, dtype=F64))
    mu = Parts({"a": line, "b": clouds.uniform()})
    F = OfPart("a", bounded + of.Congestion(1.0))
    with pytest.warns(of.errors.NotConvergedWarning, match="PartByPart"):
        run = of.flow(F, mu, of.JKO(), dt=0.5, steps=10)
    assert run.info[-1]["cure"].startswith("take schemes.PartByPart(JKO())")
    assert not run.info[-1].certified
    scheme = of.schemes.PartByPart({"a": of.JKO()})
    run = of.flow(F, mu, scheme, dt=0.5, steps=10)
    assert run.converged
    alone = of.flow(F.functional, line, of.JKO(), dt=0.5, steps=10)
    torch.testing.assert_close(run.final["a"].coordinates, alone.final.coordinates)


def test_clouds_and_a_grid_have_no_joint_step_but_one_part_by_part():
    cells = of.GridDensity.from_function(
        lambda x: torch.exp(-x.square().sum(-1)), -4.0, 4.0, (80,), dtype=F64
    )
    mu = Parts([clouds.uniform(), cells])
    assert mu.on_fixed_cells
    assert not mu.pulls_back
    assert not mu.flat
