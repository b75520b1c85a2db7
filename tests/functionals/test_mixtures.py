"""How each functional bends along mixtures: every claim, and a witness of what is not.

A claim is tried by second differences of F along (1 - t) a + t b, on common atoms and
on densities on a grid. What is neither convex nor concave has a witness of both signs.
"""

from __future__ import annotations

import inspect
import math
import random
from functools import partial
from itertools import product

import pytest
import torch

import otflow as of
from otflow.testing.clouds import normal

F64 = torch.float64
TARGET = normal(5, 2, seed=90)
BUMP = of.kernels.Gaussian(0.8)


def square(x):
    return 0.5 * x.square().sum(-1)


def cubic(z):
    return z.norm(dim=-1).pow(3)


def risk(loss="square", scaling="mean-field", outputs=None, **options):
    network = of.meanfield.TwoLayer(
        "tanh", outputs=outputs, bias=False, scaling=scaling
    )
    y = normal(6, seed=31)
    y = {"logistic": y.sign(), "cross-entropy": (y > 0).long()}.get(loss, y)
    X = normal(6, 1, seed=30)
    return of.meanfield.Risk(network, X, y, loss=loss, **options)


def online():
    def draw(generator):
        return normal(6, 1, seed=30), normal(6, seed=31)

    network = of.meanfield.TwoLayer("tanh", bias=False)
    return of.meanfield.OnlineRisk(network, draw, draw(None))


def quartic(f, y):
    return (f - y).pow(4)


def on_line(n=9):
    return of.Quantiles(torch.linspace(-6, 7, n + 1, dtype=F64).sinh())


TEACHER = of.Particles(normal(3, 2, seed=32))

