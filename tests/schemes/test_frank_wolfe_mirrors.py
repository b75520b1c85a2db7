"""Sliding Frank-Wolfe where a place and its mirror image give the same F."""

import pytest
import torch

import otflow as of

F64 = torch.float64
BOX = of.optimality.BoxDomain(-1.0, 1.0)
GAUSSIAN = of.kernels.Gaussian(0.5)


def two_atoms(d):
    return of.MMDTo(torch.tensor([[-0.5] * d, [0.5] * d], dtype=F64), GAUSSIAN)


# Each is least at a measure of several atoms, and alike at one atom and at its image.
PROBLEMS = {
    "hill": lambda _: (
        of.Potential(lambda x: -x.square().sum(-1)) + 2.0 * of.Interaction(GAUSSIAN)
    ),
    "two wells": lambda _: (
        of.Potential(lambda x: (x.square() - 0.5).square().sum(-1))
        + 0.5 * of.Interaction(GAUSSIAN)
    ),
    "repulsion": lambda _: 5.0 * of.Interaction(GAUSSIAN),
    "two atoms": two_atoms,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize(("d", "start"), [(1, 1.0), (1, -0.5), (2, -1.0)])
@pytest.mark.parametrize("kind", [torch.float32, F64])
# In float32 a slide may end above the tolerance, and says so.
@pytest.mark.filterwarnings("ignore::otflow.errors.NotConvergedWarning")
def test_the_mass_does_not_jump_to_its_mirror_image(name, d, start, kind):
    F = PROBLEMS[name](d)
    F = of.MMDTo(F.target.to(kind), GAUSSIAN) if name == "two atoms" else F
    mu = of.Particles(torch.full((1, d), start, dtype=kind))
    scheme = of.schemes.FrankWolfe(BOX, candidates=32, descend=20, sliding=True)
    run = of.flow(F, mu, scheme, dt=1.0, steps=5)
    for report in run.info:
        fell = report["energy_before"] - report["energy_after"]
        if report["gap"] > 0.01 * run.info[0]["gap"]:
            # A share of what the gap promises to a small atom.
            assert fell > 0.01 * report["gap"]
    assert run.final.n > 1
    assert run.info[-1]["gap"] < 0.25 * run.info[0]["gap"]
