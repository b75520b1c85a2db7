"""The JKO step on the line by a barrier method of NumPy, slow and independent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.linalg import LinAlgError, solveh_banded

__all__ = ["LineProblem"]

Function = Callable[[np.ndarray], np.ndarray]
# Weights of the barrier in units of the objective, from that of a first guess to one
# that does not matter.
BARRIERS = np.logspace(-1, -13, 13)


@dataclass(frozen=True)
class LineProblem:
    r"""Minimise the objective of a step over quantiles q, W2 lumped as in otflow.

    .. math:: \sum_i\ell_i\Big(V(q_i) + \frac{(q_i - p_i)^2}{2\,dt}\Big)
        + \sum_i \kappa\,w_i\,e(w_i/g_i) + \frac c2\operatorname{Var}_\ell(q),
        \qquad g_i = q_{i+1} - q_i \ge w_i/r,\quad a \le q \le b,

    e(r) = log r for m = 1, else r^(m-1)/(m-1). `V`, `slope`, `curvature` are entrywise.
    The objective must be convex where the iteration goes.
    """

    p: np.ndarray
    w: np.ndarray
    dt: float
    V: Function
    slope: Function
    curvature: Function
    strength: float = 0.0
    power: float = 1.0
    attraction: float = 0.0
    most: float = np.inf
    lower: float = -np.inf
    upper: float = np.inf

    @property
    def lumped(self) -> np.ndarray:
        """Masses that the quantiles answer for."""
        return 0.5 * (np.r_[self.w, 0.0] + np.r_[0.0, self.w])

    def energy(self, q: np.ndarray) -> float:
        """Return F of quantiles q."""
        mean = self.lumped @ q
        spread = self.lumped @ (q - mean) ** 2
        total = float(self.lumped @ self.V(q)) + 0.5 * self.attraction * float(spread)
        return total + float(self._internal(np.diff(q))[0].sum())

    def norm(self, u: np.ndarray) -> float:
        """Return the root of sum l u^2."""
        return float(np.sqrt(self.lumped @ u**2))

    def solve(self) -> np.ndarray:
        """Return the minimiser; ArithmeticError if Newton's method does not settle."""
        q = self._inside()
        bounded = np.isfinite([self.most, self.lower, self.upper]).any()
        for barrier in BARRIERS if bounded else [0.0]:
            # The first guess may lie far off, where a quartic is a million times what
            # it is at the minimum: the unit is that of the last point.
            q = self._newton(q, barrier * self._size(q))
        return q

    # Parts ----------------------------------------------------------------------------

    def _internal(self, g: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        w, k, m = self.w, self.strength, self.power
        if not k:
            zero = np.zeros_like(g)
            return zero, zero, zero
        if m == 1:
            return k * w * np.log(w / g), -k * w / g, k * w / g**2
        r = w / g
        return k * w * r ** (m - 1) / (m - 1), -k * r**m, k * m * r**m / g

    def _slacks(self, q: np.ndarray) -> np.ndarray:
        least = self.w / self.most
        return np.r_[q[0] - self.lower, np.diff(q) - least, self.upper - q[-1]]

    def _inside(self) -> np.ndarray:
        """Return a point strictly between all bounds."""
        p = self.p
        width = p[-1] - p[0]
        low = self.lower if np.isfinite(self.lower) else p[0] - width
        high = self.upper if np.isfinite(self.upper) else p[-1] + width
        room = 1.0 if np.isinf(self.most) else 1 / self.most
        spare = (high - low) - (room if np.isfinite(self.most) else 0.0)
        low, high = low + 0.01 * spare, high - 0.01 * spare
        even = low + (high - low) * np.r_[0.0, np.cumsum(self.w)] / self.w.sum()
        if np.isinf([self.most, self.upper]).all() and np.isinf(self.lower):
            return p.copy()
        return 0.5 * p + 0.5 * even

    def _size(self, q: np.ndarray) -> float:
        move = self.lumped @ (q - self.p) ** 2 / self.dt
        return float(move + abs(self.lumped @ self.V(q)) + self.strength + 1e-3)

    def _objective(self, q: np.ndarray, barrier: float) -> float:
        g = np.diff(q)
        if not (g > 0).all():
            return np.inf
        total = self.energy(q) + self.lumped @ (q - self.p) ** 2 / (2 * self.dt)
        if barrier:
            s = self._slacks(q)
            if not (s > 0).all():
                return np.inf
            total -= barrier * np.log(s[np.isfinite(s)]).sum()
        return float(total)

    def _newton(self, q: np.ndarray, barrier: float) -> np.ndarray:
        lumped = self.lumped
        value = self._objective(q, barrier)
        for _ in range(200):
            g = np.diff(q)
            _, first, second = self._internal(g)
            gradient = lumped * (self.slope(q) + (q - self.p) / self.dt)
            gradient += self.attraction * lumped * (q - lumped @ q)
            diagonal = lumped * (self.curvature(q) + 1 / self.dt + self.attraction)
            if barrier:
                s = self._slacks(q)
                force = np.where(np.isfinite(s), barrier / s, 0.0)
                first, second = first - force[1:-1], second + force[1:-1] / s[1:-1]
                gradient[0] -= force[0]
                gradient[-1] += force[-1]
                diagonal[0] += force[0] / s[0] if force[0] else 0.0
                diagonal[-1] += force[-1] / s[-1] if force[-1] else 0.0
            gradient += np.r_[0.0, first] - np.r_[first, 0.0]
            diagonal = diagonal + np.r_[0.0, second] + np.r_[second, 0.0]
            step = -self._solve_banded(diagonal, second, gradient)
            decrement = -float(gradient @ step)
            noise = 1e-15 * (abs(value) + 1e-300)
            if decrement <= max(noise, 1e-26 * self._size(q)):
                return q + step if self._objective(q + step, barrier) < np.inf else q
            t = 1.0
            while t > 1e-14:
                trial = self._objective(q + t * step, barrier)
                if trial <= value - 1e-4 * t * decrement + noise:
                    break
                t *= 0.5
            else:
                if decrement < 1e-10 * self._size(q):
                    return q
                break
            q, value = q + t * step, trial
        msg = "the reference did not settle"
        raise ArithmeticError(msg)

    def _solve_banded(
        self, diagonal: np.ndarray, second: np.ndarray, rhs: np.ndarray
    ) -> np.ndarray:
        band = np.vstack([np.r_[0.0, -second], diagonal])
        try:
            x = solveh_banded(band, np.c_[rhs, self.lumped])
        except LinAlgError as error:
            msg = "the reference met a Hessian that is not positive"
            raise ArithmeticError(msg) from error
        if not self.attraction:
            return x[:, 0]
        # The variance takes a rank of one away.
        u = self.lumped
        factor = self.attraction / (1 - self.attraction * float(u @ x[:, 1]))
        return x[:, 0] + factor * float(u @ x[:, 0]) * x[:, 1]
