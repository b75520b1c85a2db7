"""The words of a certificate: derived in one place, whatever a solver claims."""

import math

import pytest

from otflow.proximal.certificate import CERTIFYING, certify

GOOD = {
    "energy_before": 2.0,
    "energy_after": 1.0,
    "dt": 0.5,
    "w2": 0.5,
    "residual": 1e-9,
    "converged": True,
    "guarantee": "exact",
    "bound": 1e-8,
}


@pytest.mark.parametrize("guarantee", sorted(CERTIFYING))
def test_a_good_step_keeps_its_guarantee(guarantee):
    known = certify(**{**GOOD, "guarantee": guarantee})
    assert known["guarantee"] == guarantee
    assert known["certified"] is True
    assert known["decrease"] == 2.0 - 1.0 - 0.25
    assert known["bound"] == (1e-8 if guarantee == "exact" else None)


@pytest.mark.parametrize("guarantee", ["none", "upper-bound", "sinkhorn"])
def test_other_guarantees_do_not_certify(guarantee):
    known = certify(**{**GOOD, "guarantee": guarantee})
    assert (known["guarantee"], known["certified"]) == (guarantee, False)


@pytest.mark.parametrize(
    "bad",
    [
        {"converged": False},
        {"energy_after": 2.1, "w2": 0.0},
        {"energy_after": 2.1, "w2": None},
        {"w2": 1.1},
    ],
)
def test_a_step_that_did_not_do_its_work_is_not_certified(bad):
    known = certify(**{**GOOD, **bad})
    assert (known["guarantee"], known["certified"]) == ("none", False)
    assert known["bound"] is None


NUMBERS = ("energy_before", "energy_after", "w2", "residual", "bound")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_that_are_not_finite_take_the_guarantee(name, value):
    known = certify(**{**GOOD, name: value})
    if (name, value) == ("energy_before", math.inf):  # from outside of the domain of F
        assert known["certified"]
        assert known["decrease"] is None
        assert known["bound"] == GOOD["bound"]
        return
    assert not known["certified"]
    assert not known["converged"]
    for key in ("w2", "bound", "decrease"):
        assert known[key] is None or math.isfinite(known[key])


def test_noise_is_granted_and_no_more():
    rise = {**GOOD, "energy_after": 2.0 + 1e-6, "w2": 0.0}
    assert certify(**rise, noise=2e-6)["certified"]
    assert not certify(**rise, noise=5e-7)["certified"]
    assert certify(**{**rise, "energy_after": 2.0 + 4e-16})["certified"]


def test_entries_of_the_solver_are_kept():
    assert certify(**GOOD, eps=0.25)["eps"] == 0.25
