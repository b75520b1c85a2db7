"""A measure of parts: its parts alone, together, and the exact flow of a coupling."""

from __future__ import annotations

import copy
import math
import pickle
import re

import pytest
import torch

import otflow as of
from otflow.measures import Euclidean, Parts
from otflow.testing import MeasureContract, clouds
from otflow.testing.capabilities import interaction, potential
from otflow.testing.clouds import normal
from otflow.testing.differences import derivative
from otflow.testing.same import assert_same

F64 = torch.float64


def grid():
    return of.GridDensity.from_function(
        lambda x: torch.exp(-8 * (x - 0.3).square().sum(-1)),
        -2.0,
        2.0,
        (40,),
        dtype=F64,
    )


def makers():
    return {
        "particles": lambda: of.Particles(normal(5, 2)),
        "weighted": lambda: of.Particles(
            normal(3, 1), torch.tensor([0.5, 0.5, 0.0], dtype=F64)
        ),
        "quantiles": lambda: of.Quantiles(torch.linspace(-1, 2, 6, dtype=F64)),
        "gaussian": lambda: of.Gaussian(normal(2), torch.eye(2, dtype=F64)),
        "grid": grid,
        "euclidean": lambda: Euclidean(normal(2, 3)),
        "cone": lambda: of.measures.ConicParticles(normal(3, 2).abs() + 0.1),
    }


def all_of_them():
    return Parts({name: make() for name, make in makers().items()})


def moment(mu):
    """Return a value of a measure, or of all its parts, that couples the numbers."""
    parts = mu.parts if isinstance(mu, Parts) else [mu]
    each = [part.expectation(lambda x: x.sum(-1).sin() + x[:, 0]) for part in parts]
    return torch.stack(each).sum().square() + torch.stack(each).square().sum()


class Moment(of.Functional):
    def value(self, mu):
        return moment(mu)


class Coupled(of.Functional):
    """Half a quadratic form of the means of all parts, stacked."""

    def __init__(self, form):
        self.form = form

    def value(self, mu):
        means = torch.cat([part.expectation(lambda x: x) for part in mu.parts])
        return 0.5 * means @ self.form @ means


def form():
    half = normal(4, 4, seed=3)
    return half @ half.T / 4 + 0.5 * torch.eye(4, dtype=F64)


def four_numbers():
    """Parts whose means are four numbers, each of weight 1 in the metric."""
    return Parts(
        {
            "particles": of.Particles(normal(6, 1)),
            "gaussian": of.Gaussian(normal(1, seed=1), torch.eye(1, dtype=F64)),
            "vector": Euclidean(normal(2, seed=2), scale=1.0),
        }
    )


def means(mu):
    return torch.cat([part.expectation(lambda x: x) for part in mu.parts])


def test_the_gradient_in_all_parts_is_the_derivative_along_push():
    mu = all_of_them()
    f, gradient = mu.value_and_position_gradient(moment)
    assert torch.equal(f, moment(mu))
    for seed in range(3):
        v = normal(*gradient.shape, seed=seed)

        # The upwind flux of the grid is one-sided: the mean of both sides.
        def value(t, v=v):
            return moment(mu.push(v, t))

        slope = derivative(value, h=1e-5)
        torch.testing.assert_close(mu.inner(gradient, v), slope, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", makers())
def test_one_part_is_the_part_to_the_bit(name):
    part = makers()[name]()
    mu = Parts({name: part})
    for own, alone in zip(
        mu.value_and_position_gradient(moment),
        part.value_and_position_gradient(moment),
        strict=True,
    ):
        assert torch.equal(own.reshape(-1), alone.reshape(-1))
    one = of.flow(Moment(), mu, of.ExplicitEuler(), dt=1e-3, steps=4)
    two = of.flow(Moment(), part, of.ExplicitEuler(), dt=1e-3, steps=4)
    assert_same(one.final[name], two.final)
    assert torch.equal(one.records["energy"], two.records["energy"])


def test_a_coupled_quadratic_flows_as_the_matrix_exponential():
    mu, A = four_numbers(), form()
    start, errors = means(mu), []
    for steps in (20, 40):
        run = of.flow(Coupled(A), mu, of.ExplicitEuler(), dt=1.0 / steps, steps=steps)
        exact = torch.linalg.matrix_exp(-A) @ start
        errors.append(float((means(run.final) - exact).norm()))
        # Each step of Euler is the matrix I - dt A, exactly.
        stepped = (
            torch.linalg.matrix_power(torch.eye(4, dtype=F64) - A / steps, steps)
            @ start
        )
        torch.testing.assert_close(means(run.final), stepped, rtol=0, atol=1e-13)
        assert bool((run.records["energy"].diff() < 0).all())
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)


