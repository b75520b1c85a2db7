"""Terms that a user wrote: taken cell by cell where they are, else linearised."""

import math

import pytest
import torch

import otflow as of
from otflow.proximal import BackAndForth
from otflow.proximal.grid.own_energy import OwnEnergy, taken_cell_by_cell
from otflow.proximal.terms import sort_terms

F64 = torch.float64
TOLERANCE = 1e-6


class Written(of.Functional):
    """A functional of which only the value is known."""

    def __init__(self, value):
        self._value = value

    def value(self, mu):
        return self._value(mu)


def rho(mu):
    return mu.density().clamp_min(torch.finfo(mu.dtype).tiny)


def bowl(x):
    return 2 * (x - 0.6).square().sum(-1)


def steep(x):
    return 4 * x[..., 0].square() - 3 * x[..., -1]


def logistic(r):
    """Convex, and neither a logarithm nor a power: e with U = r e."""
    return 0.5 * r + 0.2 * r.log1p()


TWINS = {
    "entropy": (lambda mu: (mu.weights * rho(mu).log()).sum(), of.Entropy()),
    "entropy, by volumes": (
        lambda mu: mu.box.cell_volume * (rho(mu) * rho(mu).log()).sum(),
        of.Entropy(),
    ),
    "power 2": (lambda mu: mu.weights @ mu.density(), of.PowerEntropy(2)),
    "power 2.5": (
        lambda mu: mu.weights @ rho(mu).pow(1.5) / 1.5,
        of.PowerEntropy(2.5),
    ),
    "potential": (
        lambda mu: mu.weights @ steep(mu.points),
        of.Potential(steep),
    ),
    "relative entropy": (
        lambda mu: mu.weights @ (rho(mu).log() + steep(mu.points)),
        of.Entropy() + of.Potential(steep),
    ),
    "neither": (lambda mu: mu.weights @ logistic(rho(mu)), of.Internal(logistic)),
}


def measure(shape, dtype=F64, factor=1.0):
    def f(x):
        return factor * (0.05 + torch.exp(-30 * (x - 0.35).square().sum(-1)))

    return of.GridDensity.from_function(f, 0.0, 1.0, shape, walls=True, dtype=dtype)


def rest(name):
    """A potential needs an entropy beside it, or its step is a push-forward."""
    linear = of.Potential(bowl, modulus=4.0)
    return linear + of.Entropy() if name == "potential" else linear


def apart(a, b):
    return float((a.measure.weights.double() - b.measure.weights.double()).abs().sum())


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize(
    ("name", "dt"),
    [(name, dt) for name in TWINS for dt in (0.01, 0.3)]
    + [(name, 20.0) for name in TWINS if name != "neither"],
)
def test_a_term_that_a_user_wrote_makes_the_step_of_its_twin(name, dt, dtype):
    value, built_in = TWINS[name]
    mu = measure((12,) if name == "neither" else (24,), dtype)
    known = BackAndForth().solve(rest(name) + 0.7 * built_in, mu, dt)
    written = BackAndForth().solve(rest(name) + 0.7 * Written(value), mu, dt)
    assert known.certificate["converged"]
    assert written.certificate["converged"]
    assert written.certificate["certified"]
    assert written.certificate["linearisations"] == 0
    # A modulus is declared by nobody, so no distance is claimed.
    assert written.certificate["guarantee"] == "optimal"
    assert apart(known, written) <= 10 * TOLERANCE
    for word in ("primal", "dual"):
        size = abs(known.certificate["primal"]) + 1
        error = written.certificate[word] - known.certificate[word]
        assert abs(error) <= 10 * TOLERANCE * size


@pytest.mark.parametrize("shape", [(6, 5), (30, 1), (4, 3, 3)])
@pytest.mark.parametrize("name", TWINS)
def test_and_so_off_the_line(name, shape):
    value, built_in = TWINS[name]
    mu = measure(shape)
    known = BackAndForth().solve(rest(name) + built_in, mu, 0.05)
    written = BackAndForth().solve(rest(name) + Written(value), mu, 0.05)
    assert known.certificate["converged"]
    assert written.certificate["converged"]
    assert apart(known, written) <= 10 * TOLERANCE


@pytest.mark.parametrize("name", ["entropy", "power 2", "neither"])
def test_beside_other_energies_and_below_a_bound(name):
    value, built_in = TWINS[name]
    mu = measure((40,))
    others = rest(name) + 0.05 * of.Entropy() + of.Congestion(4.0)
    known = BackAndForth().solve(others + 0.1 * built_in, mu, 0.1)
    written = BackAndForth().solve(others + 0.1 * Written(value), mu, 0.1)
    assert known.certificate["converged"]
    assert written.certificate["converged"]
    assert float(written.measure.density().max()) <= 4.0
    assert apart(known, written) <= 10 * TOLERANCE


@pytest.mark.parametrize("unit", [1e-6, 1e6])
@pytest.mark.parametrize("name", ["entropy", "power 2", "neither"])
def test_whatever_the_unit_of_length(name, unit):
    def scaled(mu):
        return of.GridDensity(mu.grid / unit**2, 0.0, unit, walls=True, normalize=True)

    mu = scaled(measure((4, 3)))
    e = {
        "entropy": lambda r: (r * unit**2).clamp_min(1e-300).log(),
        "power 2": lambda r: r * unit**2,
        "neither": lambda r: logistic(r * unit**2),
    }[name]
    F = of.Potential(lambda x: unit**2 * bowl(x / unit))
    known = BackAndForth().solve(F + unit**2 * of.Internal(e), mu, 0.1)
    own = Written(lambda mu: unit**2 * (mu.weights @ e(mu.density())))
    written = BackAndForth().solve(F + own, mu, 0.1)
    assert known.certificate["converged"]
    assert written.certificate["converged"]
    assert written.certificate["linearisations"] == 0
    assert apart(known, written) <= 10 * TOLERANCE