# Those that are tried on atoms: the functional, and how it bends.
ON_ATOMS = {
    "potential": (of.Potential(lambda x: x.sin().sum(-1)), "linear"),
    "expectation": (
        of.OfExpectation(lambda m: m.exp().sum(), torch.sin, mixture="convex"),
        "convex",
    ),
    "concave expectation": (
        of.OfExpectation(lambda m: -m.square().sum(), torch.sin, mixture="concave"),
        "concave",
    ),
    "lifted": (of.functionals.Lifted(of.Interaction(of.kernels.Energy())), None),
    "any expectation": (of.OfExpectation(lambda m: m.exp().sum(), torch.sin), None),
    "Gaussian": (of.Interaction(BUMP), "convex"),
    "multiquadric": (of.Interaction(of.kernels.InverseMultiquadric(0.5)), "convex"),
    "steep multiquadric": (
        of.Interaction(of.kernels.InverseMultiquadric(0.5, power=3.0)),
        "convex",
    ),
    "energy": (of.Interaction(of.kernels.Energy()), "convex"),
    "quadratic": (of.Interaction(of.kernels.Quadratic()), "concave"),
    "distance": (of.Interaction(-of.kernels.Energy()), "concave"),
    "root": (
        of.Interaction(lambda z: z.norm(dim=-1).sqrt(), mixture="concave"),
        "concave",
    ),
    "sum": (of.Interaction(2 * BUMP - of.kernels.Quadratic()), "convex"),
    "function": (of.Interaction(lambda z: (-z.abs()).exp().prod(-1)), None),
    "known function": (
        of.Interaction(
            of.kernels.Function(lambda z: (-z.abs()).exp().prod(-1), mixture="convex")
        ),
        "convex",
    ),
    "two points": (
        of.Interaction(
            of.kernels.TwoPoint(lambda x, y: (x * y).sum(-1).exp(), mixture="convex")
        ),
        "convex",
    ),
    "MMD": (of.MMDTo(TARGET, BUMP), "convex"),
    "MMD under a function": (of.MMDTo(TARGET, lambda z: z[..., 0].cos()), None),
    "energy distance": (of.EnergyDistanceTo(TARGET), "convex"),
    "Stein": (of.KSD(lambda x: -x - 3 * x.sin(), BUMP), "convex"),
    "Stein of a sum": (
        of.KSD(torch.cos, of.kernels.InverseMultiquadric(1.0, power=2.0) + BUMP),
        "convex",
    ),
    "Stein of a difference": (of.KSD(lambda x: -x, 2 * BUMP - BUMP / 4), None),
    "Sinkhorn": (of.SinkhornDivergenceTo(TARGET, blur=0.7), "convex"),
    "unbalanced": (of.SinkhornDivergenceTo(TARGET, blur=0.7, reach=1.0), None),
    "W2": (of.SquaredDistanceTo(TARGET), "convex"),
    "sliced": (of.SlicedWassersteinTo(TARGET, 6), "convex"),
    "square of blobs": (of.Blob(of.PowerEntropy(2.0), 0.6), "convex"),
    "entropy of blobs": (of.Blob(of.Entropy(), 0.6), None),
    "risk": (risk(), "convex"),
    "logistic": (risk("logistic"), "convex"),
    "cross-entropy": (risk("cross-entropy", outputs=2), "convex"),
    "own loss": (risk(quartic), None),
    "declared loss": (risk(quartic, mixture="convex"), "convex"),
    "tangent scaling": (risk(scaling="ntk"), None),
    "online": (online(), "convex"),
    "population": (of.meanfield.PopulationRisk(TEACHER, "relu", "sphere"), "convex"),
    "path penalty": (of.meanfield.PathPenalty(), "linear"),
    "potential of the risk": (risk().decompose().potential, "linear"),
    "interaction of the risk": (risk().decompose().interaction, "convex"),
    "scaled": (-2 * of.Interaction(BUMP), "concave"),
    "nothing": (0 * of.OfExpectation(lambda m: m.exp().sum(), torch.sin), "linear"),
    "total": (of.Potential(square) + of.Interaction(BUMP) + risk(), "convex"),
    "both": (of.Interaction(BUMP) + of.Interaction(of.kernels.Quadratic()), None),
    "empty": (of.functionals.Sum(()), "linear"),
}
# Those that are tried on densities too, or on densities alone.
ON_CELLS = {
    name: ON_ATOMS[name]
    for name in ("potential", "Gaussian", "energy", "quadratic", "distance", "MMD")
}
ON_CELLS |= {
    "entropy": (of.Entropy(), "convex"),
    "fast diffusion": (of.PowerEntropy(0.3), "convex"),
    "porous medium": (of.PowerEntropy(2.5), "convex"),
    "congestion": (of.Congestion(50.0), "convex"),
    "internal": (of.Internal(lambda r: r.exp(), mixture="convex"), "convex"),
    "concave internal": (
        of.Internal(lambda r: -r.log1p(), mixture="concave"),
        "concave",
    ),
    "linear internal": (of.Internal(lambda r: 0 * r + 3, mixture="linear"), "linear"),
    "internal by McCann": (of.Internal(lambda r: r + r.log(), modulus=0.0), "convex"),
    "any internal": (of.Internal(lambda r: r.exp()), None),
    "relative entropy": (of.KL(square), "convex"),
    "W2 to a picture": (
        of.SquaredDistanceTo(
            of.GridDensity(
                normal(4, 5, seed=3).exp(), -3, 3, walls=True, normalize=True
            )
        ),
        "convex",
    ),
}
ON_LINE = {
    "to quantiles": (of.KL(on_line()), "convex"),
    "cross entropy": (of.KL(on_line()).terms()[1][1], "linear"),
    "W2 on the line": (of.SquaredDistanceTo(on_line()), "convex"),
    "entropy": (of.Entropy(), "convex"),
    "energy": (of.Interaction(of.kernels.Energy()), "convex"),
    "Gaussian": (of.Interaction(BUMP), "convex"),
    "quadratic": (of.Interaction(of.kernels.Quadratic()), "concave"),
}


def atoms(seed, d=2):
    """Return the mixtures of two measures on common atoms, one of them without mass."""
    x = 1.5 * normal(7, d, seed=seed)
    a, b = (normal(7, seed=seed + s).mul(2).exp() for s in (1, 2))
    a[seed % 7] = 0
    a, b = a / a.sum(), b / b.sum()
    return lambda t: of.Particles(x, (1 - t) * a + t * b)


