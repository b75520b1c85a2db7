"""A report is of the functional of the run, whatever the run kept."""

from __future__ import annotations

import re

import pytest
import torch

import otflow as of
from otflow.analysis import certify
from otflow.errors import InvalidFunctional

F64 = torch.float64
WELL = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
TILT = of.Potential(lambda x: x.sum(-1), modulus=0.0)
# What a run may keep, beside its end.
KEPT = {
    "every": {},
    "none": {"snapshots": "none"},
    "rare records": {"snapshots": "none", "every": 3},
    "rare snapshots": {"every": 2},
}


def run_of(kind=F64, steps=4, **options):
    mu = of.Particles(torch.tensor([[1.0], [3.0]], dtype=kind))
    return of.flow(WELL, mu, of.JKO(), dt=0.5, steps=steps, **options)


def functional_in(report):
    (found,) = (f for f in report.findings if f.name == "functional")
    return found


@pytest.mark.parametrize("kind", [torch.float32, F64])
@pytest.mark.parametrize("name", KEPT)
def test_another_functional_raises_whatever_was_kept(name, kind):
    run = run_of(kind, **KEPT[name])
    assert functional_in(certify(run, WELL)).verdict == "observed"
    for other in (2 * WELL, WELL + TILT, WELL + 0.01 * TILT):
        with pytest.raises(InvalidFunctional, match="not the functional of the run"):
            certify(run, other)


def test_a_run_that_goes_on_or_was_moved_is_compared_at_its_end():
    first = run_of(snapshots="none")
    for run in (
        of.flow(
            WELL, first.final, of.JKO(), dt=0.5, steps=3, resume=first, snapshots="none"
        ),
        run_of(torch.float32, snapshots="none").to(F64),
    ):
        found = functional_in(certify(run, WELL))
        assert found.text.startswith("F gives the recorded energy of 1 measure again")
        with pytest.raises(InvalidFunctional, match="not the functional"):
            certify(run, 2 * WELL)


def test_energies_of_0_tell_no_functional_from_its_multiples():
    run = run_of(steps=60, snapshots="none")
    for F in (WELL, 2 * WELL):
        found = functional_in(certify(run, F))
        assert found.verdict == "unknown"
        assert "every multiple of F" in found.text


@pytest.mark.parametrize("tiny", [1e-3, 1e-6, 1e-9, 1e-12])
def test_two_energies_that_differ_are_printed_with_the_digits_that_tell_it(tiny):
    class More(of.Functional):
        def value(self, mu):
            return WELL.value(mu) * (1 + tiny)

    with pytest.raises(InvalidFunctional) as caught:
        certify(run_of(), More())
    was, given = re.findall(r"(?:energy|gives) ([\d.e-]+)[,;]", str(caught.value))
    assert was != given


def test_two_temperatures_that_differ_are_printed_with_the_digits_that_tell_it():
    mu = of.Particles(torch.tensor([[1.0], [3.0]], dtype=F64))
    F = WELL + 0.1 * of.Entropy()
    run = of.flow(F, mu, of.Langevin(), dt=0.1, steps=2, generator=0)
    other = WELL + 0.1 * (1 + 3e-6) * of.Entropy()
    with pytest.raises(InvalidFunctional) as caught:
        certify(run, other)
    used, own = re.findall(r"hold[s]? ([\d.]+) \* Entropy", str(caught.value))
    assert used != own
