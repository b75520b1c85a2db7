"""The risk as a functional: contracts, the fused closed form, batches, refusals."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import otflow as of
from otflow.meanfield import network as network_module
from otflow.meanfield.units import UNITS
from otflow.testing import FunctionalContract, clouds
from otflow.testing.clouds import assert_plain, assert_untouched, normal, state
from otflow.testing.differences import derivative

Functional, Risk, TwoLayer = of.Functional, of.meanfield.Risk, of.meanfield.TwoLayer
SCALINGS = ["mean-field", "ntk", "sum"]


def quartic(f, y):
    """A loss of one's own."""
    return (f - y).pow(4).flatten(1).sum(1) if f.ndim > 1 else (f - y).pow(4)


def problem(n, d, outputs, loss, dtype=torch.float64):
    """Return inputs and targets that fit a loss."""
    X = normal(n, d, seed=7, dtype=dtype)
    y = normal(n, *([outputs] if outputs else []), seed=8, dtype=dtype)
    if loss == "logistic":
        y = y.sign()
    if loss == "cross-entropy":
        y = torch.arange(n) % outputs
    return X, y


# The laws of every functional ---------------------------------------------------------


class RiskContract(FunctionalContract):
    """The data have a dtype, so a risk of single-precision measures is another one."""

    network: of.meanfield.Model = TwoLayer("tanh")
    outputs: int | None = None
    loss: Any = "square"
    inputs = 2
    dim = 4

    def make(self, dtype=torch.float64):
        X, y = problem(9, self.inputs, self.outputs, self.loss, dtype)
        return Risk(self.network, X, y, loss=self.loss)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_value_and_derivatives_keep_dtype_and_carry_no_graph(self, dtype):
        F, mu = self.make(dtype), self.measure(dtype)
        before = state(mu)
        value, velocity = F.value_and_velocity(mu)
        probes = F.first_variation(mu, mu.points + 0.1)
        found = [value, velocity, F.value(mu), F.first_variation(mu), probes]
        assert {x.dtype for x in found} == {dtype}
        assert_plain(*found)
        assert value.shape == ()
        assert velocity.shape == mu.points.shape
        assert probes.shape == (mu.n,)
        assert_untouched(mu, before)

    def test_one_call_gives_what_three_give(self):
        F = self.make()
        for mu in self.measures():
            value, velocity, variation = F.value_and_derivatives(mu)
            torch.testing.assert_close((value, velocity), F.value_and_velocity(mu))
            torch.testing.assert_close(
                (value, variation), F.value_and_first_variation(mu)
            )
            torch.testing.assert_close(variation, F.first_variation(mu))

    def test_float32_agrees_with_float64(self):
        mu, nu = self.measure(torch.float32), self.measure()
        value, velocity = self.make(torch.float32).value_and_velocity(mu)
        reference, expected = self.make().value_and_velocity(nu)
        assert float(value) == pytest.approx(float(reference), rel=1e-5)
        scale = float(expected.abs().max())
        torch.testing.assert_close(
            velocity.double(), expected, rtol=0, atol=1e-5 * scale
        )


class TestSquareTanh(RiskContract):
    pass


class TestSquareErfNtk(RiskContract):
    network = TwoLayer("erf", scaling="ntk", offset=0.2)


class TestLogisticSigmoidSum(RiskContract):
    network = TwoLayer("sigmoid", scaling="sum", bias=False)
    loss = "logistic"
    inputs = 3


class TestCrossEntropy(RiskContract):
    network = TwoLayer("tanh", outputs=3)
    outputs = 3
    loss = "cross-entropy"
    dim = 6


class TestOwnActivation(RiskContract):
    network = TwoLayer(torch.nn.functional.gelu)


class TestOwnNeuronAndLoss(RiskContract):
    network = of.meanfield.CustomLayer(
        lambda x, t: (
            t[:, 0] * torch.exp(-(x[:, None] - t[:, 1:3]).square().sum(-1)) + t[:, 3]
        )
    )
    loss = staticmethod(quartic)

    def make(self, dtype=torch.float64):
        X, y = problem(9, self.inputs, None, "square", dtype)
        return Risk(self.network, X, y, loss=quartic)


class TestOwnVectorNeuron(RiskContract):
    network = of.meanfield.CustomLayer(
        lambda x, t: torch.tanh(x @ t[:, 2:].T)[:, :, None] * t[:, :2],
        outputs=2,
        scaling="ntk",
    )
    outputs = 2


