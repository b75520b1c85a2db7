"""Symmetries of neurons keep the function, and distances do not see them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn import functional

import otflow as of
from otflow.metrics import aligned_networks, quotient_distance
from otflow.metrics.symmetries import (
    Even,
    Periodic,
    Product,
    Scale,
    Sign,
    Trivial,
    of_activation,
)
from otflow.testing.clouds import normal

F64 = torch.float64

# Activations by torch, and the changes (a, w, b) -> (p a, q w, q b + r) that keep them.
UNIT, FLIP, MIRROR = (1.0, 1.0, 0.0), (-1.0, -1.0, 0.0), (1.0, -1.0, 0.0)
WAVES = [(-1.0, 1.0, math.pi), (1.0, 1.0, 2 * math.pi), (-1.0, 1.0, -3 * math.pi)]


def scalings(degree, signs=((1.0, 1.0),)):
    """Return changes by some scales, times signs of a and of (w, b)."""
    return [(p * s**-degree, q * s, 0.0) for s in (0.3, 1.0, 2.5) for p, q in signs]


ACTIVATIONS = {
    "relu": (torch.relu, scalings(1)),
    "leaky_relu": (functional.leaky_relu, scalings(1)),
    "relu2": (lambda z: torch.relu(z) ** 2, scalings(2)),
    "relu3": (lambda z: torch.relu(z) ** 3, scalings(3)),
    "tanh": (torch.tanh, [UNIT, FLIP]),
    "erf": (torch.erf, [UNIT, FLIP]),
    "atan": (torch.atan, [UNIT, FLIP]),
    "asinh": (torch.asinh, [UNIT, FLIP]),
    "sinh": (torch.sinh, [UNIT, FLIP]),
    "softsign": (functional.softsign, [UNIT, FLIP]),
    "hardtanh": (functional.hardtanh, [UNIT, FLIP]),
    "tanhshrink": (functional.tanhshrink, [UNIT, FLIP]),
    "softshrink": (functional.softshrink, [UNIT, FLIP]),
    "hardshrink": (functional.hardshrink, [UNIT, FLIP]),
    "gaussian": (lambda z: torch.exp(-z.square()), [UNIT, MIRROR]),
    "sin": (torch.sin, [UNIT, FLIP, *WAVES, (1.0, -1.0, math.pi)]),
    "cos": (torch.cos, [UNIT, MIRROR, *WAVES, (-1.0, -1.0, math.pi)]),
    "abs": (torch.abs, scalings(1, [(1.0, 1.0), (1.0, -1.0)])),
    "square": (torch.square, scalings(2, [(1.0, 1.0), (1.0, -1.0)])),
    "identity": (lambda z: z, scalings(1, [(1.0, 1.0), (-1.0, -1.0)])),
    "sigmoid": (torch.sigmoid, [UNIT]),
    "softplus": (functional.softplus, [UNIT]),
    "gelu": (functional.gelu, [UNIT]),
    "silu": (functional.silu, [UNIT]),
    "mish": (functional.mish, [UNIT]),
    "elu": (functional.elu, [UNIT]),
    "selu": (functional.selu, [UNIT]),
    "celu": (lambda z: functional.celu(z, 2.0), [UNIT]),
    "relu6": (functional.relu6, [UNIT]),
    "logsigmoid": (functional.logsigmoid, [UNIT]),
    "hardsigmoid": (functional.hardsigmoid, [UNIT]),
    "hardswish": (functional.hardswish, [UNIT]),
}
# All changes of these forms; those not in the list of an activation change it.
TRIED = {
    change
    for _, changes in ACTIVATIONS.values()
    for change in [*changes, (-1.0, 1.0, 0.0), (0.5, 2.0, 0.1), (1.0, 1.0, 1.0)]
}
X = torch.cat([normal(60, 2, seed=7), 5 * normal(60, 2, seed=8)])


def neurons(n=9, outputs=1, seed=0):
    return normal(n, outputs + 3, seed=seed)


def computed(activation, theta, outputs=1):
    """Return the function of each neuron at X, (n, len(X), outputs)."""
    a, w, b = theta[:, :outputs], theta[:, outputs:-1], theta[:, -1:]
    return a[:, None] * activation(w @ X.T + b)[:, :, None]


def changed(theta, change, outputs=1):
    p, q, r = change
    shift = torch.zeros_like(theta)
    shift[:, -1] = r
    factor = torch.full_like(theta, q)
    factor[:, :outputs] = p
    return factor * theta + shift


def close(f, g):
    return float((f - g).abs().max()) <= 1e-12 * max(1.0, float(f.abs().max()))


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_canonical_neurons_and_their_images_compute_the_same(name, outputs):
    activation, _ = ACTIVATIONS[name]
    group = of_activation(name, outputs)
    theta = neurons(outputs=outputs)
    canonical = group.canonical(theta)
    for image in [canonical, *group.orbit(canonical)]:
        assert close(
            computed(activation, theta, outputs), computed(activation, image, outputs)
        )


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_distance_is_zero_for_the_changes_that_keep_the_function_and_no_others(
    name,
):
    activation, keeping = ACTIVATIONS[name]
    group, theta = of_activation(name), neurons()
    before = computed(activation, theta)
    for change in TRIED:
        after = changed(theta, change)
        kept = close(before, computed(activation, after))
        apart = float(quotient_distance(theta, after, symmetry=group))
        assert kept == (change in keeping)
        assert (apart <= 1e-12) == kept


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_distances_are_those_of_the_orbits(name):
    _, keeping = ACTIVATIONS[name]
    group = of_activation(name)
    x, y = neurons(7), neurons(5, seed=1)
    d = float(quotient_distance(x, y, symmetry=group))
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        pick = torch.randint(len(keeping), (12,), generator=generator)
        moved = [
            torch.cat([changed(row[None], keeping[int(k)]) for row, k in pairs])
            for pairs in (
                zip(x, pick, strict=False),
                zip(y, pick[7:], strict=True),
            )
        ]
        again = float(quotient_distance(*moved, symmetry=group))
        assert again == pytest.approx(d, rel=1e-11)
    assert d <= float(quotient_distance(group.canonical(x), group.canonical(y)))


def fitted(activation, data, x, starts):
    """Return neurons (a, w, b) that Levenberg and Marquardt fit to data, and errors."""

    def errors(theta):
        a, w, b = theta.T[:, :, None]
        return a * activation(w * x + b) - data

    def jacobian(theta):
        a, w, b = theta.T[:, :, None]
        z = (w * x + b).requires_grad_()
        value = activation(z)
        (slope,) = torch.autograd.grad(value.sum(), z)
        return torch.stack([value.detach(), a * slope * x, a * slope], dim=2)

    theta, damping = starts, torch.full((len(starts), 1, 1), 1e-2, dtype=F64)
    now = errors(theta)
    for _ in range(100):
        J = jacobian(theta)
        square = J.mT @ J
        steep = torch.diag_embed(square.diagonal(0, 1, 2) + 1e-3)
        metric = square + damping * steep + 1e-13 * torch.eye(3, dtype=F64)
        new = theta - torch.linalg.solve(metric, (J.mT @ now[..., None]))[..., 0]
        there = errors(new)
        fell = there.norm(dim=1) < now.norm(dim=1)
        theta = torch.where(fell[:, None], new, theta)
        now = torch.where(fell[:, None], there, now)
        damping = torch.where(fell[:, None, None], 0.3 * damping, 4 * damping)
        damping = damping.clamp(1e-15, 1e8)
    return theta, now.abs().amax(dim=1)


# Where hardshrink jumps is known only up to the distance of two inputs.
@pytest.mark.parametrize("name", sorted(ACTIVATIONS.keys() - {"hardshrink"}))
def test_neurons_that_are_found_to_compute_the_same_are_at_distance_zero(name):
    activation, _ = ACTIVATIONS[name]
    group, generator = of_activation(name), torch.Generator().manual_seed(0)
    # At inputs without a common step no wave of high frequency looks like a slow one.
    x = 10 * torch.rand(101, dtype=F64, generator=generator) - 5
    starts = 3 * torch.randn(200, 3, dtype=F64, generator=generator)
    neuron = torch.tensor([0.7, 1.5, 0.4], dtype=F64)
    data = neuron[0] * activation(neuron[1] * x + neuron[2])
    found, errors = fitted(activation, data, x, starts)
    same = found[errors < 1e-10]
    assert len(same) >= 3
    for other in same:
        d = quotient_distance(neuron[None], other[None], symmetry=group)
        assert float(d) < 1e-4, other
    # All of the group is found, but for scales and whole turns.
    if not isinstance(group, Trivial):
        near = (same - neuron).norm(dim=1) < 1e-4
        assert not bool(near.all())


@pytest.mark.parametrize("even", [False, True])
def test_no_image_of_a_wave_is_nearer_than_the_six(even):
    group = Periodic(even=even)
    x, y = neurons(6), neurons(6, seed=1)
    x, y = (group.canonical(z * torch.tensor([1.0, 1, 1, 9])) for z in (x, y))
    a, w, b = y[:, :1], y[:, 1:-1], y[:, -1:]
    sign = 1.0 if even else -1.0
    images = [
        torch.cat([(-1.0) ** k * p * a, q * w, q * b + k * math.pi], dim=1)
        for k in range(-6, 7)
        for p, q in ((1.0, 1.0), (sign, -1.0))
    ]
    least = torch.stack([(x - z).norm(dim=1) for z in images]).amin(0)
    found = torch.stack([(x - z).norm(dim=1) for z in group.orbit(y)]).amin(0)
    torch.testing.assert_close(found, least, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("degree", [0.5, 1.0, 2.0, 3.0])
def test_a_balanced_neuron_is_the_least_of_its_orbit(degree):
    theta = neurons(50)
    least = Scale(degree=degree).canonical(theta).square().sum(dim=1)
    for s in torch.linspace(-3, 3, 601, dtype=F64).exp():
        scaled = changed(theta, (float(s**-degree), float(s), 0.0))
        assert bool((scaled.square().sum(dim=1) >= least * (1 - 1e-12)).all())


def test_balanced_neurons_of_any_size_are_finite_at_degree_three():
    a = torch.tensor([[1e-290, 1e200, 3.0], [1e120, 1e-90, 1e-90]], dtype=F64)
    balanced = Scale(degree=3.0).canonical(a)
    sizes = balanced[:, 0].abs(), balanced[:, 1:].norm(dim=1)
    torch.testing.assert_close(sizes[1], 3**0.5 * sizes[0], rtol=1e-12, atol=0)
    product = sizes[0].log() + 3 * sizes[1].log()
    before = a[:, 0].log() + 3 * (a[:, 1:] / a[:, 1:2]).norm(dim=1).log()
    before = before + 3 * a[:, 1].log()
    torch.testing.assert_close(product, before, rtol=1e-12, atol=1e-9)


# Names, units, functions and modules -------------------------------------------------


def test_an_activation_may_be_a_unit_a_function_or_a_module():
    class Bump(of.meanfield.Unit):
        name = "gaussian"

        def __call__(self, z):
            return torch.exp(-z.square())

        def slope(self, z, value, out):
            return torch.mul(-2 * z, value, out=out)

    expected = {
        torch.tanh: Sign,
        functional.gelu: Trivial,
        torch.nn.GELU(): Trivial,
        torch.nn.LeakyReLU(0.2): Scale,
        torch.nn.PReLU(): Scale,
        torch.nn.ReLU(): Scale,
        torch.nn.Hardtanh(): Sign,
        torch.nn.Softplus(): Trivial,
        torch.nn.SiLU(): Trivial,
        torch.cos: Periodic,
        torch.abs: Product,
        Bump(): Even,
    }
    for activation, kind in expected.items():
        assert type(of_activation(activation)) is kind
    for name in ("relu", "tanh", "sigmoid", "erf"):
        unit = of.meanfield.TwoLayer(name).activation
        assert isinstance(unit, of.meanfield.Unit)
        assert repr(of_activation(unit)) == repr(of_activation(name))
    assert repr(of_activation(torch.relu, outputs=4)) == repr(Scale(4))


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (torch.nn.LeakyReLU(-1.0), Product(Scale(), Even())),
        (torch.nn.LeakyReLU(1.0), Product(Scale(), Sign())),
        (torch.nn.LeakyReLU(1.0, inplace=True), Product(Scale(), Sign())),
        (torch.nn.LeakyReLU(-0.5), Scale()),
        (torch.nn.LeakyReLU(0.2, inplace=True), Scale()),
        (torch.nn.LeakyReLU(1 - 1e-9), Scale()),
        (torch.nn.PReLU(init=-1.0), Product(Scale(), Even())),
        (torch.nn.PReLU(init=1.0, dtype=F64), Product(Scale(), Sign())),
        (torch.nn.ELU(0.0), Scale()),
        (torch.nn.ELU(1e-9), Trivial()),
        (torch.nn.ELU(-1.0), Trivial()),
        (torch.nn.CELU(1e-9), Trivial()),
        (torch.nn.Softshrink(0.0), Product(Scale(), Sign())),
        (torch.nn.Softshrink(1e3), Sign()),
        (torch.nn.Softshrink(1e-9), Sign()),
        (torch.nn.Hardshrink(0.0), Product(Scale(), Sign())),
        (torch.nn.Hardtanh(-math.inf, math.inf), Product(Scale(), Sign())),
        (torch.nn.Hardtanh(-1e9, 1e9), Sign()),
        (torch.nn.Softplus(threshold=-math.inf), Product(Scale(), Sign())),
        (torch.nn.Softplus(beta=1e6), Trivial()),
        (torch.nn.GELU("tanh"), Trivial()),
    ],
)
def test_parameters_may_give_an_activation_more_symmetries(activation, expected):
    assert repr(of_activation(activation)) == repr(expected)
    # Neurons that compute the same are at the distance zero, and no others.
    like = next(activation.parameters(), torch.zeros(1, dtype=F64))
    # Biases are 0, and inputs of all sizes: where a threshold lies is seen.
    sizes = torch.logspace(-12, 12, len(X), dtype=F64)[:, None]
    theta, x = neurons().to(like), (sizes * X).to(like)
    theta[:, -1] = 0
    changes = [*TRIED, *scalings(1, [(1.0, -1.0), (-1.0, -1.0)])]

    def function(neuron):
        a, w, b = neuron[:, :1], neuron[:, 1:-1], neuron[:, -1:]
        return a * activation(w @ x.T + b)

    with torch.no_grad():
        before = function(theta)
        eps = torch.finfo(like.dtype).eps
        for change in changes:
            after = changed(theta, change)
            gap = (before - function(after)).abs().amax(0)
            kept = bool((gap <= 64 * eps * before.abs().amax(0)).all())
            apart = quotient_distance(theta, after, symmetry=expected)
            assert (float(apart) <= 64 * eps) == kept


@pytest.mark.parametrize("shift", [3e-3, 1e-6, 1e-10])
def test_an_activation_that_is_only_near_its_name_is_told(shift):
    def relu(z):
        return (z - shift).relu()

    def tanh(z):
        return torch.tanh(z - shift)

    def sin(z):
        return torch.sin((1 + shift) * z)

    for near in (relu, tanh, sin, torch.nn.Hardtanh(-1.0, 1.0 + shift)):
        with pytest.raises(ValueError, match="does not have the symmetry"):
            of_activation(near)


def test_the_groups_of_the_names_are_found_by_evaluation_too():
    modules = {
        "relu": torch.relu,
        "leaky_relu": functional.leaky_relu,
        "abs": torch.abs,
        "square": torch.square,
        "identity": torch.nn.Identity(),
        "tanh": torch.tanh,
        "sinh": torch.sinh,
        "gelu": functional.gelu,
        "sin": torch.sin,
        "cos": torch.cos,
    }
    for name, activation in modules.items():
        for outputs in (1, 3):
            found = of_activation(activation, outputs)
            assert repr(found) == repr(of_activation(name, outputs))


def test_without_a_bias_a_wave_is_odd_or_even():
    assert type(of_activation("sin", bias=False)) is Sign
    assert type(of_activation(torch.cos, bias=False)) is Even
    theta, group = normal(6, 3), of_activation("cos", bias=False)
    other = torch.cat([theta[:, :1], -theta[:, 1:]], dim=1)
    assert float(quotient_distance(theta, other, symmetry=group)) == 0.0


@pytest.mark.parametrize("group", [Scale(3), Even(3), Periodic(3)])
def test_neurons_without_input_weights_are_refused(group):
    with pytest.raises(ValueError, match=f"check {type(group).__name__}"):
        group.orbit(group.canonical(normal(2, 3)))


# Different widths ---------------------------------------------------------------------


def brute(x, y, group):
    """Return the distance by all permutations of copies, and all choices of images."""
    n, m = len(x), len(y)
    copies = math.lcm(n, m)
    x, y = group.canonical(x), group.canonical(y)
    rows = torch.arange(n).repeat_interleave(copies // n)
    columns = torch.arange(m).repeat_interleave(copies // m)
    squares = torch.stack([(x[:, None] - z).square().sum(-1) for z in group.orbit(y)])
    choices = torch.tensor(list(itertools.product(range(len(squares)), repeat=copies)))
    best = math.inf
    for order in itertools.permutations(range(copies)):
        cells = squares[:, rows, columns[list(order)]]
        sums = cells[choices, torch.arange(copies)].sum(dim=1)
        best = min(best, float(sums.min()) / copies)
    return best**0.5


@pytest.mark.parametrize(
    ("name", "n", "m"),
    [
        ("tanh", 2, 3),
        ("tanh", 5, 5),
        ("relu", 2, 3),
        ("abs", 3, 2),
        ("gelu", 6, 3),
        ("tanh", 6, 6),
        ("cos", 3, 3),
    ],
)
def test_the_distance_is_the_least_over_all_permutations_and_signs(name, n, m):
    group = of_activation(name)
    x, y = neurons(n), neurons(m, seed=1)
    d = float(quotient_distance(x, y, symmetry=group))
    assert d == pytest.approx(brute(x, y, group), rel=1e-12)


def weighted(n, seed=0, dtype=F64):
    w = normal(n, seed=seed + 50).exp().to(dtype)
    return of.Particles(neurons(n, seed=seed).to(dtype), w / w.sum())


def test_without_a_symmetry_it_is_w2_for_any_sizes_and_weights():
    mu, nu = weighted(8), weighted(5, seed=1)
    w2 = float(of.metrics.wasserstein2(mu, nu))
    assert float(quotient_distance(mu, nu)) == pytest.approx(w2, rel=1e-12)
    far = quotient_distance(mu, nu, ground=lambda a, b: 2 * torch.cdist(a, b))
    assert float(far) == pytest.approx(2 * w2, rel=1e-12)


@pytest.mark.parametrize("name", ["tanh", "relu", "sin", "abs", "gelu"])
def test_aligned_networks_compute_the_same_and_their_segment_is_a_shortest_path(name):
    activation, _ = ACTIVATIONS[name]
    group = of_activation(name)
    mu, nu = weighted(8), weighted(5, seed=1)
    a, b = aligned_networks(mu, nu, symmetry=group)
    assert torch.equal(a.weights, b.weights)
    assert int((a.weights > 0).sum()) <= 12
    network = of.meanfield.TwoLayer(activation)
    for before, after in ((mu, a), (nu, b)):
        torch.testing.assert_close(
            network(after, X), network(before, X), rtol=1e-12, atol=1e-12
        )
    d = quotient_distance(mu, nu, symmetry=group)
    assert float(a.norm(a.displacement_to(b))) == pytest.approx(float(d), rel=1e-12)
    # The pieces of a shortest path add up to its length; those of chords need not.
    middle = a.push(a.displacement_to(b), 0.3)
    isometries = name not in {"relu", "abs"}
    for end, other, share in ((mu, a, 0.3), (nu, b, 0.7)):
        part = of.metrics.wasserstein2(other, middle)
        assert float(part) == pytest.approx(share * float(d), rel=1e-9)
        part = quotient_distance(end, middle, symmetry=group)
        assert (float(part) == pytest.approx(share * float(d), rel=1e-9)) == isometries


def test_the_offset_of_a_network_moves_along_an_aligned_path():
    """It is no part of the measure, and the ends need it."""
    mu, nu, offsets = weighted(8), weighted(5, seed=1), (0.5, -2.0)
    a, b = aligned_networks(mu, nu, symmetry=Sign())

    def network(t):
        offset = (1 - t) * offsets[0] + t * offsets[1]
        return of.meanfield.TwoLayer("tanh", offset=offset)

    for t, end in ((0.0, mu), (1.0, nu)):
        at = a.push(a.displacement_to(b), t)
        exact = network(t)(end, X)
        torch.testing.assert_close(network(t)(at, X), exact, rtol=1e-12, atol=1e-12)
        without = of.meanfield.TwoLayer("tanh")(at, X)
        assert float((without - exact).abs().min()) > 0.4


def test_networks_of_equal_size_are_aligned_as_by_align():
    x, y, group = neurons(9), neurons(9, seed=1), Sign()
    a, b = aligned_networks(x, y, symmetry=group)
    assert torch.equal(a.points, x)
    assert torch.equal(b.points, of.metrics.align(x, y, symmetry=group))
    assert a.is_uniform


def test_a_copy_with_doubled_neurons_is_the_same_network():
    x = neurons(6)
    twice = torch.cat([x, -x])
    assert float(quotient_distance(x, twice, symmetry=Sign())) == 0.0
    # One neuron in two parts.
    masses = torch.tensor([2.0, 1, 1, 1, 1, 2], dtype=F64) / 8
    parts = torch.cat([masses, masses[:1] / 2])
    parts[0] /= 2
    split = of.Particles(torch.cat([x, -x[:1]]), parts)
    whole = of.Particles(x, masses)
    assert float(quotient_distance(split, whole, symmetry=Sign())) == 0.0


@pytest.mark.parametrize("name", ["tanh", "relu", "cos"])
def test_gradients_between_two_widths(name):
    group = of_activation(name)
    y = weighted(5, seed=1)
    x, w = neurons(8).requires_grad_(), weighted(8).weights.requires_grad_()
    value = quotient_distance(of.Particles(x, w), y, symmetry=group)
    grads = torch.autograd.grad(value, (x, w))
    steps = normal(8, 4, seed=4), normal(8, seed=5)
    steps = steps[0], steps[1] - steps[1].mean()
    h, found = 1e-6, []
    for s in (h, -h):
        z, v = (at.detach() + s * u for at, u in zip((x, w), steps, strict=True))
        found.append(float(quotient_distance(of.Particles(z, v), y, symmetry=group)))
    expected = (found[0] - found[1]) / (2 * h)
    slope = sum(float((g * u).sum()) for g, u in zip(grads, steps, strict=True))
    assert slope == pytest.approx(expected, rel=1e-6)


def test_units_do_not_matter_between_two_widths():
    x, y = weighted(6, dtype=torch.float32), weighted(4, seed=1, dtype=torch.float32)
    d = float(quotient_distance(x, y, symmetry=Sign()))
    for unit in (2.0**-60, 2.0**40):
        scaled = (of.Particles(unit * z.points, z.weights) for z in (x, y))
        again = float(quotient_distance(*scaled, symmetry=Sign()))
        assert again == pytest.approx(unit * d, rel=1e-5)


@pytest.mark.parametrize("outputs", [None, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", ["relu", "tanh"])
def test_a_network_tells_its_outputs_and_its_bias(name, outputs, bias):
    network = of.meanfield.TwoLayer(name, outputs=outputs, bias=bias)
    group = of.metrics.symmetries.of_activation(network)
    told = of.metrics.symmetries.of_activation(name, outputs or 1, bias=bias)
    assert repr(group) == repr(told)
    p = (outputs or 1) + 2 + bias
    theta, xi = (normal(n, p) for n in (4, 6))
    X = normal(5, 2)
    for mu, nu in zip(
        of.metrics.aligned_networks(theta, xi, symmetry=group),
        (of.Particles(theta), of.Particles(xi)),
        strict=True,
    ):
        assert torch.allclose(network(mu, X), network(nu, X), atol=1e-12)
