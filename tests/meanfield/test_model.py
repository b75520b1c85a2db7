"""A model of one's own in a risk: derivatives by autodiff or by a pass of its own."""

import pytest
import torch

import otflow as of
from otflow.errors import InvalidFunctional, NonFinite, NotEnclosed, Unsupported
from otflow.meanfield import Model, Risk


def normal(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


class Cubic(Model):
    """x -> (m.x)^3 + c of the mean m: not linear in the measure."""

    def check_measure(self, mu, d):
        if mu.dim != d:
            msg = f"points must have dimension {d}; got {mu.dim}"
            raise ValueError(msg)

    def respond(self, inputs, mu):
        return self.add_offset((inputs @ mu.expectation(lambda x: x)) ** 3)


class Fast(Cubic):
    """The same with closed forms for the square loss."""

    def _slope(self, inputs, y, mu):
        z = inputs @ (mu.weights @ mu.points)
        f = self.add_offset(z**3)
        return f, 3 * inputs.T @ ((f - y) * z.square()) / len(y)

    def value_and_velocity(self, loss, inputs, y, mu):
        if torch.is_grad_enabled() and mu.points.requires_grad:
            return None
        f, slope = self._slope(inputs, y, mu)
        return 0.5 * (f - y).square().mean(), -slope.expand(mu.n, -1)

    def value_and_first_variation(self, loss, inputs, y, mu, x):
        f, slope = self._slope(inputs, y, mu)
        return 0.5 * (f - y).square().mean(), (mu.points if x is None else x) @ slope


X, Y = normal(7, 3), normal(7)
MU = of.Particles(normal(4, 3), torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64))


def test_a_risk_of_a_model_has_its_derivatives_by_autodiff():
    F, z = Risk(Cubic(offset=0.5), X, Y), X @ (MU.weights @ MU.points)
    residual = z**3 + 0.5 - Y
    slope = 3 * X.T @ (residual * z.square()) / 7
    torch.testing.assert_close(F(MU), 0.5 * residual.square().mean())
    torch.testing.assert_close(F.velocity(MU), -slope.expand(4, 3))
    torch.testing.assert_close(F.first_variation(MU), MU.points @ slope)
    torch.testing.assert_close(F.outputs(MU), Cubic(offset=0.5)(MU, X))


def test_the_pass_of_a_model_agrees_with_autodiff_and_is_taken():
    slow, fast, probes = Risk(Cubic(), X, Y), Risk(Fast(), X, Y), normal(5, 3)
    for a, b in zip(
        slow.value_and_velocity(MU), fast.value_and_velocity(MU), strict=True
    ):
        torch.testing.assert_close(a, b)
    both = [F.first_variation(MU, probes) for F in (slow, fast)]
    torch.testing.assert_close(*both)
    leaf = of.Particles(MU.points.clone().requires_grad_(), MU.weights)
    assert fast.value_and_velocity(leaf)[1].requires_grad

    class Wrong(Fast):
        def value_and_velocity(self, loss, inputs, y, mu):
            return torch.tensor(torch.nan, dtype=y.dtype), mu.points

    with pytest.raises(NonFinite, match="the functional's value"):
        Risk(Wrong(), X, Y).value_and_velocity(MU)


def test_what_rests_on_linearity_is_not_claimed():
    F = Risk(Cubic(), X, Y)
    assert F.mixture_curvature() is None
    assert "Cubic are not known to be linear" in F.why_mixture()
    with pytest.raises(Unsupported, match=r"Cubic are not known .* F\.velocity$"):
        F.decompose()
    with pytest.raises(NotEnclosed, match="Cubic are not known to be linear"):
        F.enclosed_variation(MU)


def test_measures_and_data_that_do_not_fit_raise():
    F = Risk(Cubic(), X, Y)
    with pytest.raises(ValueError, match="dimension 3; got 2"):
        F.velocity(of.Particles(normal(4, 2)))
    with pytest.raises(TypeError, match=r"the measure has dtype torch.float32"):
        F(of.Particles(normal(4, 3).float()))
    with pytest.raises(TypeError, match=r"X has dtype torch.float32"):
        Cubic()(MU, X.float())


def test_a_flow_trains_a_model():
    run = of.flow(Risk(Fast(), X, Y), MU, of.ExplicitEuler(), dt=1e-3, steps=20)
    assert bool((run.records["energy"].diff() < 0).all())


class Doubled(Fast):
    def respond(self, inputs, mu):
        return 2 * super().respond(inputs, mu)


class Inner(Fast):
    """Another function of the mean, by a method that its parents do not know."""

    def respond(self, inputs, mu):
        return self.add_offset(self.mean_output(inputs, mu).sin())

    def mean_output(self, inputs, mu):
        return inputs @ mu.expectation(lambda x: x)


class Negated(Inner):
    def mean_output(self, inputs, mu):
        return -3 * super().mean_output(inputs, mu)


class Again(Doubled):
    """It states the pass of its own outputs, as a user may."""

    def value_and_velocity(self, loss, inputs, y, mu):
        z = inputs @ (mu.weights @ mu.points)
        f = 2 * z**3
        slope = 6 * inputs.T @ ((f - y) * z.square()) / len(y)
        return 0.5 * (f - y).square().mean(), -slope.expand(mu.n, -1)