# The fused closed form ----------------------------------------------------------------


def measures(p):
    """Return uniform, weighted, and zero-weight neurons."""
    return [clouds.uniform(11, p, seed=1), clouds.weighted(8, p), clouds.degenerate(p)]


def assert_same(found, expected, tolerance=1e-12):
    scale = float(expected.abs().max())
    assert scale > 0
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * scale)


def assert_as_autodiff(F, mu):
    """Check value, velocity and first variation, at the atoms and elsewhere."""
    pairs = zip(
        F.value_and_velocity(mu), Functional.value_and_velocity(F, mu), strict=True
    )
    for found, expected in pairs:
        assert_same(found, expected)
    for x in (None, normal(5, mu.dim, seed=3)):
        assert_same(F.first_variation(mu, x), Functional.first_variation(F, mu, x))


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("loss", ["square", "logistic", "cross-entropy", quartic])
@pytest.mark.parametrize("outputs", [None, 1, 3])
def test_closed_forms_are_those_of_autodiff(monkeypatch, unit, loss, outputs):
    if loss == "cross-entropy" and outputs != 3:
        return
    monkeypatch.setattr(network_module, "CPU_BLOCK_BYTES", 1)  # blocks of 64 rows
    X, y = problem(150, 3, outputs, loss)
    offset = 0.3 if outputs is None else [0.3, -0.1, 0.2][:outputs]
    for scaling, bias in itertools.product(SCALINGS, [True, False]):
        network = TwoLayer(
            unit, outputs=outputs, bias=bias, scaling=scaling, offset=offset
        )
        F = Risk(network, X, y, loss=loss)
        for mu in measures((outputs or 1) + 3 + bias):
            assert_as_autodiff(F, mu)


def test_closed_forms_hold_for_a_unit_of_ones_own():
    class Cubic(of.meanfield.Unit):
        name = "cubic"
        calls = 0

        def __call__(self, z):
            return z.pow(3)

        def slope(self, z, value, out):
            Cubic.calls += 1
            return torch.mul(z, z, out=out).mul_(3)

    X, y = problem(9, 2, None, "square")
    for mu in measures(4):
        assert_as_autodiff(Risk(TwoLayer(Cubic()), X, y), mu)
    assert Cubic.calls == 3


@pytest.mark.parametrize("outputs", [None, 2])
def test_the_slope_of_a_homogeneous_unit_may_need_the_sign_of_its_argument(outputs):
    """The value of |z| does not tell its slope, unlike that of relu."""

    class Modulus(of.meanfield.Unit):
        name = "modulus"
        homogeneous = True

        def __call__(self, z):
            return z.abs()

        def slope(self, z, value, out):
            return torch.sign(z, out=out)

    X, y = problem(9, 2, outputs, "square")
    for mu in measures((outputs or 1) + 3):
        assert_as_autodiff(Risk(TwoLayer(Modulus(), outputs=outputs), X, y), mu)


def test_built_in_units_need_no_autodiff(monkeypatch):
    def refuse(*args, **kwargs):
        msg = "autodiff was used"
        raise AssertionError(msg)

    X, y = problem(9, 2, None, "square")
    mu = clouds.degenerate(4)
    monkeypatch.setattr(torch.autograd, "grad", refuse)
    Risk(TwoLayer("relu"), X, y).value_and_velocity(mu)
    Risk(TwoLayer("relu"), X, y).first_variation(mu)
    with pytest.raises(AssertionError, match="autodiff was used"):
        Risk(TwoLayer(torch.relu), X, y).value_and_velocity(mu)


@pytest.mark.parametrize("unit", UNITS)
def test_float32_is_as_good_as_autodiff_in_float32(unit):
    X, y = problem(300, 5, None, "square")
    mu = clouds.uniform(200, 7)
    exact = Risk(TwoLayer(unit), X, y).velocity(mu)
    F = Risk(TwoLayer(unit), X.float(), y.float())
    nu = of.Particles(mu.points.float())
    scale = float(exact.abs().max())
    found, other = F.velocity(nu), Functional.value_and_velocity(F, nu)[1]
    ours, theirs = (
        float((v.double() - exact).abs().max()) / scale for v in (found, other)
    )
    assert ours < 5 * theirs + 1e-6
    assert ours < 1e-5


