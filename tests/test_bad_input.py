"""Every mistake at the door: a typed error that names the argument and the cure."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import otflow as of
from otflow._validation import check_like, check_option, seed_and_stream
from otflow.testing import clouds
from otflow.testing.clouds import normal
from tests import exact
from tests.refusals import refused

NAN, INF = float("nan"), float("inf")


# Points (1-5, 12-14, 17, 25, 27) ------------------------------------------------------

POINTS = {
    "one-dimensional": (
        normal(3),
        ValueError,
        "points must have shape (n, d), got (3,); use points[:, None] for points on",
    ),
    "three-dimensional": (
        normal(2, 3, 4),
        ValueError,
        "points must have shape (n, d), got (2, 3, 4)",
    ),
    "zero-dimensional": (torch.tensor(1.0), ValueError, "shape (n, d), got ()"),
    "empty": (
        torch.empty(0, 2),
        ValueError,
        "points is empty: shape (0, 2); at least one point is needed",
    ),
    "no coordinates": (
        torch.empty(3, 0),
        ValueError,
        "points has dimension 0: shape (3, 0); d >= 1 is needed",
    ),
    "NaN": (
        torch.tensor([[0.0, 0.0], [1.0, NAN]]),
        ValueError,
        "points must be finite, got nan at index (1, 1)",
    ),
    "infinity": (
        torch.tensor([[0.0], [-INF], [INF]]),
        ValueError,
        "points must be finite, got -inf at index (1, 0)",
    ),
    "too large": (
        torch.tensor([[0.0, 3e150]], dtype=torch.float64),
        ValueError,
        "points[0, 1] = 3e+150 is too large: squared distances overflow beyond 1e+150",
    ),
    "too large for float32": (
        torch.tensor([[1e16]]),
        ValueError,
        "beyond 1e+15 in torch.float32; rescale the points",
    ),
    "half precision": (
        normal(3, 2).half(),
        ValueError,
        "points has dtype torch.float16, too coarse for transport; use float32/float64",
    ),
    "bfloat16": (normal(3, 2).bfloat16(), ValueError, "use float32/float64"),
    "half array": (np.ones((2, 2), np.float16), ValueError, "use float32/float64"),
    "integers": (
        torch.arange(4)[:, None],
        TypeError,
        "points must be float32 or float64, got torch.int64; nothing is cast silently",
    ),
    "integer array": (np.arange(4)[:, None], TypeError, "got torch.int64"),
    "booleans": (torch.ones(2, 2, dtype=torch.bool), TypeError, "got torch.bool"),
    "boolean array": (
        np.ones((2, 2), bool),
        TypeError,
        "points must be a numeric array that torch knows, got bool",
    ),
    "complex": (normal(2, 2).to(torch.complex128), TypeError, "got torch.complex128"),
    "complex array": (np.ones((2, 2), complex), TypeError, "got torch.complex128"),
    "strings": (np.array([["a"]]), TypeError, "points must be a numeric array"),
    "objects": (np.array([[None]]), TypeError, "points must be a numeric array"),
    "long double": (np.ones((2, 2), np.longdouble), TypeError, "points must be"),
    "a list": (
        [[0.0, 1.0]],
        TypeError,
        "points must be a torch.Tensor or numpy.ndarray, got list; use torch.tensor(",
    ),
    "nothing": (None, TypeError, "got NoneType"),
    "sparse": (
        torch.eye(3).to_sparse(),
        TypeError,
        "points must be a dense tensor, got layout torch.sparse_coo",
    ),
    "meta": (
        torch.empty(3, 2, device="meta"),
        TypeError,
        "points must be a dense tensor, got layout torch.strided on device meta",
    ),
}


@pytest.mark.parametrize("case", POINTS)
def test_bad_points(case):
    points, kind, message = POINTS[case]
    with refused(kind, message):
        of.Particles(points)


def test_quantised_points():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8)
    with refused(TypeError, "points must be a dense tensor"):
        of.Particles(x)


@pytest.mark.parametrize("case", [c for c in POINTS if c != "nothing"])
def test_bad_probes(case):
    points, kind, message = POINTS[case]
    mu = clouds.uniform(3, 2)
    with refused(kind, re.sub(r"\bpoints(?= |\[)", "x", message, count=1)[:30]):
        exact.quadratic().first_variation(mu, points)


def test_probes_of_another_kind_than_the_measure():
    mu, F = clouds.uniform(3, 2), exact.quadratic()
    with refused(ValueError, "x must have shape (m, 2), got (4, 3)"):
        F.first_variation(mu, normal(4, 3))
    with refused(TypeError, "x has dtype torch.float32 but points has torch.float64;"):
        F.first_variation(mu, normal(4, 2).float())


# Weights (6-10, 15, 16) ---------------------------------------------------------------

WEIGHTS = {
    "negative": (
        [0.7, -0.2, 0.5],
        ValueError,
        "weights must be non-negative, got -0.2 at index 1",
    ),
    "sum above 1": (
        [0.5, 0.5, 0.5],
        ValueError,
        "weights must sum to 1, got 1.5; pass normalize=True to divide them",
    ),
    "sum just off 1": ([0.5, 0.5, 1e-7], ValueError, "must sum to 1, got 1.0000001"),
    "all zero": (
        [0.0, 0.0, 0.0],
        ValueError,
        "weights are all zero: a probability measure needs mass 1",
    ),
    "NaN": ([0.5, 0.5, NAN], ValueError, "weights must be finite, got nan at index 2"),
    "infinite": ([0.5, INF, 0.5], ValueError, "weights must be finite, got inf"),
    "too few": (
        [0.5, 0.5],
        ValueError,
        "weights must have shape (3,), one per point, got (2,)",
    ),
    "a column": ([[0.5], [0.25], [0.25]], ValueError, "weights must have shape (3,)"),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_bad_weights(case):
    weights, kind, message = WEIGHTS[case]
    with refused(kind, message):
        of.Particles(normal(3, 2), torch.tensor(weights, dtype=torch.float64))
    with refused(kind, message):
        of.Particles(normal(3, 2).numpy(), np.array(weights))


@pytest.mark.parametrize("case", ["negative", "all zero", "NaN", "infinite", "too few"])
def test_normalising_does_not_hide_bad_weights(case):
    weights, kind, message = WEIGHTS[case]
    with refused(kind, message):
        of.Particles(
            normal(3, 2), torch.tensor(weights, dtype=torch.float64), normalize=True
        )


def test_weights_of_another_dtype():
    message = "weights has dtype torch.float32 but points has torch.float64; nothing is"
    with refused(TypeError, message):
        of.Particles(normal(2, 2), torch.tensor([0.5, 0.5]))
    with refused(TypeError, "weights must be float32 or float64, got torch.int64"):
        of.Particles(normal(1, 2), torch.tensor([1]))
    with refused(TypeError, "got list; use torch.tensor("):
        of.Particles(normal(2, 2), [0.5, 0.5])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_sum_off_by_round_off_is_accepted(dtype):
    n = 100_000
    w = torch.rand(n, dtype=dtype, generator=torch.Generator().manual_seed(0))
    assert of.Particles(torch.zeros(n, 1, dtype=dtype), w / w.sum()).n == n


def test_another_device():
    # No second device is needed to see that mixing devices is refused.
    message = "x is on meta but y is on cpu; move one with .to('cpu')"
    with refused(ValueError, message):
        check_like(torch.empty(2, device="meta"), torch.empty(2), "x", "y")

    class Elsewhere(of.Functional):
        def value(self, mu):
            return torch.zeros((), device="meta", dtype=mu.dtype)

    with refused(of.errors.InvalidFunctional, "value is on meta but the measure is on"):
        Elsewhere().velocity(clouds.uniform())


# Tangents, rates, numbers -------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3,), (3, 1), (4, 2), (2, 3)])
def test_tangents_have_the_shape_of_the_points(shape):
    mu = clouds.uniform(3, 2)
    message = f"must have shape (3, 2), got torch.Size({list(shape)})"
    with refused(ValueError, f"tangent {message}"):
        mu.push(normal(*shape), 0.1)
    with refused(ValueError, f"u {message}"):
        mu.inner(normal(*shape), mu.points)
    with refused(ValueError, f"v {message}"):
        mu.inner(mu.points, normal(*shape))


def test_tangents_of_another_kind():
    mu = clouds.uniform(3, 2)
    with refused(ValueError, "tangent must have shape (3, 2), got float"):
        mu.push(1.0, 0.1)
    with refused(TypeError, "tangent has dtype torch.float32 but points has"):
        mu.push(normal(3, 2).float(), 0.1)


@pytest.mark.parametrize("bad", [NAN, INF])
def test_times_are_finite(bad):
    mu = clouds.uniform(3, 2)
    with refused(ValueError, f"dt must be finite, got {bad}"):
        mu.push(mu.points, bad)
    with refused(ValueError, f"dt must be finite, got {bad}"):
        mu.reweight(mu.points[:, 0], bad)


@pytest.mark.parametrize("bad", ["0.1", None, True, torch.ones(1), 1j, np.bool_(True)])
def test_times_are_numbers(bad):
    mu = clouds.uniform(3, 2)
    with refused(TypeError, f"dt must be a real number, got {type(bad).__name__}"):
        mu.push(mu.points, bad)
    with refused(TypeError, "variance must be a real number"):
        mu.diffuse(bad, torch.Generator())


def test_numbers_of_numpy_are_numbers():
    mu = clouds.uniform(3, 2)
    expected = mu.push(mu.points, 0.5).points
    for dt in (np.float64(0.5), np.float32(0.5)):
        assert torch.equal(mu.push(mu.points, dt).points, expected)


def test_variances_are_not_negative():
    with refused(ValueError, "variance must be non-negative, got -0.1"):
        clouds.uniform().diffuse(-0.1, torch.Generator())


def test_rates_are_one_per_atom():
    mu = clouds.uniform(3, 2)
    with refused(ValueError, "log_rate must have shape (3,), got torch.Size([3, 2])"):
        mu.reweight(mu.points, 0.1)
    with refused(ValueError, "log_rate must have shape (3,), got int"):
        mu.reweight(1, 0.1)
    with refused(TypeError, "log_rate has dtype torch.float32"):
        mu.reweight(torch.ones(3), 0.1)
    with refused(of.errors.Diverged, "reweighting gave NaN") as caught:
        mu.reweight(torch.tensor([0.0, NAN, 0.0], dtype=torch.float64), 0.1)
    assert caught.value.measure is mu


@pytest.mark.parametrize(
    ("bad", "kind"),
    [(0, ValueError), (-1, ValueError), (2.0, TypeError), ("3", TypeError)],
)
def test_a_number_of_draws_is_a_positive_integer(bad, kind):
    with pytest.raises(kind, match=r"^n must be (at least 1|an integer), got"):
        clouds.uniform().sample(bad, torch.Generator())


@pytest.mark.parametrize("bad", [None, 0, "0", np.random.default_rng(0)])
def test_noise_needs_a_generator_and_never_the_global_one(bad):
    mu = clouds.uniform()
    message = f"generator must be a torch.Generator, got {type(bad).__name__}"
    with refused(TypeError, message):
        mu.diffuse(0.1, bad)
    with refused(TypeError, message):
        mu.sample(3, bad)


def test_displacements_join_measures_of_a_kind():
    mu = clouds.uniform(3, 2)
    with refused(ValueError, "other.points must have shape (3, 2), got"):
        mu.displacement_to(clouds.uniform(4, 2))
    with refused(TypeError, "other.points has dtype torch.float32"):
        mu.displacement_to(clouds.uniform(3, 2, dtype=torch.float32))
    with refused(ValueError, "needs equal weights; for an optimal coupling use otflow"):
        mu.displacement_to(clouds.weighted(3, 2))


# Functionals (26) ---------------------------------------------------------------------


class Returns(of.Functional):
    """A functional made of any function of the measure."""

    def __init__(self, function):
        self.function = function

    def value(self, mu):
        return self.function(mu)


VALUES = {
    "a vector": (
        lambda mu: mu.points.sum(-1),
        "a functional's value must be a 0-d tensor, got shape (3,); average over the",
    ),
    "one entry": (lambda mu: mu.points.sum().reshape(1), "0-d tensor, got shape (1,)"),
    "a float": (
        lambda mu: mu.points.sum().item(),
        "a functional's value must be a 0-d tensor, got float; compute it from mu.poin",
    ),
    "an int": (lambda _: 3, "must be a 0-d tensor, got int"),
    "None": (lambda _: None, "must be a 0-d tensor, got NoneType"),
    "an array": (lambda mu: mu.points.detach().numpy().sum(), "got float64"),
    "an integer tensor": (
        lambda mu: (mu.points > 0).sum(),
        "a functional's value must be real floating point, got torch.int64",
    ),
    "a complex tensor": (
        lambda mu: mu.points.sum() * 1j,
        "must be real floating point, got torch.complex128",
    ),
    "detached": (
        lambda mu: mu.expectation(lambda x: x.sum(-1)).detach(),
        "the functional's value is detached from the measure: it carries no gradient",
    ),
    "without graph": (
        torch.no_grad()(lambda mu: mu.expectation(lambda x: x.sum(-1))),
        "remove .detach(), .numpy(), .item() or torch.no_grad() from `value`",
    ),
    "rewrapped": (
        lambda mu: torch.tensor(mu.points.sum().item(), dtype=mu.dtype),
        "the functional's value is detached from the measure",
    ),
    "a constant that records gradients": (
        lambda mu: torch.ones((), dtype=mu.dtype, requires_grad=True),
        "the functional's value is detached from the measure",
    ),
}


@pytest.mark.parametrize("case", VALUES)
def test_bad_values(case):
    function, message = VALUES[case]
    F, mu = Returns(function), clouds.uniform(3, 2)
    for ask in (F.velocity, F.first_variation, F.value_and_velocity):
        with refused(of.errors.InvalidFunctional, message):
            ask(mu)
    with refused(of.errors.InvalidFunctional, message) as caught:
        of.flow(F, mu, of.ExplicitEuler(), dt=0.1, steps=2)
    assert caught.value.trajectory.status == "failed"
    assert isinstance(caught.value, TypeError)


def test_a_mean_over_points_has_no_first_variation():
    F = Returns(lambda mu: mu.points.square().mean())
    assert F.velocity(clouds.uniform()).shape == (7, 2)
    with refused(of.errors.InvalidFunctional, "mu.expectation(f) in place of f.mean()"):
        F.first_variation(clouds.uniform())


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_values_that_are_not_finite(bad):
    F, mu = Returns(lambda mu: mu.points.sum() + bad), clouds.uniform()
    message = f"the functional's value is {bad}: the functional is not finite at this"
    with refused(of.errors.NonFinite, message):
        F.velocity(mu)
    assert issubclass(of.errors.NonFinite, ArithmeticError)


def test_gradients_that_are_not_finite():
    F = of.Potential(lambda x: x.abs().sqrt().sum(-1))
    mu = of.Particles(torch.tensor([[1.0, 1.0], [2.0, 0.0]]))
    with refused(of.errors.NonFinite, "gradient is nan, first at index (1, 1)"):
        F.velocity(mu)


GROUND = {
    "not reduced": (lambda x: x, "got (n, 2)", False),
    "a scalar": (lambda x: x.sum(), "to (3,) or (3, m), got shape ()", True),
    "another length": (lambda x: x[:2, 0], "got shape (2,)", True),
    "no tensor": (lambda x: x.detach().numpy(), "got ndarray", True),
    "another dtype": (
        lambda x: x.sum(-1).float(),
        "a ground function returned torch.float32 for points of dtype torch.float64;",
        True,
    ),
}


@pytest.mark.parametrize("case", GROUND)
def test_bad_potentials(case):
    function, message, everywhere = GROUND[case]
    mu = clouds.uniform(3, 2)
    with refused(of.errors.InvalidFunctional, message):
        of.Potential(function).value(mu)
    if everywhere:
        with refused(of.errors.InvalidFunctional, message):
            mu.expectation(function)


INTERACTIONS = {
    "not reduced": (lambda z: z, "to (3, 3), got (3, 3, 2); reduce over the last axis"),
    "a scalar": (lambda z: z.sum(), "to (3, 3), got ()"),
    "no tensor": (lambda z: z.detach().numpy(), "got ndarray; compute it with torch"),
    "another dtype": (
        lambda z: z.sum(-1).float(),
        "an interaction W returned torch.float32 for differences of dtype",
    ),
}


@pytest.mark.parametrize("case", INTERACTIONS)
def test_bad_interactions(case):
    function, message = INTERACTIONS[case]
    F, mu = of.Interaction(function), clouds.uniform(3, 2)
    for ask in (F.value, F.velocity):
        with refused(of.errors.InvalidFunctional, message):
            ask(mu)


def test_a_functional_must_say_its_value():
    class Nothing(of.Functional):
        pass

    with refused(TypeError, "abstract"):
        Nothing()  # type: ignore[abstract]
    abstracts: list[Callable[[], object]]
    abstracts = [of.Measure, of.schemes.Scheme, of.kernels.Kernel]
    for abstract in abstracts:
        with refused(TypeError, "abstract"):
            abstract()


def test_a_measure_of_one_s_own_that_forgets_a_cure_still_names_the_capability():
    class Bare(of.Measure):
        points = torch.zeros(1, 1)
        weights = torch.ones(1)
        # Abstract, and never called.
        value_and_position_gradient = None  # type: ignore[assignment]
        push = inner = displacement_to = None  # type: ignore[assignment]

    message = "Bare has no density: use a representation that has it"
    with refused(of.errors.Unsupported, message):
        Bare().density()
    with refused(of.errors.Unsupported, message):
        of.Entropy().value(Bare())


# Flow (23, 29, 30) --------------------------------------------------------------------

GOOD: dict[str, Any] = {
    "F": exact.quadratic(),
    "mu": clouds.uniform(3, 2),
    "scheme": of.ExplicitEuler(),
    "dt": 0.1,
    "steps": 1,
}

ARGUMENTS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"F": lambda mu: mu.points.sum()}, TypeError, "F must be a Functional, got <func"),
    ({"F": of.Entropy}, TypeError, "write Entropy()"),
    (
        {"mu": normal(3, 2)},
        TypeError,
        "mu must be a Measure, got Tensor of shape (3, 2)",
    ),
    ({"scheme": of.ExplicitEuler}, TypeError, "write ExplicitEuler()"),
    ({"scheme": "euler"}, TypeError, "scheme must be a Scheme, got 'euler'"),
    ({"dt": 0}, ValueError, "dt must be positive, got 0.0"),
    ({"dt": -0.1}, ValueError, "dt must be positive, got -0.1"),
    ({"dt": NAN}, ValueError, "dt must be finite, got nan"),
    ({"dt": INF}, ValueError, "dt must be finite, got inf"),
    ({"dt": True}, TypeError, "dt must be a real number, got bool True"),
    ({"dt": "0.1"}, TypeError, "dt must be a real number, got str '0.1'"),
    ({"dt": None}, TypeError, "dt must be a real number, got NoneType"),
    ({"dt": lambda _: -1.0}, ValueError, "dt(0) must be positive, got -1.0"),
    ({"dt": lambda _: "x"}, TypeError, "dt(0) must be a real number, got str"),
    ({"steps": -1}, ValueError, "steps must be at least 0, got -1"),
    ({"steps": 2.0}, TypeError, "steps must be an integer, got float 2.0"),
    ({"steps": True}, TypeError, "steps must be an integer, got bool True"),
    ({"steps": "2"}, TypeError, "steps must be an integer, got str '2'"),
    ({"every": 0}, ValueError, "every must be at least 1, got 0"),
    ({"every": 1.5}, TypeError, "every must be an integer, got float 1.5"),
    ({"record": {"energy": len}}, ValueError, "the record name 'energy' is taken"),
    ({"record": {"a": 3}}, TypeError, "record['a'] must be a function of the measure"),
    ({"record": [len]}, TypeError, "record must be a mapping of names to functions"),
    ({"stop": 3}, TypeError, "stop must be a predicate on a Step, got int"),
    ({"generator": -1}, ValueError, "generator must be at least 0, got -1"),
    (
        {"generator": 1.0},
        TypeError,
        "generator must be an integer or a torch.Generator, got float 1.0",
    ),
    (
        {"generator": "0"},
        TypeError,
        "generator must be an integer or a torch.Generator, got str '0'",
    ),
    ({"generator": True}, TypeError, "generator must be an integer, got bool True"),
    ({"dt": [0.1, 0.2]}, TypeError, "dt must be one number or a function of the index"),
    ({"stpes": 1}, TypeError, "unexpected keyword argument 'stpes'"),
]


@pytest.mark.parametrize("case", range(len(ARGUMENTS)))
def test_bad_arguments_of_flow(case):
    change, kind, message = ARGUMENTS[case]
    arguments = GOOD | change
    F, mu, scheme = (arguments.pop(name) for name in ("F", "mu", "scheme"))
    with refused(kind, message):
        of.flow(F, mu, scheme, **arguments)


def test_bad_arguments_are_refused_before_any_work():
    def fail(_):
        pytest.fail("the functional was called")

    for change, kind, message in ARGUMENTS:
        if "F" in change or callable(change.get("dt")):
            continue
        arguments = {**GOOD, "F": Returns(fail), **change}
        F, mu, scheme = (arguments.pop(name) for name in ("F", "mu", "scheme"))
        with refused(kind, message):
            of.flow(F, mu, scheme, **arguments)


def test_a_generator_on_another_device():
    class Elsewhere:
        type = "cuda"

    message = "generator is on cpu but the measure is on"
    with refused(ValueError, message):
        seed_and_stream(torch.Generator(), Elsewhere())


def test_an_unknown_option_names_the_nearest():
    with refused(
        ValueError, "mode must be one of ['exact', 'sliced'], got 'slicd'; did"
    ):
        check_option("slicd", "mode", ["sliced", "exact"])
    with refused(TypeError, "mode must be one of ['exact'], got 3"):
        check_option(3, "mode", ["exact"])
    assert check_option("exact", "mode", ["exact"]) == "exact"


# Errors -------------------------------------------------------------------------------


def test_errors_are_what_programs_already_catch():
    errors = of.errors
    for error, builtin in [
        (errors.Unsupported, TypeError),
        (errors.InvalidFunctional, TypeError),
        (errors.NonFinite, ArithmeticError),
        (errors.Diverged, ArithmeticError),
        (errors.NotConverged, RuntimeError),
        (errors.Interrupted, KeyboardInterrupt),
    ]:
        assert issubclass(error, builtin)
        assert issubclass(error, errors.OtflowError)
    stopped = errors.NotConverged("stopped", info={"residual": 1.0}, result=3)
    assert (stopped.info, stopped.result, str(stopped)) == (
        {"residual": 1.0},
        3,
        "stopped",
    )
