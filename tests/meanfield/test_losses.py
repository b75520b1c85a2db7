"""Losses: their values, their slopes, and the targets they take."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import otflow as of
from otflow.meanfield.losses import LOSSES, as_loss
from otflow.testing import clouds
from otflow.testing.clouds import normal

TwoLayer = of.meanfield.TwoLayer
X = normal(4, 2)


def risk(y, loss, outputs=None, X=X):
    return of.meanfield.Risk(TwoLayer("tanh", outputs=outputs), X, y, loss=loss)


def test_square_is_half_the_square_summed_over_outputs():
    f, y = normal(4, 3), normal(4, 3, seed=1)
    expected = [
        0.5 * sum(float(a - b) ** 2 for a, b in zip(*p, strict=True))
        for p in zip(f, y, strict=True)
    ]
    torch.testing.assert_close(
        LOSSES["square"].values(f, y), torch.tensor(expected, dtype=torch.float64)
    )


def test_logistic_is_the_log_of_one_plus_exp():
    f, y = normal(6), torch.tensor([1.0, -1, 1, -1, 1, 1], dtype=torch.float64)
    expected = [math.log1p(math.exp(-float(a * b))) for a, b in zip(f, y, strict=True)]
    torch.testing.assert_close(
        LOSSES["logistic"].values(f, y), torch.tensor(expected, dtype=torch.float64)
    )


def test_cross_entropy_is_minus_the_log_probability():
    f, y = normal(4, 3), torch.tensor([0, 2, 1, 2])
    expected = [
        math.log(sum(math.exp(float(a)) for a in row)) - float(row[k])
        for row, k in zip(f, y, strict=True)
    ]
    torch.testing.assert_close(
        LOSSES["cross-entropy"].values(f, y),
        torch.tensor(expected, dtype=torch.float64),
    )


TARGETS = {
    "square": normal(50, 3, seed=4),
    "logistic": normal(50, 3, seed=5).sign(),
    "cross-entropy": torch.arange(50) % 3,
}


@pytest.mark.parametrize("name", [*LOSSES, "custom"])
@pytest.mark.parametrize("size", [1.0, 30.0])
def test_the_slope_is_the_gradient(name, size):
    f = size * normal(50, 3)
    if name == "custom":
        loss, y = as_loss(lambda f, y: (f - y).pow(4).sum(1)), TARGETS["square"]
    else:
        loss, y = LOSSES[name], TARGETS[name]
    leaf = f.clone().requires_grad_()
    values = loss.values(leaf, y)
    assert values.shape == (50,)
    values.sum().backward()
    total, slope = loss.total_and_slope(f, y)
    torch.testing.assert_close(total, values.sum().detach(), rtol=1e-14, atol=0)
    torch.testing.assert_close(slope, leaf.grad, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", ["logistic", "cross-entropy"])
def test_large_margins_neither_overflow_nor_lose_their_tails(name):
    f = torch.tensor([[700.0, -700.0]], dtype=torch.float64)
    y = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    if name == "cross-entropy":
        y = torch.tensor([1])
    loss = LOSSES[name]
    total, slope = loss.total_and_slope(f, y)
    expected = 700.0 if name == "logistic" else 1400.0
    assert float(total) == pytest.approx(expected, rel=1e-12)
    assert float(loss.values(f, y)) == pytest.approx(expected, rel=1e-12)
    assert torch.isfinite(slope).all()


@pytest.mark.parametrize(
    "dtype", [torch.int64, torch.int32, torch.float32, torch.float64]
)
def test_logistic_takes_labels_of_any_number_type(dtype):
    y = torch.tensor([1, -1, -1, 1]).to(dtype)
    assert risk(y, "logistic").y.dtype == torch.float64
    assert risk(y.numpy(), "logistic").y.tolist() == [1.0, -1.0, -1.0, 1.0]


def test_cross_entropy_takes_any_integers():
    y = torch.tensor([0, 1, 2, 1])
    for labels in (y, y.int(), y.numpy().astype(np.uint8)):
        assert torch.equal(risk(labels, "cross-entropy", 3).y, y)


def test_a_loss_of_ones_own_takes_any_targets():
    y = {"index": torch.tensor([0, 1, 1, 0])}["index"]
    own = risk(y, torch.nn.CrossEntropyLoss(reduction="none"), 2)
    built_in = risk(y, "cross-entropy", 2)
    mu = of.Particles(normal(5, 5))
    torch.testing.assert_close(own.value(mu), built_in.value(mu))
    for a, b in zip(
        own.value_and_velocity(mu), built_in.value_and_velocity(mu), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-14)
    assert own.loss == "CrossEntropyLoss"


@pytest.mark.parametrize(
    ("y", "loss", "outputs", "error", "message"),
    [
        (
            normal(3),
            "square",
            None,
            ValueError,
            r"^y must have shape \(4,\), got \(3,\): X has 4",
        ),
        (normal(4, 1), "square", None, ValueError, r"got \(4, 1\); use y\[:, 0\]$"),
        (normal(4, 2), "square", None, ValueError, r"or TwoLayer\(..., outputs=2\)$"),
        (
            normal(4),
            "square",
            2,
            ValueError,
            r"^y must have shape \(4, 2\), got \(4,\)",
        ),
        (
            normal(4, 3),
            "square",
            2,
            ValueError,
            r"^y must have shape \(4, 2\), got \(4, 3\)",
        ),
        (
            torch.arange(4),
            "square",
            None,
            TypeError,
            "^y must be float32 or float64, got",
        ),
        (
            normal(4).float(),
            "square",
            None,
            TypeError,
            "^y has dtype torch.float32 but X",
        ),
        (
            [1.0] * 4,
            "square",
            None,
            TypeError,
            "^y must be a torch.Tensor or numpy.ndarray",
        ),
        (
            [1.0] * 4,
            "logistic",
            None,
            TypeError,
            "^y must be a torch.Tensor or numpy.ndarr",
        ),
        (
            torch.tensor([0.0, 1.0, float("nan"), 1.0]).double(),
            "square",
            None,
            ValueError,
            r"^y must be finite, got nan at index \(2,\)",
        ),
        (
            torch.tensor([0, 1, 1, 0]),
            "logistic",
            None,
            ValueError,
            r"^y must hold the labels .*, got 0 at index \(0,\); use 2 \* y - 1",
        ),
        (
            torch.tensor([1, 2, 3, 1]),
            "logistic",
            None,
            ValueError,
            r"got 2 at index \(1,\)$",
        ),
        (
            torch.tensor([0, 1, 2, 3]),
            "cross-entropy",
            3,
            ValueError,
            r"^y must hold classes 0, ..., 2, one per output, got 3 at index 3",
        ),
        (
            torch.tensor([0, -1, 2, 0]),
            "cross-entropy",
            3,
            ValueError,
            "got -1 at index 1",
        ),
        (
            normal(4),
            "cross-entropy",
            3,
            TypeError,
            r"^y must hold integer classes .*y.long",
        ),
        (
            torch.arange(4),
            "cross-entropy",
            None,
            ValueError,
            "needs one output per class",
        ),
        (torch.arange(4), "cross-entropy", 1, ValueError, "needs one output per class"),
        (torch.arange(4)[:, None], "cross-entropy", 4, ValueError, r"use y\[:, 0\]"),
        (
            torch.arange(3),
            lambda f, _: f,
            None,
            ValueError,
            r"X has 4 rows and y has 3",
        ),
        (
            torch.tensor(1.0),
            lambda f, _: f,
            None,
            ValueError,
            r"^y must have shape \(4, ...\)",
        ),
    ],
)
def test_targets_that_are_refused(y, loss, outputs, error, message):
    with pytest.raises(error, match=message):
        risk(y, loss, outputs)


KINDS = {
    "square": {torch.float64},
    "logistic": {
        torch.float16,
        torch.float32,
        torch.float64,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
    },
    "cross-entropy": {
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
    },
}
EVERY = sorted(
    {torch.bool, torch.uint8, torch.complex64, torch.complex128, torch.bfloat16}.union(
        *KINDS.values()
    ),
    key=str,
)


@pytest.mark.parametrize("loss", KINDS)
@pytest.mark.parametrize("dtype", EVERY, ids=str)
def test_every_kind_of_target_is_taken_exactly_or_refused(loss, dtype):
    # A cast would drop the imaginary part of a complex label in silence.
    outputs = 2 if loss == "cross-entropy" else None
    y = torch.tensor([1, 1, 1, 1]).to(dtype)
    given = [y] if dtype == torch.bfloat16 else [y, y.numpy()]
    for targets in given:
        if dtype in KINDS[loss] | ({torch.bfloat16} if loss == "logistic" else set()):
            assert risk(targets, loss, outputs).y.tolist() == [1, 1, 1, 1]
        elif loss == "logistic" and dtype == torch.uint8:
            assert risk(targets, loss).y.dtype == torch.float64
        else:
            with pytest.raises((TypeError, ValueError), match=r"^y "):
                risk(targets, loss, outputs)


def test_the_cures_for_labels_of_another_kind_work():
    with pytest.raises(TypeError, match=r"use 2 \* y.long\(\) - 1$"):
        risk(torch.tensor([True, False, False, True]), "logistic")
    y = torch.tensor([True, False, False, True])
    assert risk(2 * y.long() - 1, "logistic").y.tolist() == [1, -1, -1, 1]
    with pytest.raises(TypeError, match=r"use y.real$"):
        risk(torch.tensor([1, -1, -1, 1 + 0j]), "logistic")
    y = torch.tensor([1, -1, -1, 1 + 0j])
    assert risk(y.real, "logistic").y.tolist() == [1, -1, -1, 1]


def test_a_label_beside_one_does_not_become_one_by_rounding():
    y = torch.tensor([1, -1, 1, 1 + 1e-12], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"index \(3,\)"):
        risk(y, "logistic", X=X.float())


@pytest.mark.parametrize(
    "y",
    [
        np.array(["a", "b", "c", "d"]),
        np.array([1, 1, 1, None], dtype=object),
        np.ones(4, dtype=np.longdouble),
        torch.ones(4, dtype=torch.float64).to_sparse(),
        torch.ones(4, dtype=torch.float64, device="meta"),
    ],
    ids=["strings", "objects", "long double", "sparse", "meta"],
)
@pytest.mark.parametrize("loss", ["square", "logistic", "cross-entropy", "own"])
def test_targets_that_torch_cannot_hold_are_refused(y, loss):
    own = (lambda f, _: f.square()) if loss == "own" else loss
    with pytest.raises(TypeError, match=r"^y must be"):
        risk(y, own, 2 if loss == "cross-entropy" else None)


def test_classes_and_labels_of_the_other_byte_order_are_taken():
    classes = np.array([0, 1, 2, 1])
    swapped = classes.astype(classes.dtype.newbyteorder())
    assert risk(swapped, "cross-entropy", 3).y.tolist() == [0, 1, 2, 1]
    labels = np.array([1.0, -1, -1, 1])
    swapped = labels.astype(labels.dtype.newbyteorder())
    assert risk(swapped, "logistic").y.tolist() == [1, -1, -1, 1]


def test_complex_targets_of_a_loss_of_ones_own():
    def phase(f, y):
        return (torch.exp(1j * f) - y).abs().square()

    y = torch.exp(1j * normal(4))
    own = risk(y, phase)
    assert bool(torch.isfinite(own.value(clouds.uniform(5, 4))))
    y[2] = torch.tensor(complex(math.nan, 0))
    with pytest.raises(ValueError, match=r"^y must be finite, got .*index"):
        risk(y, phase)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128, torch.int64])
def test_a_loss_that_changes_the_dtype_is_refused(dtype):
    F, mu = risk(normal(4), lambda f, y: (f - y).to(dtype)), clouds.uniform(5, 4)
    for evaluate in (F.value, F.velocity, F.first_variation):
        with pytest.raises(of.errors.InvalidFunctional, match=r"\.to\(f.dtype\)"):
            evaluate(mu)


BAD_INPUTS = {
    "complex": X + 0j,
    "integers": X.round().long(),
    "bool": X > 0,
    "half": X.half(),
    "NaN": X.clone().index_fill_(0, torch.tensor([1]), math.nan),
    "infinite": X.clone().index_fill_(0, torch.tensor([1]), math.inf),
    "sparse": X.to_sparse(),
    "elsewhere": X.to("meta"),
    "strings": np.array([["a", "b"]] * 4),
}


@pytest.mark.parametrize("X", BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_inputs_that_are_refused_wherever_they_come_in(X):
    network, mu = TwoLayer("tanh"), clouds.uniform(5, 4)
    with pytest.raises((TypeError, ValueError), match=r"^X"):
        risk(normal(4), "square", X=X)
    with pytest.raises((TypeError, ValueError), match=r"^X"):
        network(mu, X)
    with pytest.raises((TypeError, ValueError), match=r"^X"):
        network.features(mu.points, X)
    with pytest.raises((TypeError, ValueError), match=r"^theta"):
        network.features(X, normal(4, 2))


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        ("sqaure", ValueError, "did you mean 'square'"),
        (None, TypeError, "^loss must be one of"),
        (torch.nn.MSELoss, TypeError, r"write MSELoss\(reduction='none'\)"),
    ],
)
def test_losses_that_are_refused(loss, error, message):
    with pytest.raises(error, match=message):
        risk(normal(4), loss)


def test_a_loss_that_averages_is_refused_with_the_cure():
    F, mu = risk(normal(4), torch.nn.MSELoss()), of.Particles(normal(5, 4))
    message = r"one number per sample, \(4,\), got .*use reduction='none'"
    for call in (F.value, F.value_and_velocity, F.first_variation):
        with pytest.raises(of.errors.InvalidFunctional, match=message):
            call(mu)