def test_a_joint_proximal_step_is_the_resolvent_of_the_block_matrix():
    mu, A = four_numbers(), form()
    solver = of.proximal.TangentProximal(tolerance=1e-9)
    result = solver.solve(Coupled(A), mu, 0.7)
    exact = torch.linalg.solve(torch.eye(4, dtype=F64) + 0.7 * A, means(mu))
    torch.testing.assert_close(means(result.measure), exact, rtol=0, atol=1e-8)
    assert result.certificate.guarantee == "upper-bound"
    distance = float((exact - means(mu)).norm())
    assert result.certificate.w2 == pytest.approx(distance, abs=1e-7)


def test_parts_without_a_coupling_flow_as_each_alone():
    F = of.Potential(lambda x: (x.square().sum(-1)).cos())
    G = of.Potential(lambda x: 0.5 * x.square().sum(-1))
    left, right = of.Particles(normal(5, 2)), of.Quantiles(normal(6).sort().values)
    mu = Parts({"left": left, "right": right})
    both = of.functionals.OfPart("left", F) + 3 * of.functionals.OfPart("right", G)
    run = of.flow(both, mu, of.ExplicitEuler(), dt=0.05, steps=10)
    one = of.flow(F, left, of.ExplicitEuler(), dt=0.05, steps=10)
    two = of.flow(3 * G, right, of.ExplicitEuler(), dt=0.05, steps=10)
    assert_same(run.final["left"], one.final)
    torch.testing.assert_close(
        run.final["right"].edges,  # type: ignore[attr-defined]
        two.final.edges,
        rtol=0,
        atol=0,
    )
    energies = one.records["energy"] + two.records["energy"]
    torch.testing.assert_close(run.records["energy"], energies)


def test_copies_moves_and_pickles_hold_all_parts():
    mu = all_of_them()
    for twin in (copy.deepcopy(mu), pickle.loads(pickle.dumps(mu)), mu.clone()):
        assert_same(twin, mu)
    there = mu.to(torch.float32)
    assert {part.dtype for part in there.parts} == {torch.float32}
    assert there.dtype == torch.float32
    values = normal(2, 3).requires_grad_()
    watched = mu.replace(euclidean=Euclidean(values))
    assert watched.coordinates.requires_grad
    assert not watched.detach().coordinates.requires_grad


def test_a_run_is_kept_and_resumed_to_the_bit(tmp_path):
    mu, F, euler = all_of_them(), Moment(), of.ExplicitEuler()
    whole = of.flow(F, mu, euler, dt=1e-3, steps=6)
    of.flow(F, mu, euler, dt=1e-3, steps=4, checkpoint=tmp_path / "run")
    kept = of.load(tmp_path / "run")
    assert_same(of.flow(F, mu, euler, dt=1e-3, steps=2, resume=kept).final, whole.final)


# What a flow and a notebook do with it -----------------------------------------------


class Sees(of.Functional):
    """The mean square of one part; it does not see the others."""

    def __init__(self, part):
        self.part = part

    def value(self, mu):
        return mu[self.part].expectation(lambda x: x.square().sum(-1))


def test_parts_that_a_functional_does_not_see_rest():
    mu = all_of_them()
    views = dict(zip(mu.names, mu.views(Sees("gaussian").velocity(mu)), strict=True))
    assert bool(views.pop("gaussian").any())
    assert not any(bool(view.any()) for view in views.values())
    pair = Parts([clouds.uniform(), clouds.weighted()])
    rates = Sees(1).first_variation(pair)
    assert not bool(rates[:7].any())
    torch.testing.assert_close(rates[7:], pair[1].points.square().sum(-1))