@pytest.mark.parametrize("kind", [Fast, Doubled, Inner, Negated, Again])
def test_no_model_has_the_pass_of_other_outputs(kind):
    F = Risk(kind(), X, Y)
    x = MU.points.clone().requires_grad_()
    value = F.value(of.Particles(x, MU.weights))
    (partials,) = torch.autograd.grad(value, x)
    found, velocity = F.value_and_velocity(MU)
    torch.testing.assert_close(found, value.detach())
    torch.testing.assert_close(velocity, -partials / MU.weights[:, None])
    w = MU.weights.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(F.value(MU.with_free_atoms(MU.points, w)), w)
    variation = F.first_variation(MU)
    gap = variation - wanted
    torch.testing.assert_close(gap, gap[0].expand(4), rtol=0, atol=1e-12)
    probes = F.first_variation(MU, MU.points)
    torch.testing.assert_close(probes, variation)


def test_a_pass_that_is_stated_anew_is_taken(monkeypatch):
    taken = []

    def noted(self, loss, inputs, y, mu):
        taken.append(type(self))

    monkeypatch.setattr(Again, "value_and_velocity", noted)
    monkeypatch.setattr(Fast, "value_and_velocity", noted)
    for kind in (Fast, Doubled, Again):
        Risk(kind(), X, Y).velocity(MU)
    assert taken == [Fast, Again]


class Returns(Model):
    """Outputs of a wrong shape, which broadcasting would take."""

    def __init__(self, change, outputs=None):
        super().__init__(outputs)
        self.change = change

    def check_measure(self, mu, d):
        pass

    def respond(self, inputs, mu):
        return self.change(inputs @ mu.expectation(lambda x: x))


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f[:, None],
        lambda f: f[:1],
        lambda f: f.mean(),
        lambda f: f.float(),
        lambda _: 1.0,
    ],
)
def test_outputs_of_another_shape_raise(change):
    model = Returns(change)
    for use in (
        lambda: model(MU, X),
        lambda: Risk(model, X, Y)(MU),
        lambda: Risk(model, X, Y).velocity(MU),
        lambda: Risk(model, X, Y).outputs(MU),
    ):
        with pytest.raises(InvalidFunctional, match=r"Returns\.respond"):
            use()


def test_the_cures_of_outputs_of_another_shape_work():
    with pytest.raises(InvalidFunctional, match=r"return f\[:, 0\] for one output"):
        Risk(Returns(lambda f: f[:, None]), X, Y)(MU)
    assert Risk(Returns(lambda f: f[:, None][:, 0]), X, Y)(MU).shape == ()
    with pytest.raises(InvalidFunctional, match=r"shape \(n, 2\) .* got \(7,\)"):
        Returns(lambda f: f, outputs=2)(MU, X)
    assert Returns(lambda f: f[:, None], outputs=1)(MU, X).shape == (7, 1)


def test_the_cures_of_an_offset_work():
    with pytest.raises(TypeError, match=r"one number for one output.*outputs=2"):
        Cubic(offset=[1.0, 2.0])
    assert Cubic(offset=[1.0, 2.0], outputs=2).offset == (1.0, 2.0)
    with pytest.raises(ValueError, match=r"e\.g\. offset=\[0\.0, 0\.0\]"):
        Cubic(offset=3.0, outputs=2)
    assert Cubic(offset=[0.0, 0.0], outputs=2).offset == (0.0, 0.0)


class Column(Cubic):
    """Outputs (n, 1) in the place of (n,): a loss would broadcast them to (n, n)."""

    def respond(self, inputs, mu):
        return super().respond(inputs, mu)[:, None]


class Bare(Cubic):
    """A model that does not call `Model.__init__`: one output, without an offset."""

    def __init__(self):
        self.note = "no super().__init__()"


def test_outputs_of_another_shape_or_dtype_raise_with_a_cure():
    wrong = "Column.respond must return outputs of shape .n,. .* got .7, 1."
    for use in (Risk(Column(), X, Y), lambda mu: Column()(mu, X)):
        with pytest.raises(InvalidFunctional, match=wrong):
            use(MU)
    with pytest.raises(InvalidFunctional, match=wrong):
        Risk(Column(), X, Y).velocity(MU)
    with pytest.raises(InvalidFunctional, match=r"shape \(n, 2\) .* got \(7,\)"):
        Cubic(outputs=2)(MU, X)
    # the cure, followed to the letter
    torch.testing.assert_close(Column(outputs=1)(MU, X)[:, 0], Cubic()(MU, X))

    class Single(Cubic):
        def respond(self, inputs, mu):
            return super().respond(inputs, mu).float()

    with pytest.raises(InvalidFunctional, match="build its constants"):
        Single()(MU, X)


def test_a_model_has_a_name_and_defaults_without_its_constructor():
    assert repr(Bare()) == "Bare()"
    torch.testing.assert_close(Bare()(MU, X), Cubic()(MU, X))
    assert "Bare()" in repr(Risk(Bare(), X, Y))
