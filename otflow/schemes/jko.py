"""The JKO scheme: implicit Euler in Wasserstein space, each step certified."""

from __future__ import annotations

from typing import Any

import torch

from otflow._validation import check_kind
from otflow.functionals import Functional
from otflow.measures import Measure
from otflow.proximal import ProximalSolver, default_solver
from otflow.schemes.base import Scheme, Step

__all__ = ["JKO"]


class JKO(Scheme):
    r"""Minimising movements: implicit Euler in Wasserstein space.

    .. math:: \mu^{k+1} = \operatorname{argmin}_\nu F(\nu)
        + \frac{W_2^2(\mu^k, \nu)}{2\,dt}

    The scheme of :cite:t:`jordan1998variational` is of first order in dt, and every
    step dissipates, :math:`F(\mu^{k+1}) + W_2^2/(2\,dt) \le F(\mu^k)`,
    whatever dt. If F is :math:`\lambda`-convex then :math:`W_2(\mu^k, \mu^*) \le
    (1 + \lambda\,dt)^{-k}\, W_2(\mu^0, \mu^*)`.

    Parameters
    ----------
    solver : ProximalSolver, optional
        Solves for the step; the representation's default if not given. On particles
        that is `proximal.ParticleProximal`, whose certificate is the step's `info`.

    Attributes
    ----------
    solver
        As above.

    Notes
    -----
    ``info`` is the solver's certificate (energies at both ends, W2, residual,
    iterations, bound, guarantee, certified). A solve that did not converge has
    ``info["converged"]`` False and is not certified; its energy has not increased.

    Examples
    --------
    >>> import torch, otflow as of
    >>> F = of.Potential(lambda x: 0.5 * x.square().sum(-1), modulus=1.0)
    >>> mu = of.Particles(torch.tensor([[8.0], [4.0]], dtype=torch.float64))
    >>> run = of.flow(F, mu, of.JKO(), dt=1.0, steps=2)
    >>> run.final.points
    tensor([[2.],
            [1.]], dtype=torch.float64)
    >>> all(info["certified"] for info in run.info)
    True
    """

    def __init__(self, solver: ProximalSolver[Any] | None = None) -> None:
        if solver is not None:
            check_kind(solver, ProximalSolver, "solver")
        self.solver = solver

    def step(
        self,
        F: Functional,
        mu: Measure,
        dt: float,
        state: Any,
        generator: torch.Generator,
    ) -> Step:
        """Solve for the proximal step, warm-started by the one before."""
        solver = self.solver or default_solver(mu, F)
        result = solver.solve(F, mu, dt, warm=state)
        energy = torch.as_tensor(
            result.certificate["energy_before"], dtype=mu.dtype, device=mu.device
        )
        info = {
            "energy": energy,
            "iterations": result.iterations,
            **result.certificate,
        }
        return Step(result.measure, result.warm, info)
