"""A certificate is typed, frozen, a mapping of its words, and written as JSON."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import otflow as of
from otflow.proximal import Certificate, Guarantee, ProxResult
from otflow.proximal.certificate import NESTED, certify
from otflow.schemes import Adaptive, Minibatch, Resample, Step
from otflow.testing import clouds
from tests import exact

F64 = torch.float64
SOLVERS = {
    "particles": (lambda: of.JKO(of.proximal.ParticleProximal()), "particles"),
    "any measure": (lambda: of.JKO(of.proximal.TangentProximal()), "particles"),
    "quantiles": (lambda: of.JKO(of.proximal.QuantileProximal()), "quantiles"),
    "gaussian": (lambda: of.JKO(of.proximal.GaussianProximal()), "gaussian"),
    "sinkhorn": (lambda: of.JKO(of.proximal.GridSinkhorn()), "grid"),
    "back and forth": (lambda: of.JKO(of.proximal.BackAndForth()), "grid"),
    "finite volume": (lambda: of.JKO(of.proximal.FiniteVolume()), "grid"),
}
SCHEMES = {
    "JKO of order 2": (lambda: of.JKO(order=2), "particles"),
    "JKO of order 3": (lambda: of.JKO(order=3), "quantiles"),
    "JKO of order 2 on cells": (lambda: of.JKO(order=2), "grid"),
    "Adaptive, doubled": (lambda: Adaptive(of.JKO(), tolerance=1.0), "gaussian"),
    "Adaptive, embedded": (lambda: Adaptive(of.JKO(order=2), tolerance=1), "particles"),
    "Adaptive, explicit": (lambda: Adaptive(of.ExplicitEuler(), tolerance=1), "grid"),
    "Minibatch": (lambda: Minibatch(of.JKO()), "particles"),
    "chain": (lambda: of.chain(of.JKO(), of.BirthDeath()), "particles"),
    "ExplicitEuler": (of.ExplicitEuler, "quantiles"),
    "backtracking": (lambda: of.ExplicitEuler(backtracking=True), "particles"),
    "Langevin": (of.Langevin, "particles"),
    "BirthDeath": (of.BirthDeath, "particles"),
    "Resample": (Resample, "particles"),
}
ALL = {**SOLVERS, **SCHEMES}
SOLVED = {*SOLVERS, "JKO of order 2", "JKO of order 3", "JKO of order 2 on cells"}


def start(kind, dtype=F64):
    if kind == "particles":
        return of.Particles(clouds.uniform().points.to(dtype))
    if kind == "quantiles":
        return of.Quantiles(torch.linspace(-1, 2, 12, dtype=dtype))
    if kind == "gaussian":
        return of.Gaussian(torch.ones(1, dtype=dtype), torch.eye(1, dtype=dtype))
    return of.GridDensity.from_function(
        lambda x: (-2 * x.square().sum(-1)).exp(), -3, 3, (40,), dtype=dtype
    )


def report(name, dtype=F64):
    make, kind = ALL[name]
    mu = start(kind, dtype)
    F = exact.quadratic() + (0.0 if kind == "particles" else 0.1) * of.Entropy()
    F = exact.quadratic() if kind == "particles" else F
    return of.flow(F, mu, make(), dt=0.05, steps=1, generator=0).info[0], mu


def leaves(value):
    if isinstance(value, Mapping):
        for inner in value.values():
            yield from leaves(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from leaves(inner)
    else:
        yield value


def test_numbers_that_json_does_not_have_are_written_as_texts():
    inf, nan = float("inf"), float("nan")
    info = Certificate(
        energy_before=inf,
        entries={
            "gap": inf,
            "pair": (-inf, {"deep": nan}),
            "field": torch.tensor([1.0, nan]),
            "array": np.array([[-inf, 2.0]]),
        },
    )
    assert json.loads(json.dumps(info.to_dict(), allow_nan=False)) == {
        "energy_before": "inf",
        "gap": "inf",
        "pair": ["-inf", {"deep": "nan"}],
        "field": [1.0, "nan"],
        "array": [["-inf", 2.0]],
    }
    assert info["gap"] == inf
    assert info == pickle.loads(pickle.dumps(info))
    assert info != info.also(gap=-inf)


def test_a_report_whose_gap_bounds_nothing_is_json():
    F = of.functionals.Scaled(-1.0, of.Interaction(of.kernels.Gaussian(1.0)))
    mu = of.Particles(torch.zeros(1, 1, dtype=F64))
    scheme = of.schemes.FrankWolfe(of.optimality.BoxDomain(-1, 1), 8)
    run = of.flow(F, mu, scheme, dt=1.0, steps=2)
    written = json.loads(json.dumps(run.info[0].to_dict(), allow_nan=False))
    assert (written["gap"], written["gap_kind"]) == ("inf", "none")
    # A table holds numbers.
    assert run.to_pandas("info")["gap"].dtype == np.float64


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("name", ALL)
def test_every_report_is_a_certificate_that_can_be_written_as_json(name, dtype):
    info, _ = report(name, dtype)
    assert type(info) is Certificate
    written = info.to_dict()
    assert set(written) == set(info)
    assert json.loads(json.dumps(written, allow_nan=False)) == written
    kinds = (bool, int, float, str, type(None))
    assert all(type(leaf) in kinds for leaf in leaves(written))
    # No tensor but those that hold a field of numbers, such as fluxes.
    assert all(
        type(leaf) in (*kinds, Guarantee) or (isinstance(leaf, Tensor) and leaf.ndim)
        for leaf in leaves(info)
    )
    assert pickle.loads(pickle.dumps(info)).to_dict() == written


@pytest.mark.parametrize("name", ALL)
def test_words_are_attributes_and_keys_of_one_value(name):
    info, _ = report(name)
    for key in info:
        if key in Certificate.__annotations__ or key in ("decrease", "certified"):
            assert info[key] is getattr(info, key) or info[key] == getattr(info, key)
    if info.details is not None:
        assert all(info[k] is v for k, v in vars(info.details).items())
    assert {**info} == dict(info.items()) == info
    if name in SOLVED:
        assert info.converged is True
        assert info.guarantee in Guarantee
        assert isinstance(info.iterations, int)
        assert (info.decrease is None) == (info.w2 is None)
    for part in (part for nest in NESTED for part in info.get(nest, ())):
        assert type(part) is Certificate


def test_a_certificate_is_frozen():
    info, _ = report("gaussian")
    with pytest.raises(FrozenInstanceError):
        info.converged = False
    with pytest.raises(TypeError):
        info["converged"] = False
    with pytest.raises(FrozenInstanceError):
        info.details.nodes = 3


def test_what_solves_nothing_names_only_what_is_known():
    info, mu = report("ExplicitEuler")
    assert info.guarantee is None
    assert info.converged is None
    assert info.certified is False
    F = exact.quadratic() + 0.1 * of.Entropy()
    assert info.energy_before == pytest.approx(float(F.value(mu)), rel=1e-12)
    assert set(info) == {"energy_before"}


# What a user gives --------------------------------------------------------------------


class Reporting(of.schemes.Scheme):
    """A scheme that pushes, and reports a plain mapping."""

    def __init__(self, **info):
        self.info = info

    def step(self, F, mu, dt, state, generator):
        return Step(mu.push(F.velocity(mu), dt), state, self.info)


def test_the_plain_report_of_a_scheme_becomes_a_certificate():
    speed = torch.tensor(2.0)
    scheme = Reporting(
        dt=torch.tensor(0.25, dtype=F64), speed=speed, converged=np.bool_(True)
    )
    run = of.flow(exact.quadratic(), start("particles"), scheme, dt=0.5, steps=2)
    for info in run.info:
        assert type(info) is Certificate
        assert (info.dt, info.converged) == (0.25, True)
        assert (info["speed"], type(info["speed"])) == (2.0, float)
    assert run.times.tolist() == [0.0, 0.25, 0.5]
    assert run.converged


def test_a_claim_without_grounds_is_not_kept():
    words = {"energy_before": 1.0, "energy_after": 2.0, "w2": 0.0, "residual": 0.0}
    claim = {**words, "converged": True, "guarantee": "exact", "bound": 0.1, "dt": 1.0}
    info = Certificate.of(claim)
    assert (info.guarantee, info.bound, info.certified) == ("none", None, False)
    good = Certificate.of({**claim, "energy_after": 0.5})
    assert good.certified
    assert Certificate.of(good) is good
    assert Certificate.of(dict(good)).certified
    assert not Certificate.of({**good, "certified": False}).certified


def test_bad_reports_are_refused_by_name():
    with pytest.raises(TypeError, match=r"'residual'.*must be a number.*another name"):
        Certificate.of({"residual": torch.ones(3)})
    with pytest.raises(ValueError, match=r"'exact', 'optimal'.*got 'good'"):
        Certificate.of({"guarantee": "good", "energy_before": 1.0})
    with pytest.raises(TypeError, match="both its energies"):
        Certificate.of({"guarantee": "exact"})


def test_entries_go_beside_details():
    words: dict[str, Any] = {
        "energy_before": 2.0,
        "energy_after": 1.0,
        "dt": 1.0,
        "w2": 0.1,
    }
    words |= {"residual": 0.0, "converged": True, "guarantee": "stationary"}
    info = certify(**words, iterations=3, rounds=np.int64(4), size=torch.tensor(2.0))
    assert (info.iterations, info["rounds"], info["size"]) == (3, 4, 2.0)
    assert info.entries == {"rounds": 4, "size": 2.0}
    more = info.also(rounds=5)
    assert (info["rounds"], more["rounds"], more.w2) == (4, 5, info.w2)
    assert replace(info, w2=None).decrease is None


# Names of an earlier release ----------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new"), [("energy", "energy_before"), ("gradients", "iterations")]
)
def test_old_words_are_read_with_a_warning(old, new):
    info, _ = report("particles")
    with pytest.warns(DeprecationWarning, match=f"{old}.*{new}"):
        assert info[old] == info[new]
    with pytest.warns(DeprecationWarning, match=new):
        assert info.get(old) == info[new]
    assert old not in set(info)


def test_an_old_step_hands_over_its_energy_with_a_warning():
    class Counted(of.Functional):
        calls = 0

        def value(self, mu):
            Counted.calls += 1
            return mu.expectation(lambda x: x.square().sum(-1))

    class Old(of.schemes.Scheme):
        def step(self, F, mu, dt, state, generator):
            energy, velocity = F.value_and_velocity(mu)
            return Step(mu.push(velocity, dt), state, {"energy": energy})

    mu = start("particles")
    with pytest.warns(DeprecationWarning, match="energy_before"):
        run = of.flow(Counted(), mu, Old(), dt=0.1, steps=1)
    assert Counted.calls == 2  # once in the step, once at the end
    assert run.info[0].energy_before == float(run.records["energy"][0])


def test_an_old_result_is_read_with_a_warning():
    class Old(of.proximal.ProximalSolver):
        flat = True

        def solve(self, F, mu, dt, warm=None):
            known = of.proximal.ParticleProximal().solve(F, mu, dt).certificate
            nu = of.proximal.ParticleProximal().solve(F, mu, dt).measure
            return ProxResult(nu, None, 7, known.residual, dict(known))

    mu = start("particles")
    with pytest.warns(DeprecationWarning, match=r"iterations.*certificate=certify"):
        run = of.flow(exact.quadratic(), mu, of.JKO(Old()), dt=0.1, steps=1)
    assert run.info[0].iterations == 7
    assert run.info[0].certified


@pytest.mark.parametrize("name", ALL)
def test_reports_are_equal_as_mappings_are(name):
    one, two = (report(name)[0] for _ in range(2))
    assert one == two
    assert one == dict(two)
    assert one != two.also(seen=torch.zeros(2))
    assert two.also(seen=torch.zeros(2)) == two.also(seen=torch.zeros(2))
    assert one != "a report"


@pytest.mark.parametrize("word", ["dt", "certified", "decrease", "guarantee", "w2"])
def test_entries_hide_no_words(word):
    known = Certificate.of_start(1.0)
    with pytest.raises(ValueError, match=f"^{word} among the entries would hide"):
        known.also(**{word: 1.0})
    with pytest.raises(ValueError, match=f"^{word} among the entries would hide"):
        Certificate(1.0, entries={word: 1.0})
    assert replace(known, dt=0.5)["dt"] == replace(known, dt=0.5).dt == 0.5