def test_a_functional_that_sees_no_part_is_a_mistake():
    class Blind(of.Functional):
        def value(self, mu):
            return mu[0].points.detach().sum()

    pair = Parts([clouds.uniform(), clouds.weighted()])
    for derivative_of in (Blind().velocity, Blind().first_variation):
        with pytest.raises(of.errors.InvalidFunctional, match="detached"):
            derivative_of(pair)


def test_a_functional_that_writes_into_a_part_raises():
    class Writes(of.Functional):
        def value(self, mu):
            mu["particles"].points.detach().add_(1.0)
            return moment(mu)

    with pytest.raises(of.errors.InvalidFunctional, match="modified the measure"):
        Writes().velocity(all_of_them())


def test_a_write_into_a_part_is_told_by_the_whole():
    x = normal(3, 2)
    part = of.Particles(x)
    mu = Parts([part, Euclidean(x)])
    part.points.add_(1.0)
    for verb in (lambda: mu.coordinates, lambda: Moment().value(mu), mu.tensors):
        with pytest.raises(of.errors.ModifiedInPlace):
            verb()


def test_a_graph_passes_through_unrolled_steps_of_all_parts():
    def end(t):
        mu = Parts(
            [of.Particles((1 + t) * normal(3, 2)), Euclidean(normal(2) + t, scale=0.5)]
        )
        for _ in range(5):
            mu = mu.push(Moment().velocity(mu), 0.01)
        return mu.coordinates.sum()

    t = torch.zeros((), dtype=F64, requires_grad=True)
    (found,) = torch.autograd.grad(end(t), t)
    wanted = derivative(lambda s: end(torch.as_tensor(s, dtype=F64)))
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)


def test_a_notebook_shows_each_part_and_a_table_says_why_not():
    mu = all_of_them()
    text = mu._repr_html_()
    assert text.count("<svg") == 4
    assert "3 more parts" in text
    assert "particles" in text
    run = of.flow(Moment(), mu, of.ExplicitEuler(), dt=1e-3, steps=2)
    assert "<svg" in run._repr_html_()
    for verb in (run.to_xarray, lambda: of.plotting.particles(mu)):
        with pytest.raises(of.errors.Unsupported, match="ask a part"):
            verb()
    assert len(run.to_pandas()) == 3


def test_a_flow_stops_when_all_parts_rest():
    spring = of.Potential(lambda x: 0.5 * x.square().sum(-1))
    mu = Parts([clouds.uniform(), Euclidean(normal(2, 3))])
    F = of.functionals.OfPart(0, spring) + of.functionals.OfPart(1, spring)
    run = of.flow(
        F,
        mu,
        of.ExplicitEuler(),
        dt=0.3,
        steps=200,
        on_step=of.callbacks.Stationary(1e-3),
    )
    assert run.status == "stopped"
    assert float(run.final.norm(F.velocity(run.final))) < 1e-3


def test_an_adaptive_scheme_measures_all_parts():
    spring = of.Potential(lambda x: 0.5 * x.square().sum(-1))
    mu = Parts([clouds.uniform(), of.Gaussian(torch.ones(2), torch.eye(2)).to(F64)])
    F = of.functionals.OfPart(0, spring) + of.functionals.OfPart(1, spring)
    scheme = of.schemes.Adaptive(of.ExplicitEuler(), tolerance=1e-3)
    run = of.flow(F, mu, scheme, dt=1.0, steps=400, until=1.0)
    exact = mu.coordinates * torch.exp(torch.tensor(-1.0, dtype=F64))
    torch.testing.assert_close(run.final.coordinates, exact, rtol=0, atol=0.02)


def test_changes_of_parts_on_fixed_cells_add_up_with_lengths():
    # Before, the masses of the whole were asked for, which it has not.
    mu = all_of_them()
    there = mu.push(1e-3 * normal(mu.tangent_shape[0]), 1.0)
    shares = (mu["grid"].weights - there["grid"].weights).abs().sum() / 2
    rest = [name for name in mu.names if name != "grid"]
    both = [(mu[name], there[name]) for name in rest]
    lengths = [float(a.norm(a.displacement_to(b))) for a, b in both]
    expected = math.hypot(float(shares), *lengths)
    assert shares > 0
    assert mu.change_to(there) == pytest.approx(expected, rel=1e-12)
    scheme = of.schemes.Adaptive(of.ExplicitEuler(), tolerance=1e-3)
    run = of.flow(Moment(), mu, scheme, dt=1e-2, steps=3)
    assert all(info["error"] <= 1e-3 for info in run.info)
    assert run.records["energy"].diff().max() < 0