def cells(*shape):
    def make(seed):
        a, b = (normal(*shape, seed=seed + s).mul(1.5).exp() for s in (1, 2))
        a, b = a / a.sum(), b / b.sum()
        return lambda t: of.GridDensity(
            (1 - t) * a + t * b, -3, 3, walls=True, normalize=True
        )

    return make


def pairs(seed):
    """Return the mixtures of measures of two parts."""
    one, two = atoms(seed), atoms(seed + 3)
    return lambda t: of.measures.Parts([one(t), two(t)])


ON_PARTS = {
    "convex part": (of.functionals.OfPart(1, of.Interaction(BUMP)), "convex", pairs),
    "linear part": (of.functionals.OfPart(0, of.Potential(square)), "linear", pairs),
    "in one part": (
        of.functionals.InPart(
            of.functionals.OfPart(1, of.Interaction(BUMP)), pairs(0)(0.0), "1"
        ),
        "convex",
        atoms,
    ),
}
ALL = [
    *(
        (name, F, word, partial(atoms, d=2 + (name == "cross-entropy")))
        for name, (F, word) in ON_ATOMS.items()
    ),
    *((name, F, word, cells(4, 5)) for name, (F, word) in ON_CELLS.items()),
    *((name, F, word, cells(12)) for name, (F, word) in ON_LINE.items()),
    *((name, F, word, make) for name, (F, word, make) in ON_PARTS.items()),
    ("lengths", of.meanfield.RadialRisk(0.8), "convex", partial(atoms, d=1)),
]
IDS = [f"{name}-{k}" for k, (name, *_) in enumerate(ALL)]


def bends(F, mixture):
    """Return second differences of F along a mixture, and their round-off."""
    times = torch.linspace(0, 1, 9, dtype=F64).tolist()
    v = torch.stack([F.value(mixture(t)) for t in times])
    # Entropic plans are solved to a tolerance of 1e-9 or so, all else to round-off.
    slack = 1e-8 if isinstance(F, of.SinkhornDivergenceTo) else 1e-13
    found = [v[k + s] - 2 * v[k] + v[k - s] for s in (1, 2, 4) for k in range(s, 9 - s)]
    return torch.stack(found), slack * (1 + float(v.abs().max()))


@pytest.mark.parametrize(("name", "F", "word", "make"), ALL, ids=IDS)
def test_it_bends_as_it_says(name, F, word, make):
    assert F.mixture_curvature() == word
    assert F.mixture_convex == {None: None, "concave": False}.get(word, True)
    for seed in range(0, 60, 3):
        found, noise = bends(F, make(seed))
        if word in ("convex", "linear"):
            assert float(found.min()) >= -noise
        if word in ("concave", "linear"):
            assert float(found.max()) <= noise


@pytest.mark.parametrize(("name", "F", "word", "make"), ALL, ids=IDS)
def test_it_is_not_more_than_it_says(name, F, word, make):
    """A convex one is somewhere not concave, and the other way round."""
    flat = {
        "potential",
        "path penalty",
        "nothing",
        "empty",
        "linear internal",
        "cross entropy",
    }
    flat |= {"congestion", "potential of the risk", "linear part"}
    if word is None or name in flat:
        return
    sizes = [bends(F, make(seed)) for seed in range(3)]
    sign = -1 if word == "concave" else 1
    assert any(float((sign * found).max()) > 100 * noise for found, noise in sizes)


@pytest.mark.parametrize("seed", range(30))
def test_random_sums_bend_as_the_algebra_says(seed):
    """Sums, differences, multiples and minibatches, nested at random."""
    draw = random.Random(seed)
    slow = ("W2", "Sinkhorn", "unbalanced", "cross-entropy")
    parts = [F for name, (F, _) in ON_ATOMS.items() if name not in slow]

    def grown(depth):
        if not depth:
            return draw.choice(parts)
        a, b = grown(depth - 1), grown(depth - 1)
        c = draw.choice([-2.0, 0.0, 0.5])
        return draw.choice([a + b, a - b, c * a, -a, a / 3 + c * b])

    F = grown(draw.randint(1, 3))
    word = F.mixture_curvature()
    assert F.why(2).splitlines()[-1].startswith("    ") or not F.terms()
    for k in range(3):
        found, noise = bends(F, atoms(seed + k))
        if word in ("convex", "linear"):
            assert float(found.min()) >= -30 * noise
        if word in ("concave", "linear"):
            assert float(found.max()) <= 30 * noise