class LargestTensor(TorchDispatchMode):
    """Keeps the number of entries of the largest tensor that an operation returns."""

    def __init__(self):
        super().__init__()
        self.entries = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for x in found if isinstance(found, (tuple, list)) else [found]:
            if isinstance(x, torch.Tensor):
                self.entries = max(self.entries, x.numel())
        return found


def test_no_tensor_has_an_entry_per_datum_and_neuron():
    n = N = 1024
    X, y = problem(n, 3, None, "square")
    F, mu = Risk(TwoLayer("tanh"), X, y), clouds.uniform(N, 5)
    for call in (F.value_and_velocity, F.first_variation, F.value):
        with LargestTensor() as largest, torch.no_grad():
            call(mu)
        assert N < largest.entries <= n * N / 4
    with LargestTensor() as largest:
        TwoLayer("tanh").features(mu.points, X)
    assert largest.entries == n * N


# Derivatives in the masses, and the training of a network -----------------------------


def test_the_first_variation_is_the_slope_along_mixtures():
    X, y = problem(12, 2, None, "square")
    F, mu, nu = (
        Risk(TwoLayer("tanh"), X, y),
        clouds.weighted(9, 4),
        clouds.uniform(5, 4, seed=6),
    )

    def mixture(t):
        both = torch.cat([mu.points, nu.points])
        return mu.with_free_atoms(
            both, torch.cat([(1 - t) * mu.weights, t * nu.weights])
        )

    expected = nu.weights @ F.first_variation(
        mu, nu.points
    ) - mu.weights @ F.first_variation(mu)
    slope = derivative(lambda t: F.value(mixture(t)))
    torch.testing.assert_close(slope, expected, rtol=1e-10, atol=1e-12)
    # Convex along mixtures, and quadratic: the excess over the tangent is t^2 times one
    # positive number.
    excess = [
        float(F.value(mixture(t)) - F.value(mu) - t * expected) / t**2
        for t in (1.0, 0.5, 0.1)
    ]
    assert excess[0] > 0.01
    assert excess[1:] == pytest.approx(excess[:1] * 2, rel=1e-9)


def plain_loss(theta, X, y):
    """The loss of the same network, as one writes it in PyTorch."""
    a, w, b = theta[:, 0], theta[:, 1:-1], theta[:, -1]
    return 0.5 * ((torch.tanh(X @ w.T + b) @ a / len(theta)) - y).square().mean()


def test_the_velocity_is_minus_n_times_the_gradient_of_the_parameters():
    X, y = problem(20, 2, None, "square")
    F, mu = Risk(TwoLayer("tanh"), X, y), clouds.uniform(30, 4)
    theta = mu.points.clone().requires_grad_()
    loss = plain_loss(theta, X, y)
    (gradient,) = torch.autograd.grad(loss, theta)
    value, velocity = F.value_and_velocity(mu)
    assert_same(value, loss.detach(), 1e-15)
    assert_same(velocity, -30 * gradient, 1e-15)


def test_an_euler_step_is_a_step_of_sgd():
    X, y = problem(20, 2, None, "square")
    F, mu = Risk(TwoLayer("tanh"), X, y), clouds.uniform(30, 4)
    theta = torch.nn.Parameter(mu.points.clone())
    optimizer = torch.optim.SGD([theta], lr=0.1 * 30)
    for _ in range(5):
        optimizer.zero_grad()
        plain_loss(theta, X, y).backward()
        optimizer.step()
    final = of.flow(F, mu, of.ExplicitEuler(), dt=0.1, steps=5).final
    torch.testing.assert_close(final.points, theta.detach(), rtol=0, atol=1e-14)
    assert float((final.points - mu.points).abs().max()) > 0.01


def test_a_step_of_sgd_in_the_ntk_scaling_is_an_euler_step_of_dt_over_n():
    X, y = problem(20, 2, None, "square")
    N, rate = 30, 0.1
    F, mu = Risk(TwoLayer("tanh", scaling="ntk"), X, y), clouds.uniform(N, 4)
    theta = mu.points.clone().requires_grad_()
    hidden = torch.tanh(X @ theta[:, 1:3].T + theta[:, 3])
    loss = 0.5 * (hidden @ theta[:, 0] / N**0.5 - y).square().mean()
    (gradient,) = torch.autograd.grad(loss, theta)
    moved = mu.push(F.velocity(mu), rate / N)
    torch.testing.assert_close(
        moved.points, mu.points - rate * gradient, rtol=0, atol=1e-15
    )


# Batches ------------------------------------------------------------------------------


