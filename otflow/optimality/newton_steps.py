r"""Damped Newton steps of a free energy on a grid, in the logarithms of the masses."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from otflow._autodiff import value_gradient_product
from otflow._graphs import value_of
from otflow.errors import Unsupported
from otflow.functionals import Functional
from otflow.numerics.krylov import conjugate_gradients
from otflow.optimality.states import State

__all__ = ["NewtonSteps"]

# Most products with G'' in one step, and the share to which a step is solved.
PRODUCTS = 100
ACCURACY = 1e-3
# Most cells for which G'' becomes a matrix, and how well it must predict slopes.
MOST_CELLS = 1000
PREDICTED = 1e-3


class NewtonSteps:
    r"""The steps :math:`\delta` with :math:`(1 + c)\,\delta + G''[w\,\delta]/T = g`.

    Here g is the way to the proximal law in the logarithm, c the damping, and
    :math:`w\delta` is made of mass zero. With :math:`s = \sqrt w\,\delta` the equation
    is symmetric.

    Conjugate gradients solve it with products. Once they have taken as many products as
    there are cells, G'' is computed as a matrix. The matrix is kept while it predicts
    the changes of G', as for a quadratic G it does for ever.

    Parameters
    ----------
    rest : Functional
        The functional G.
    cells : int
        Number of free cells.
    """

    def __init__(self, rest: Functional, cells: int) -> None:
        self.rest, self.cells = rest, cells
        self.possible, self.count = True, 0
        self._spent = 0
        self._matrix: Tensor | None = None
        self._product: Callable[[Tensor], Tensor] | None = None

    def prepare(self, state: State, limit: int) -> bool:
        """Make products at a state possible, within a number of them, if they are."""
        if self._matrix is not None:
            return True
        if limit < 2:
            return False
        self.count += 2
        masses, measure = state.measure.weights, state.measure
        try:
            _, _, product = value_gradient_product(
                lambda w: value_of(measure.with_free_weights(w), self.rest.value),
                masses,
            )
            product(torch.zeros_like(masses))
        except (RuntimeError, Unsupported):
            # A value that torch cannot differentiate twice: go on without.
            self.possible = False
            return False
        free = measure.is_free

        def on_free(v: Tensor) -> Tensor:
            self.count += 1
            self._spent += 1
            return product(torch.zeros_like(masses).masked_scatter(free, v))[free]

        if self._spent >= self.cells and self.cells <= min(MOST_CELLS, limit - 2):
            unit = torch.eye(self.cells, dtype=masses.dtype, device=masses.device)
            matrix = torch.stack([on_free(v) for v in unit])
            self._matrix, self._spent = 0.5 * (matrix + matrix.T), 0
        self._product = on_free
        return True

    def step(self, state: State, damping: float, limit: int) -> Tensor | None:
        """Return the step at the state prepared for, None if a matrix has none."""
        root, stiff = (0.5 * state.logs).exp(), 1 + damping
        temperature = state.law.temperature
        right = without_mass(root * state.step, root)
        if self._matrix is not None:
            bends = (root[:, None] * self._matrix * root) / temperature
            inner = bends @ root
            bends = bends - inner[:, None] * root - root[:, None] * inner
            bends = bends + (root @ inner) * root[:, None] * root
            bends.diagonal().add_(stiff)
            factor, fault = torch.linalg.cholesky_ex(bends)
            if int(fault):
                return None
            s = torch.cholesky_solve(right[:, None], factor)[:, 0]
            bent = self._matrix @ (root * without_mass(s, root))
            return (state.step - bent / temperature) / stiff
        product = self._product
        assert product is not None

        def bend(s: Tensor) -> Tensor:
            return product(root * without_mass(s, root)) / temperature

        s = conjugate_gradients(
            lambda p, _: stiff * p + without_mass(root * bend(p), root),
            lambda r: r,
            right,
            min(ACCURACY, state.residual),
            min(PRODUCTS, max(1, limit)),
        )
        return (state.step - bend(s)) / stiff

    def moved(self, old: State, new: State) -> None:
        """Forget the matrix if it does not predict the change of the slopes."""
        if self._matrix is None:
            return
        w = 0.5 * (old.logs.exp() + new.logs.exp())
        change = new.law.slopes - old.law.slopes
        wrong = change - self._matrix @ (new.logs.exp() - old.logs.exp())
        # Slopes count up to a constant.
        spread, error = ((w @ (v - w @ v).square()).sqrt() for v in (change, wrong))
        noise = torch.finfo(w.dtype).eps * new.law.sizes.max()
        if float(error) > PREDICTED * float(spread) + 64 * float(noise):
            self._matrix = None


def without_mass(s: Tensor, root: Tensor) -> Tensor:
    """Return the part of s that is orthogonal to the roots of the masses."""
    return s - root * (root @ s)