def test_convexity_along_displacements_is_looked_for_in_all_parts():
    spring = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
    mu = Parts([clouds.uniform(), Euclidean(normal(2, 3))])
    nu = mu.push(normal(20, seed=9), 1.0)
    F = of.functionals.OfPart(0, spring) + of.functionals.OfPart(1, 3 * spring)
    report = of.analysis.displacement_convexity(F, mu, nu)
    # Half of |x|^2 in each part; six parameters weigh 1/6 in their metric.
    u, v = mu.views(mu.displacement_to(nu))
    curvature = u.square().sum(-1).mean() + 3 * v.square().sum()
    expected = float(
        curvature / mu.inner(mu.displacement_to(nu), mu.displacement_to(nu))
    )
    assert abs(report.minimum - expected) < 1e-6 * expected
    assert report.declared_modulus == 0


def damaged(mu, **attributes):
    """Return a measure with other attributes, as a file that was changed makes it."""
    new = object.__new__(type(mu))
    new.__setstate__(mu.__getstate__() | attributes)
    return new


def test_a_damaged_part_is_found_and_named():
    mu = Parts({"good": clouds.uniform(), "bad": clouds.weighted()})
    bad = clouds.weighted()
    bad = bad.with_free_atoms(weights=2 * bad.weights)
    assert "sum 2, not 1 in part 'bad'" in mu.with_part("bad", bad).fault()
    assert mu.fault() == ""
    weird = Parts([clouds.uniform(), Euclidean(normal(2))])
    damage = {
        "2 parts of the names": {"names": ("0",)},
        r"2 parts of the names \['a', 'a'\]": {"names": ("a", "a")},
        "the part '1' has dtype torch.float32": {
            "parts": (weird[0], weird[1].to(torch.float32))
        },
        "the part '1' must be a Measure": {"parts": (weird[0], 3)},
        "scale must lie between .* in part '1'": {
            "parts": (weird[0], damaged(weird[1], scale=-1.0))
        },
        "not finite in part '1'": {
            "parts": (weird[0], damaged(weird[1], values=math.nan * normal(2)))
        },
    }
    for words, change in damage.items():
        new = damaged(weird, **change)
        assert re.search(words, new.fault()), (words, new.fault())


@pytest.mark.parametrize(
    "copied",
    [
        lambda mu: mu.clone(),
        copy.copy,
        copy.deepcopy,
        lambda mu: pickle.loads(pickle.dumps(mu)),
        lambda mu: mu.to(torch.float32),
        lambda mu: mu.push(torch.ones_like(mu.values), 1.0),
        lambda mu: mu.map_tensors(torch.Tensor.clone),
    ],
)
@pytest.mark.parametrize("written", ["points", "values"])
def test_a_copy_of_parameters_is_one_tensor_and_tells_of_a_write(copied, written):
    # Before, a clone had a second tensor of points, that stayed as it was.
    mu = copied(Euclidean(normal(2, 3)))
    assert mu.points.data_ptr() == mu.values.data_ptr()
    getattr(mu, written).zero_()
    for name in ("points", "values"):
        with pytest.raises(of.errors.ModifiedInPlace):
            getattr(mu, name)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_scale_of_the_metric_is_one_that_the_dtype_can_multiply_by(dtype):
    limit = 1e15 if dtype == torch.float32 else 1e150
    values = torch.ones(3, dtype=dtype)
    for scale in (2 / limit, 0.5 * limit):
        mu = Euclidean(values, scale)
        length = float(mu.norm(values))
        assert length == pytest.approx((3 * scale) ** 0.5, rel=1e-6)
        assert torch.isfinite(mu.tangent_of(values, len)).all()
    for scale in (0.5 / limit, 2 * limit):
        with pytest.raises(ValueError, match="take other units"):
            Euclidean(values, scale)
    with pytest.raises(ValueError, match=r"in torch\.float32"):
        Euclidean(values.double(), 1e-20).to(torch.float32)