def test_without_a_batch_size_resampling_gives_itself(generator):
    X, y = problem(10, 2, None, "square")
    F, before = Risk(TwoLayer("tanh"), X, y), generator.get_state()
    assert F.resample(generator) is F
    assert torch.equal(generator.get_state(), before)


def test_a_batch_is_drawn_without_replacement_and_keeps_pairs(generator):
    X = normal(10, 2)
    F = Risk(TwoLayer("tanh"), X, X[:, 0] - X[:, 1], batch_size=4)
    seen = set()
    for _ in range(200):
        batch = F.resample(generator)
        assert batch.X.shape == (4, 2)
        assert batch.batch_size is None
        torch.testing.assert_close(batch.y, batch.X[:, 0] - batch.X[:, 1])
        rows = tuple(sorted(X[:, 0].tolist().index(x) for x in batch.X[:, 0].tolist()))
        assert len(set(rows)) == 4
        seen.add(rows)
    assert len(seen) > 100  # of the 210 there are
    assert torch.equal(F.X, X)


@pytest.mark.parametrize("loss", ["square", "cross-entropy"])
def test_a_batch_is_unbiased(loss):
    # The mean over every batch of 2 of 5 data is the whole, exactly.
    X, y = problem(5, 2, 3, loss)
    F = Risk(TwoLayer("tanh", outputs=3), X, y, loss=loss, batch_size=2)
    mu = clouds.weighted(6, 6)
    batches = [
        F.subset(torch.tensor(rows)) for rows in itertools.combinations(range(5), 2)
    ]
    assert_same(torch.stack([b.value(mu) for b in batches]).mean(), F.value(mu))
    assert_same(torch.stack([b.velocity(mu) for b in batches]).mean(0), F.velocity(mu))
    # And each of the 10 comes up as often as the others: chi-square of 9 degrees.
    source = torch.Generator().manual_seed(1)
    counts = dict.fromkeys(itertools.combinations(range(5), 2), 0)
    draws = 2000
    for _ in range(draws):
        first = [X[:, 0].tolist().index(x) for x in F.resample(source).X[:, 0].tolist()]
        counts[tuple(sorted(first))] += 1
    expected = draws / 10
    assert (
        sum((c - expected) ** 2 / expected for c in counts.values()) < 27.9
    )  # p = .001


def test_the_same_generator_gives_the_same_batches():
    X, y = problem(50, 2, None, "square")
    F, mu = Risk(TwoLayer("tanh"), X, y, batch_size=5), clouds.uniform(9, 4)
    scheme = of.schemes.Minibatch(of.ExplicitEuler())
    options = {"dt": 0.1, "steps": 10}
    first, same, other = (
        of.flow(F, mu, scheme, generator=seed, **options).final.points
        for seed in (3, 3, 4)
    )
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


# Data and refusals --------------------------------------------------------------------


def test_data_are_copied_and_their_graph_is_dropped():
    X, y = normal(5, 2), normal(5, seed=1)
    for bias in (True, False):
        theirs, target = X.clone().requires_grad_(), y.clone().requires_grad_()
        F = Risk(TwoLayer("tanh", bias=bias), theirs, target)
        assert_plain(F.X, F.y)
        with torch.no_grad():
            theirs += 1
            target += 1
        assert torch.equal(F.X, X)
        assert torch.equal(F.y, y)


def test_arrays_are_welcome():
    X, y = problem(5, 2, None, "square")
    mu = clouds.uniform(6, 4)
    F, G = Risk(TwoLayer("tanh"), X, y), Risk(TwoLayer("tanh"), X.numpy(), y.numpy())
    assert torch.equal(F.velocity(mu), G.velocity(mu))
    reversed_rows = Risk(TwoLayer("tanh"), X.numpy()[::-1], y.numpy()[::-1])
    assert_same(reversed_rows.value(mu), F.value(mu))


