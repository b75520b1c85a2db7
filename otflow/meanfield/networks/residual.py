"""Residual networks as flows: particles are neurons with a layer time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from otflow._arrays import as_float_tensor, as_points
from otflow._graphs import records
from otflow._pairs import tiles
from otflow._typing import ArrayLike
from otflow._validation import (
    check_generator,
    check_kind,
    check_like,
    check_option,
    non_negative_int,
    true_or_false,
)
from otflow.meanfield.layers import mobilities, shown
from otflow.meanfield.losses import Loss
from otflow.meanfield.model import Model, finite
from otflow.meanfield.network import block_rows
from otflow.meanfield.networks.arguments import (
    Law,
    as_dtype,
    as_law,
    as_matrix,
    check_readout,
    normal_weights,
)
from otflow.meanfield.networks.residual_layers import TIMES, check_times, share_out
from otflow.meanfield.networks.residual_pass import Blocks, Ends, value_and_gradients
from otflow.meanfield.networks.residual_steps import SOLVERS
from otflow.meanfield.units import Elementwise, Unit, as_activation
from otflow.measures import Measure, Particles

__all__ = ["Residual"]


class Residual(Model):
    r"""Residual network, outputs :math:`f(x) = R\,z(1) + c` of a flow of states.

    A particle :math:`(t, \theta)` is a neuron :math:`\theta = (u, w, b)` with a layer
    time :math:`t \in [0, 1]`. With :math:`\rho_t` the part of the measure at time t,

    .. math:: \dot z(t) = \int \sigma(z(t);\theta)\,d\rho_t(\theta), \quad z(0) = A x,
        \qquad \sigma(z;\theta) = u\,\varphi(w\cdot z + b) .

    If the layer times are uniform, :math:`\rho_t` is a probability, as in equation (12)
    of :cite:t:`yang2020meanfield`. L layers cut [0, 1] into cells, and :math:`\rho_t`
    is constant in each. So a step of Euler's method is a layer of a residual network,

    .. math:: z_{l+1} = z_l + \sum_i m_{il}\,\sigma(z_l;\theta_i), \qquad
        m_{il} = w_i\,s_l(t_i), \qquad \sum_l s_l(t) = 1 .

    L layers of M equal neurons are N = L M particles of mass 1/N, at the times
    `layer_times`. The share :math:`s_l(t)` of a particle in a layer is 1 in the cell of
    its time, and the value does not depend on t within a cell ("fixed"); or it falls
    linearly from 1 at the time of the layer to 0 at that of the next one, and the value
    is continuous in t ("free").

    The first variation and the velocity follow from the adjoint p, the slope of the
    loss in the state :cite:p:`lu2020mean`,

    .. math:: F'[\mu](t, \theta) = \frac1n\sum_k p_k(t)\cdot\sigma(z_k(t);\theta),
        \qquad \dot p = -\nabla_z\Bigl(p\cdot\int\sigma(z;\theta)\,d\rho_t\Bigr),
        \quad p_k(1) = R^\top\partial_f\ell(f(x_k), y_k).

    Parameters
    ----------
    activation : str or callable
        The function :math:`\varphi`: "relu", "tanh", "erf", "sigmoid"; an elementwise
        function of torch tensors; or a `Unit` of your own.
    layers : int
        Number L of layers, the steps of the solver.
    outputs : int, optional
        Number m of outputs; by default one output (m = 1), and f has shape (n,).
    bias : bool
        Whether a neuron has a bias b.
    times : str
        "fixed": the first coordinate, in [0, 1], chooses a layer, and its velocity is
        0. "free": layer times are trained. The first coordinate may be any number then,
        and the layer time is its distance to the nearest even number: a flow reflects
        layer times at 0 and 1.
    solver : str
        "euler" or "rk4", the classical Runge-Kutta method.
    embedding : Tensor or ndarray, shape (D, d), optional
        The matrix A, of the dtype of the measures; it is not trained. By default the
        state is the input with m zeros appended, D = d + m.
    readout : Tensor or ndarray, shape (m, D), or (D,) for one output, optional
        The matrix R, of the dtype of the measures; it is not trained. By default the
        outputs are the last m coordinates of the state.
    offset : float or sequence of float, optional
        The constant c, one number per output; it is not trained.

    Attributes
    ----------
    activation, layers, outputs, bias, times, solver, embedding, readout, offset
        As above.

    Raises
    ------
    ValueError, TypeError
        If a name is unknown or a matrix has the wrong shape; at the evaluation, if the
        dimension of the particles is not 1 + 2 D + 1, or 1 + 2 D without biases, if a
        layer time is not in [0, 1], or if a matrix has another dtype than the measure.

    See Also
    --------
    otflow.meanfield.TwoLayer : One hidden layer; `networks.flatten` leads there.

    Notes
    -----
    Any particles with layer times in [0, 1] are a start, of random times or of the
    same number in each layer, as `draw` makes them.

    The outputs are not linear in the measure, and a risk is not convex along mixtures.

    With a built-in unit value and velocity of a risk take one pass over blocks of data,
    of time O(n N D), twice that with free times. Memory: O(N D), and 18 MB on a CPU for
    what a block of rows keeps of all layers. If 64 rows need more than that, some of
    the layers are computed again on the way back, and O(sqrt L) of them are kept. Other
    activations use automatic differentiation, of memory O(n (L D + N)).

    Examples
    --------
    >>> import torch, otflow as of
    >>> network = of.meanfield.networks.Residual("relu", layers=2, bias=False)
    >>> mu = network.from_blocks(  # z = (x, 0); layer 1 adds x to it, layer 2 adds it
    ...     torch.tensor([[[2.0, 2.0]], [[0.0, 2.0]]]),  # u, mass 1/2 each
    ...     torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]]),  # w
    ... )
    >>> network(mu, torch.tensor([[3.0], [-3.0]]))  # relu(x) + relu(x + relu(x))
    tensor([9., 0.])
    >>> risk = of.meanfield.Risk(network, torch.tensor([[3.0]]), torch.tensor([8.0]))
    >>> risk.first_variation(mu)  # u.p relu(w.z), p = (1, 1) and then (0, 1)
    tensor([12., 12.])
    """

    def __init__(
        self,
        activation: str | Elementwise,
        *,
        layers: int = 16,
        outputs: int | None = None,
        bias: bool = True,
        times: str = "fixed",
        solver: str = "euler",
        embedding: ArrayLike | None = None,
        readout: ArrayLike | None = None,
        offset: float | Sequence[float] | ArrayLike | None = None,
    ) -> None:
        super().__init__(outputs, offset)
        self.activation = as_activation(activation)
        self.layers = non_negative_int(layers, "layers", minimum=1)
        self.bias = true_or_false(bias, "bias")
        self.times = check_option(times, "times", TIMES)
        self.solver = check_option(solver, "solver", SOLVERS)
        self.embedding = (
            None if embedding is None else as_matrix(embedding, "embedding")
        )
        self.readout = None
        if readout is not None:
            rows = as_float_tensor(readout, "readout")
            self.readout = as_matrix(rows[None] if rows.ndim == 1 else rows, "readout")
            if len(self.readout) != (outputs or 1):
                msg = (
                    f"readout must have one row for each output, {outputs or 1}, got "
                    f"{len(self.readout)}; give outputs={len(self.readout)}"
                )
                raise ValueError(msg)
        if self.readout is not None and self.embedding is not None:
            check_readout(self.readout, outputs, len(self.embedding))

    # Shapes ---------------------------------------------------------------------------

    def width(self, inputs: int) -> int:
        """Return the dimension D of the states.

        Parameters
        ----------
        inputs : int
            Number d of inputs.

        Returns
        -------
        int
            The rows of the embedding, by default d + m.

        Raises
        ------
        ValueError
            If the embedding or the read-out has another size.
        """
        d = non_negative_int(inputs, "inputs", minimum=1)
        if self.embedding is None:
            width = d + (self.outputs or 1)
        else:
            width, columns = self.embedding.shape
            if columns != d:
                msg = (
                    f"the embedding takes inputs of dimension {columns}, got {d}; give "
                    f"a matrix of shape (D, {d})"
                )
                raise ValueError(msg)
        check_readout(self.readout, self.outputs, width)
        return width

    def dim(self, inputs: int) -> int:
        """Return the dimension p = 1 + 2 D + 1 of a particle, 1 less without biases.

        Parameters
        ----------
        inputs : int
            Number d of inputs.

        Returns
        -------
        int
            The number p.

        Examples
        --------
        >>> import otflow as of
        >>> of.meanfield.networks.Residual("tanh").dim(2)
        8
        """
        return 1 + 2 * self.width(inputs) + int(self.bias)

    def layer_times(self, like: Tensor | None = None) -> Tensor:
        """Return the times (l + 1/2) / L of the layers, at which each acts alone.

        Parameters
        ----------
        like : Tensor, optional
            A tensor of the dtype and device that are wanted; by default those of
            ``torch.empty(0)``.

        Returns
        -------
        Tensor, shape (L,)
            The centres of the cells.
        """
        like = torch.empty(0) if like is None else as_float_tensor(like, "like")
        cells = torch.arange(self.layers, dtype=like.dtype, device=like.device)
        return (cells + 0.5) / self.layers

    def split(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the time coordinates, the outer and the inner weights of particles.

        Parameters
        ----------
        theta : Tensor, shape (N, p)
            Particles.

        Returns
        -------
        coordinates : Tensor, shape (N,)
            Time coordinates t, a view.
        outer : Tensor, shape (N, D)
            The weights u, a view.
        inner : Tensor, shape (N, D) or (N, D + 1)
            The weights (w, b), a view.
        """
        width = (theta.shape[1] - 1 - int(self.bias)) // 2
        return theta[:, 0], theta[:, 1 : 1 + width], theta[:, 1 + width :]

    def from_blocks(self, outer: ArrayLike, inner: ArrayLike) -> Particles:
        r"""Return the measure of L layers of M neurons, layer by layer.

        .. math:: z_{l+1} = z_l
            + \frac1{LM}\sum_j u_{lj}\,\varphi(w_{lj}\cdot z_l + b_{lj})

        Parameters
        ----------
        outer : Tensor or ndarray, shape (L, M, D)
            Weights u of the neurons, layer by layer.
        inner : Tensor or ndarray, shape (L, M, D) or (L, M, D + 1)
            Weights w, or (w, b) with biases.

        Returns
        -------
        Particles
            L M equal atoms, layer by layer.

        Raises
        ------
        ValueError
            If the shapes are not these.
        """
        u, w = as_float_tensor(outer, "outer"), as_float_tensor(inner, "inner")
        check_like(w, u, "inner", "outer")
        fits = u.ndim == 3 and len(u) == self.layers
        if not fits or w.shape != (*u.shape[:2], u.shape[2] + int(self.bias)):
            shape = f"({self.layers}, M, D{' + 1' if self.bias else ''})"
            msg = (
                f"outer must have the shape ({self.layers}, M, D) and inner {shape}, "
                f"got {tuple(u.shape)} and {tuple(w.shape)}"
            )
            raise ValueError(msg)
        t = self.layer_times(u)[:, None, None].expand(-1, u.shape[1], 1)
        return Particles(torch.cat([t, u, w], dim=2).flatten(0, 1))

    def draw(
        self,
        d: int,
        generator: torch.Generator,
        *,
        neurons: int,
        outer: Law = (0.0, 1.0),
        inner: Law = (0.0, 1.0),
        dtype: torch.dtype | None = None,
    ) -> Particles:
        r"""Return layers of equally many neurons of independent normal weights.

        Parameters
        ----------
        d : int
            Dimension of the inputs.
        generator : torch.Generator
            Source of randomness; the particles lie on its device.
        neurons : int
            Number M of neurons of each layer.
        outer, inner : tuple of two float
            Mean and standard deviation of the weights u, and of the weights w and the
            bias b.
        dtype : torch.dtype, optional
            float32 or float64; the default of torch if it is not given.

        Returns
        -------
        Particles
            L M equal atoms, layer by layer, at the `layer_times`.

        Raises
        ------
        ValueError, TypeError
            If a law is no pair of finite numbers, or a deviation is negative.

        Notes
        -----
        With mean 0 of the weights u the field of a layer is 0 but for a deviation of
        order :math:`M^{-1/2}`. So wide networks start close to the identity.

        Examples
        --------
        >>> import torch, otflow as of
        >>> network = of.meanfield.networks.Residual("tanh", layers=5)
        >>> mu = network.draw(2, torch.Generator().manual_seed(0), neurons=4)
        >>> mu.n, mu.dim
        (20, 8)
        """
        check_generator(generator)
        dtype, width = as_dtype(dtype), self.width(d)
        shape = self.layers, non_negative_int(neurons, "neurons", minimum=1)
        laws = as_law(outer, "outer"), as_law(inner, "inner")
        blocks = (
            normal_weights((*shape, size), law, generator, dtype)
            for size, law in zip((width, width + int(self.bias)), laws, strict=True)
        )
        return self.from_blocks(*blocks)

    def mobility(
        self, inputs: int, *, time: float = 1.0, outer: float = 1.0, inner: float = 1.0
    ) -> tuple[float, ...]:
        """Return the mobility of each coordinate of a particle.

        Parameters
        ----------
        inputs : int
            Number d of inputs.
        time : float
            Mobility of the time coordinate. With 0 it is fixed, also under noise.
        outer : float
            Mobility of the weights u.
        inner : float
            Mobility of the weights w and the bias b.

        Returns
        -------
        tuple of float
            p numbers, for `otflow.schemes.Mobility`.

        Raises
        ------
        ValueError
            If a mobility is negative or not finite.

        Examples
        --------
        >>> import otflow as of
        >>> of.meanfield.networks.Residual("tanh").mobility(1, time=0.0)
        (0.0, 1.0, 1.0, 1.0, 1.0, 1.0)
        """
        width = self.width(inputs)
        return mobilities(
            ("time", time, 1),
            ("outer", outer, width),
            ("inner", inner, width + int(self.bias)),
        )

    # The model ------------------------------------------------------------------------

    def check_measure(self, mu: Measure, d: int) -> None:
        self._check_particles(mu.points, d)

    def respond(self, inputs: Tensor, mu: Measure) -> Tensor:
        blocks = self._blocks(mu.points, mu.weights)
        ends = self._ends()
        size = block_rows(blocks.layers.most, inputs)
        outputs = [
            ends.read_out(blocks.run(ends.embed(inputs[rows])))
            for rows in tiles(len(inputs), size)
        ]
        return torch.cat(outputs)

    def value_and_derivatives(
        self, loss: Loss, inputs: Tensor, y: Tensor, mu: Measure
    ) -> tuple[Tensor, Tensor, Tensor] | None:
        if not self._has_pass(mu):
            return None
        with torch.no_grad():
            blocks = self._blocks(mu.points, mu.weights)
            value, outer, inner = value_and_gradients(
                blocks, self._ends(), loss, inputs, y
            )
            layers, velocity = blocks.layers, torch.zeros_like(mu.points)
            times, of_outer, of_inner = self.split(velocity)  # views
            # An atom is linear in its outer weights, so that this is F' but for shares.
            change = (blocks.outer * outer).sum(1)
            variation = velocity.new_zeros(len(velocity))
            variation.index_add_(0, layers.atoms, change * layers.shares)
            times.index_add_(0, layers.atoms, change * layers.slopes, alpha=-1)
            shares = layers.shares[:, None]
            for view, slopes in ((of_outer, outer), (of_inner, inner)):
                each = slopes[:, : view.shape[1]] * shares
                view.index_add_(0, layers.atoms, each, alpha=-1)
        return value, velocity, variation

    def value_and_first_variation(
        self, loss: Loss, inputs: Tensor, y: Tensor, mu: Measure, x: Tensor | None
    ) -> tuple[Tensor, Tensor] | None:
        if not self._has_pass(mu) or (x is not None and records(x)):
            return None
        with torch.no_grad():
            points, weights = mu.points, mu.weights
            if x is not None:
                # Probes are atoms without mass, which change no state.
                self._check_particles(x, inputs.shape[1])
                points = torch.cat([points, x])
                weights = torch.cat([weights, weights.new_zeros(len(x))])
            blocks = self._blocks(points, weights)
            value, outer, _ = value_and_gradients(
                blocks, self._ends(), loss, inputs, y, inner=False
            )
            entries = (blocks.outer * outer).sum(1) * blocks.layers.shares
            variation = points.new_zeros(len(points))
            variation.index_add_(0, blocks.layers.atoms, entries)
        return value, variation if x is None else variation[mu.points.shape[0] :]

    def states(self, mu: Measure, X: ArrayLike) -> Tensor:
        """Return the states z before each layer, and the last ones.

        Parameters
        ----------
        mu : Measure
            Particles, points (N, p).
        X : Tensor or ndarray, shape (n, d)
            Inputs, of the dtype of `mu`.

        Returns
        -------
        Tensor, shape (L + 1, n, D)
            Differentiable in the measure and in X. A layer without particles leaves
            the states as they are.

        Raises
        ------
        ValueError, TypeError
            If the inputs or the measure are wrong for the network.
        NonFinite
            If a state is infinite or NaN.
        """
        check_kind(mu, Measure, "mu")
        X = as_points(X, "X")
        check_like(X, mu, "X", "the measure")
        self.check_measure(mu, X.shape[1])
        blocks = self._blocks(mu.points, mu.weights)
        z = self._ends().embed(X)
        states = [z]
        for cell in blocks.layers.cells:
            z = blocks.advance(cell, z)
            states.append(z)
        return finite(torch.stack(states)[..., :-1], self, "states")

    # Helpers --------------------------------------------------------------------------

    def _has_pass(self, mu: Measure) -> bool:
        """Return whether there are atoms, a slope of the unit, and no graph."""
        return (
            isinstance(mu, Particles)
            and isinstance(self.activation, Unit)
            and not records(mu.points, mu.weights)
        )

    def _blocks(self, theta: Tensor, weights: Tensor) -> Blocks:
        """Return the weights of the layers, with the graph of the measure."""
        t, u, w = self.split(theta)
        layers = share_out(t, self.layers, self.times)
        outer, inner = u[layers.atoms], w[layers.atoms]
        outer = torch.cat([outer, outer.new_zeros(len(outer), 1)], 1)
        if not self.bias:
            inner = torch.cat([inner, inner.new_zeros(len(inner), 1)], 1)
        masses = weights[layers.atoms] * layers.shares
        return Blocks(
            self.activation, SOLVERS[self.solver], layers, outer, inner, masses
        )

    def _ends(self, *, absolute: bool = False) -> Ends:
        """Return the maps from inputs to states and to outputs."""
        A, R = (
            None if M is None else M.abs() if absolute else M
            for M in (self.embedding, self.readout)
        )
        offset = None if absolute else self.add_offset
        return Ends(A, R, self.outputs, offset)

    def _check_particles(self, points: Tensor, d: int) -> None:
        for name in ("embedding", "readout"):
            if (M := getattr(self, name)) is not None:
                check_like(points, M, "the measure", f"the {name}")
        width, expected = self.width(d), self.dim(d)
        if points.shape[1] != expected:
            name = "(t, u, w, b)" if self.bias else "(t, u, w)"
            sizes = "1 + 2 D + 1" if self.bias else "1 + 2 D"
            msg = (
                f"a particle {name} has {sizes} = {expected} numbers, for states of "
                f"dimension D = {width} and inputs of dimension d = {d}; the particles "
                f"have dimension {points.shape[1]}"
            )
            raise ValueError(msg)
        if self.times == "fixed":
            check_times(points[:, 0])

    def __repr__(self) -> str:
        bias = "" if self.bias else ", bias=False"
        named = {"outputs": self.outputs, "offset": self.offset}
        options = "".join(f", {k}={v!r}" for k, v in named.items() if v is not None)
        matrices = {"embedding": self.embedding, "readout": self.readout}
        for name, M in matrices.items():
            options += "" if M is None else f", {name} {' x '.join(map(str, M.shape))}"
        chosen = "" if self.times == "fixed" else f", times={self.times!r}"
        chosen += "" if self.solver == "euler" else f", solver={self.solver!r}"
        return (
            f"Residual({shown(self.activation)}, layers={self.layers}{bias}{options}"
            f"{chosen})"
        )