@pytest.mark.parametrize("name", TWINS)
def test_the_last_bit_of_the_input_decides_nothing(name):
    F = rest(name) + Written(TWINS[name][0])
    ends = []
    for factor in (1.0, 1 + 1e-13):
        mu = measure((40,))
        weights = (mu.weights * factor) / (mu.weights * factor).sum()
        end = BackAndForth().solve(factor * F, mu.with_weights(weights), factor * 0.1)
        assert end.certificate["converged"]
        ends.append(end)
    assert ends[0].certificate["guarantee"] == ends[1].certificate["guarantee"]
    assert abs(ends[0].iterations - ends[1].iterations) <= 3
    assert apart(*ends) <= 10 * TOLERANCE


def gathered(mu):
    """Not cell by cell: the square of a mean."""
    return 0.2 * (mu.weights @ mu.points[:, 0]).square()


def symmetric(mu):
    """Not cell by cell, though it sees no place: the square of a power."""
    return 0.02 * (mu.weights @ mu.density()).square()


def uneven(mu):
    """Cell by cell, but another energy in each."""
    return 0.02 * (mu.weights * (1 + mu.points[:, 0])) @ mu.density()


def rough(mu):
    """A gradient of the density."""
    return 1e-4 * mu.box.gradient(mu.density()).square().sum()


def concave(mu):
    return -0.02 * (mu.weights @ mu.density())


def fast(mu):
    return -0.02 * mu.box.cell_volume * rho(mu).sqrt().sum()


def single(mu):
    """A user's table in float32: float64 masses are refused."""
    table = torch.ones(mu.n, dtype=torch.float32)
    return 0.1 * (mu.weights @ table)


@pytest.mark.parametrize(
    "value", [gathered, symmetric, uneven, rough, concave, fast, single]
)
def test_other_terms_stay_what_they_are(value):
    mu = measure((40,))
    terms = sort_terms(rest("none") + 0.3 * of.Entropy() + Written(value), 1)
    taken = taken_cell_by_cell(terms, mu)
    assert taken.own == ()
    assert taken.terms == terms


def test_a_term_that_is_no_cells_is_linearised_as_before():
    mu = measure((40,))
    F = rest("none") + 0.3 * of.Entropy()
    one = BackAndForth().solve(F + Written(gathered), mu, 0.1)
    assert one.certificate["converged"]
    assert one.certificate["linearisations"] > 0
    assert one.certificate["guarantee"] == "stationary"
    # (E x)^2 is the linear term of that slope at the new density.
    mean = one.measure.expectation(lambda x: x[..., 0])
    linear = of.Potential(lambda x: 0.4 * mean * x[..., 0])
    other = BackAndForth().solve(F + linear, mu, 0.1)
    assert other.certificate["converged"]
    assert apart(one, other) <= 20 * TOLERANCE


def test_a_model_that_fails_at_the_result_is_given_up():
    """Cell by cell at all densities that were tried, but not at its own."""
    mu = measure((40,))

    def hidden(nu):
        total = nu.weights.sum()
        spread = nu.weights @ nu.density() - 1  # 0 of the flat density
        near = torch.exp(-((total - 1) / 1e-3).square()) * torch.tanh(20 * spread**2)
        own = 0.02 * (nu.weights @ nu.density())
        return own + near * 0.02 * (nu.weights @ nu.points[:, 0]).square()

    F = rest("none") + of.Entropy() + Written(hidden)
    terms = sort_terms(F, 1)
    assert len(taken_cell_by_cell(terms, mu).own) == 1
    end = BackAndForth().solve(F, mu, 0.1)
    assert end.certificate["converged"]
    assert end.certificate["linearisations"] > 0


def test_the_energy_of_a_term_against_its_own_closed_form():
    mu = measure((12,))
    value = lambda nu: nu.weights @ (logistic(rho(nu)) + steep(nu.points))
    terms = sort_terms(Written(value), 1)
    found = taken_cell_by_cell(terms, mu)
    (own,) = found.own
    known = of.Internal(logistic)
    assert isinstance(own.energy, OwnEnergy)
    shift = float((found.potential(mu) - steep(mu.points)).mean())
    r = torch.logspace(-6, 1, 30, dtype=F64)  # more than there are cells
    slope = known.slope(r) - shift
    torch.testing.assert_close(own.energy.slope(r), slope, rtol=1e-9, atol=1e-9)
    bend = known.curvature(r)
    torch.testing.assert_close(own.energy.curvature(r), bend, rtol=1e-4, atol=1e-8)
    sum_of_U = (r * known.e(r) - shift * r).sum()
    assert math.isclose(float((r * own.energy.e(r)).sum()), sum_of_U, rel_tol=1e-9)
    s = torch.linspace(0.3, 2.0, 9, dtype=F64)
    there = own.energy.conjugate_slope(s - shift)
    torch.testing.assert_close(there, known.conjugate_slope(s), rtol=1e-8, atol=1e-8)
    total = own.energy.conjugate(s - shift).sum()
    assert math.isclose(float(total), float(known.conjugate(s).sum()), rel_tol=1e-8)