def test_every_public_functional_is_tried():
    public = {
        kind
        for module in (of, of.functionals, of.meanfield)
        for kind in (getattr(module, name) for name in module.__all__)
        if inspect.isclass(kind) and issubclass(kind, of.Functional)
    } - {of.Functional}
    tried = {type(F) for _, F, _, _ in ALL}
    assert public <= tried, public - tried
    assert len(public) >= 17


def test_every_public_kernel_is_tried():
    public = {getattr(of.kernels, name) for name in of.kernels.__all__}
    public = {
        kind
        for kind in public
        if inspect.isclass(kind) and not inspect.isabstract(kind)
    }
    tried = {
        kind
        for F in [F for _, F, _, _ in ALL] + [of.Interaction(W) for W in NEITHER]
        if isinstance(F, of.Interaction)
        for kind in [type(F.kernel)]
    }
    assert public <= tried, public - tried


# Neither: a witness of each sign ------------------------------------------------------

NEITHER = [
    of.kernels.Log(),
    of.kernels.Riesz(0.5),
    of.kernels.PowerLaw(4, 2),
    of.kernels.PowerLaw(2, 1),
    of.kernels.PowerLaw(2, 0),
    of.kernels.PowerLaw(0, -1),
    of.kernels.PowerLaw(6, 5),
    of.kernels.Gaussian(1.0) - 0.5 * of.kernels.Gaussian(0.5),
    of.kernels.Function(cubic),
]


@pytest.mark.parametrize("W", NEITHER, ids=repr)
def test_a_kernel_of_unknown_sign_bends_both_ways(W):
    """Of two atoms, and of two that are close and exchange mass with a third."""
    F, found = of.Interaction(W), []
    assert F.mixture_curvature() is None
    pair, triple = ([0.9, 0.1], [0.2, 0.8]), ([0.49, 0.02, 0.49], [0.01, 0.98, 0.01])
    for size, close in product((0.1, 0.5, 1.0, 3.0), (1e-4, 2.0)):
        for x, ends in (([0.0, 1.0], pair), ([0.0, 1.0, close], triple)):
            points = size * torch.tensor(x, dtype=F64)[:, None]
            a, b = torch.tensor(ends, dtype=F64)
            found.append(
                bends(
                    F,
                    lambda t, x=points, a=a, b=b: of.Particles(x, (1 - t) * a + t * b),
                )
            )
    assert any(float(v.max()) > 10 * noise for v, noise in found)
    assert any(float(v.min()) < -10 * noise for v, noise in found)


BLOBS = {
    0.5: (
        [-0.69, -2.47, 0.34, 0.18, 0.71, -1.38],
        [1.6e-4, 0.0167, 0.583, 0.0123, 0.384, 0.004],
        [0.0063, 3.0e-4, 0.75, 4.8e-6, 0.171, 0.0722],
    ),
    8.0: (
        [2.4449, -0.0182, 1.4323, 0.9492],
        [0.3884, 0.0218, 0.0478, 0.5421],
        [0.0204, 0.3939, 0.5518, 0.0339],
    ),
}


@pytest.mark.parametrize("m", BLOBS)
def test_blobs_of_other_powers_bend_down_somewhere(m):
    """Of the blobs only those of the square are known to be convex."""
    F = of.Blob(of.PowerEntropy(m), 1.0)
    x, a, b = (torch.tensor(numbers, dtype=F64) for numbers in BLOBS[m])
    a, b = a / a.sum(), b / b.sum()
    found, noise = bends(F, lambda t: of.Particles(x[:, None], (1 - t) * a + t * b))
    assert float(found.min()) < -1e-6 < -noise


FORMS = [
    (BUMP, 1),
    (of.kernels.Gaussian(0.02), 1),
    (of.kernels.Gaussian(5.0), 1),
    (of.kernels.InverseMultiquadric(0.3), 1),
    (of.kernels.InverseMultiquadric(0.05, power=3.0), 1),
    (of.kernels.Energy(), 1),
    (of.kernels.Quadratic(), -1),
]