@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        (
            normal(5),
            ValueError,
            r"^X must have shape \(n, d\), got \(5,\); use X\[:, None\]",
        ),
        (normal(0, 2), ValueError, "^X is empty"),
        (normal(5, 0), ValueError, "^X has dimension 0"),
        (
            normal(5, 2) * np.nan,
            ValueError,
            r"^X must be finite, got nan at index \(0, 0\)",
        ),
        (normal(5, 2) * np.inf, ValueError, r"^X must be finite, got -?inf at index"),
        (
            torch.ones(5, 2, dtype=torch.int64),
            TypeError,
            "^X must be float32 or float64",
        ),
        (
            torch.ones(5, 2, dtype=torch.float16),
            ValueError,
            "^X has dtype torch.float16",
        ),
        (torch.ones(5, 2, dtype=torch.complex128), TypeError, "^X must be float32"),
        (torch.ones(5, 2).to_sparse(), TypeError, "^X must be a dense tensor"),
        (
            [[1.0, 2.0]],
            TypeError,
            "^X must be a torch.Tensor or numpy.ndarray, got list",
        ),
    ],
)
def test_inputs_that_are_refused(X, error, message):
    with pytest.raises(error, match=message):
        Risk(TwoLayer("tanh"), X, normal(5))


@pytest.mark.parametrize(
    ("batch_size", "error", "message"),
    [
        (0, ValueError, "^batch_size must be at least 1, got 0"),
        (6, ValueError, "^batch_size must be at most n = 5, got 6"),
        (2.0, TypeError, "^batch_size must be an integer, got float"),
    ],
)
def test_batch_sizes_that_are_refused(batch_size, error, message):
    with pytest.raises(error, match=message):
        Risk(TwoLayer("tanh"), normal(5, 2), normal(5), batch_size=batch_size)


@pytest.mark.parametrize("network", [TwoLayer, "tanh", None])
def test_a_network_must_be_one(network):
    with pytest.raises(
        TypeError, match=r"^network must be a TwoLayer, a CustomLayer or "
    ):
        Risk(network, normal(5, 2), normal(5))


def test_measures_that_do_not_fit_are_refused():
    F = Risk(TwoLayer("tanh"), normal(5, 2), normal(5))
    for call in (F.value, F.value_and_velocity, F.first_variation, F.outputs):
        with pytest.raises(
            ValueError, match=r"p = m \+ d \+ 1 = 4 .*have dimension 5$"
        ):
            call(clouds.uniform(6, 5))
        with pytest.raises(
            TypeError, match=r"^the measure has dtype torch.float32 but X"
        ):
            call(clouds.uniform(6, 4, dtype=torch.float32))
    mu = clouds.uniform(6, 4)
    with pytest.raises(ValueError, match=r"^x must have shape \(m, 4\), got \(3, 5\)"):
        F.first_variation(mu, normal(3, 5))
    with pytest.raises(TypeError, match=r"^x has dtype torch.float32 but points has"):
        F.first_variation(mu, normal(3, 4).float())


@pytest.mark.parametrize("activation", ["relu", torch.relu])
def test_what_is_not_finite_is_named(activation):
    X = normal(5, 2)
    F = Risk(TwoLayer(activation), X, normal(5))
    huge = of.Particles(1e120 * normal(6, 4))
    with pytest.raises(of.errors.NonFinite, match=r"^the functional's value is inf"):
        F.value_and_velocity(huge)
    infinite = Risk(TwoLayer(activation), X, normal(5), loss=lambda f, _: f.abs() / 0.0)
    for call in (infinite.value_and_velocity, infinite.first_variation):
        with pytest.raises(of.errors.NonFinite):
            call(clouds.uniform(6, 4))


def test_a_flow_that_diverges_says_so():
    X, y = problem(9, 2, None, "square")
    with pytest.raises(of.errors.Diverged) as caught:
        of.flow(
            Risk(TwoLayer("relu"), X, y),
            clouds.uniform(9, 4),
            of.ExplicitEuler(),
            dt=1e6,
            steps=50,
        )
    assert torch.isfinite(caught.value.measure.points).all()


def test_nothing_global_is_touched():
    X, y = problem(9, 2, None, "square")
    F, mu = Risk(TwoLayer("erf"), X, y, batch_size=3), clouds.uniform(9, 4)
    before = clouds.global_state()
    F.value_and_velocity(mu)
    F.first_variation(mu)
    F.resample(torch.Generator().manual_seed(0)).value(mu)
    of.meanfield.to_module(mu, F.network)
    assert clouds.global_state() == before


def test_copies_and_reprs():
    X, y = problem(9, 2, None, "square")
    F, mu = Risk(TwoLayer("erf"), X, y, batch_size=3), clouds.uniform(9, 4)
    assert repr(F) == "Risk(TwoLayer('erf'), n=9, loss='square', batch_size=3)"
    for G in (copy.deepcopy(F), pickle.loads(pickle.dumps(F))):
        assert torch.equal(G.velocity(mu), F.velocity(mu))
        assert repr(G) == repr(F)