def test_a_part_may_have_any_name():
    mu = Parts({"self": clouds.uniform(), "parts": clouds.uniform()})
    other = clouds.weighted()
    assert mu.replace(self=other)["self"] is other


def test_a_flow_keeps_parts_finite_or_raises():
    mu = Parts([clouds.uniform(), Euclidean(normal(2))])
    uphill = of.Potential(lambda x: -x.square().sum(-1))
    F = of.functionals.OfPart(1, uphill)
    with pytest.raises(of.errors.Diverged, match="part '1': values left") as caught:
        of.flow(F, mu, of.ExplicitEuler(), dt=1e9, steps=200)
    assert caught.value.trajectory.final.fault() == ""


# The laws of every measure ------------------------------------------------------------


def linear(mu):
    return sum(potential(part) for part in mu.parts)


def coupled(mu):
    return torch.stack([potential(part) for part in mu.parts]).square().sum().sin()


def paired(mu):
    return sum(interaction(part) for part in mu.parts)


class PartsContract(MeasureContract):
    has_points = False

    def values(self):
        return [linear, coupled, paired]

    def text(self, mu):
        each = zip(mu.names, mu.parts, strict=True)
        return f"Parts({', '.join(f'{name}={part!r}' for name, part in each)})"

    def change(self, mu, rate):
        rates = rate.split([part.n for part in mu.parts])
        return torch.cat(
            [
                self.change(part, own)
                if isinstance(part, Parts)
                else super(PartsContract, self).change(part, own)
                for part, own in zip(mu.parts, rates, strict=True)
            ]
        )

    def derivative_along(self, value, mu, v):
        if not mu.on_fixed_cells:
            return super().derivative_along(value, mu, v)
        ahead, back = (
            derivative(lambda t, s=s: value(mu.push(v, s * t)), 1e-5) for s in (1, -1)
        )
        return 0.5 * (ahead - back)


class TestPartsOfAtoms(PartsContract):
    """Two clouds, one of them with atoms without mass, and one of the cone."""

    capabilities = frozenset({"mass_gradient", "diffuse", "reweight"})

    def make(self, dtype=F64):
        return Parts([clouds.uniform(dtype=dtype), clouds.degenerate(dtype=dtype)])


class TestPartsOfAllKinds(PartsContract):
    def make(self, dtype=F64):
        rows = normal(3, 2, dtype=dtype).abs() + 0.1
        return Parts(
            {
                "atoms": clouds.weighted(4, 3, dtype=dtype),
                "line": of.Quantiles(torch.linspace(-1, 2, 6, dtype=dtype)),
                "bell": of.Gaussian(normal(1, dtype=dtype), torch.eye(1, dtype=dtype)),
                "rows": of.measures.ConicParticles(rows),
                "tensor": Euclidean(normal(2, 3, dtype=dtype)),
            }
        )


class TestPartsOfParts(PartsContract):
    """A part may be made of parts: a tangent of it is flat, and so is a view of one."""

    capabilities = frozenset({"mass_gradient", "diffuse", "reweight"})

    def values(self):
        def deep(mu):
            return linear(mu["pair"]) + potential(mu["alone"])

        return [deep, lambda mu: deep(mu).sin() * coupled(mu["pair"])]

    def make(self, dtype=F64):
        pair = Parts([clouds.uniform(dtype=dtype), clouds.weighted(3, 1, dtype=dtype)])
        return Parts({"pair": pair, "alone": clouds.weighted(4, 3, dtype=dtype)})


class TestEuclidean(MeasureContract):
    capabilities = frozenset({"diffuse"})

    def make(self, dtype=F64):
        return Euclidean(normal(2, 3, dtype=dtype), scale=0.4)

    def text(self, mu):
        return "Euclidean(shape=(2, 3), scale=0.4, dtype=float64, device=cpu)"


class TestAWholeNumberOfParameters(TestEuclidean):
    """A scale of 1/m by default, and a tensor without axes."""

    def make(self, dtype=F64):
        return Euclidean(torch.tensor(0.3, dtype=dtype))

    def text(self, mu):
        return "Euclidean(shape=(), scale=1, dtype=float64, device=cpu)"