@pytest.mark.parametrize("shape", [(30,), (9, 4), (3, 4, 3)], ids=str)
@pytest.mark.parametrize(("W", "sign"), FORMS, ids=[repr(W) for W, _ in FORMS])
def test_the_averages_over_cells_keep_the_sign_of_the_kernel(W, sign, shape):
    """The least eigenvalue of the energy, as a form on densities of mass 0."""
    n = math.prod(shape)

    def potential(k):
        mass = torch.full((n,), 1e-12, dtype=F64).index_fill(0, torch.tensor(k), 1.0)
        mu = of.GridDensity(mass.reshape(shape), -1, 2, walls=True, normalize=True)
        return of.Interaction(W).first_variation(mu)

    form = torch.stack([potential(k) for k in range(n)])
    without_mass = torch.eye(n, dtype=F64) - 1 / n
    form = without_mass @ (0.5 * sign * (form + form.T)) @ without_mass
    found = torch.linalg.eigvalsh(form)
    assert float(found[-1]) > 0
    assert float(found[0]) >= -1e-12 * float(found[-1])


# Words --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda word: of.Interaction(cubic, mixture=word),
        lambda word: of.kernels.Function(cubic, mixture=word),
        lambda word: of.kernels.TwoPoint(lambda x, y: (x * y).sum(-1), mixture=word),
        lambda word: of.OfExpectation(torch.sum, torch.sin, mixture=word),
        lambda word: of.Internal(torch.log, mixture=word),
        lambda word: risk(quartic, mixture=word),
    ],
)
def test_a_declared_word_is_one_of_three(make):
    assert make("concave").mixture == of.functionals.Curvature.CONCAVE
    with pytest.raises(ValueError, match=r"mixture must be one of.*'convx'; did you"):
        make("convx")
    with pytest.raises(TypeError, match="mixture must be one of"):
        make(True)


def test_a_word_of_a_users_kernel_is_checked():
    class Wrong(of.kernels.Gaussian):
        mixture = "konvex"

    for ask in (of.Interaction, lambda W: W + of.kernels.Energy()):
        with pytest.raises(ValueError, match=r"the mixture of Wrong\(.*did you mean"):
            ask(Wrong(1.0))


def test_a_word_of_a_users_functional_is_checked():
    class Mine(of.Functional):
        word = "konvex"

        def value(self, mu):
            return mu.weights.square().sum()

        def mixture_curvature(self):
            return self.word

    F = Mine()
    for ask in (F.mixture_curvature, lambda: F.mixture_convex, lambda: (2 * F).why()):
        with pytest.raises(of.errors.InvalidFunctional, match=r"Mine\.mixture_curv"):
            ask()
    F.word = "convex"
    assert (
        F + of.Potential(square)
    ).mixture_curvature() is of.functionals.Curvature.CONVEX


def test_a_subclass_with_another_value_states_its_own_convexities():
    class Squared(of.Potential):
        def value(self, mu):
            return -super().value(mu).square()

    class Same(of.Potential):
        pass

    assert Squared(square, modulus=1.0).mixture_curvature() is None
    assert Squared(square, modulus=1.0).modulus(1) is None
    assert Same(square, modulus=1.0).mixture_curvature() == "linear"
    assert Same(square, modulus=1.0).modulus(1) == 1.0

    class Template(of.Functional):
        def modulus(self, dim):
            return -1.0

    class Filled(Template):
        def value(self, mu):
            return mu.weights.square().sum()

    assert Filled().modulus(2) == -1.0  # nothing was known of another value

    class Steep(of.kernels.Gaussian):
        def profile(self, s):
            return -super().profile(s)

    assert Steep(1.0).modulus is None
    assert Steep(1.0).mixture is None
    assert "Steep" in Steep(1.0).why_mixture()
    assert of.Interaction(Steep(1.0)).modulus(2) is None

    class Form(of.kernels.RadialKernel):
        modulus, mixture = -2.0, "convex"

    class Bell(Form):
        def profile(self, s):
            return (-s).exp()

        def slope(self, s):
            return -(-s).exp()

    assert of.Interaction(Bell()).modulus(2) == -2.0
    assert of.Interaction(Bell()).mixture_curvature() == "convex"
