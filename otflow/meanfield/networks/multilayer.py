"""Fully connected networks of several hidden layers in the mean-field scaling."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from otflow._graphs import records
from otflow._typing import ArrayLike
from otflow._validation import (
    check_generator,
    check_kind,
    non_negative_int,
    true_or_false,
)
from otflow.meanfield.layers import shown
from otflow.meanfield.losses import Loss
from otflow.meanfield.model import Model
from otflow.meanfield.networks.arguments import (
    Law,
    all_units,
    as_dtype,
    as_law,
    as_units,
    as_weights,
    as_widths,
    check_orders,
    kind_of,
    normal_weights,
)
from otflow.meanfield.networks.dense import Weights, outputs_of, value_and_gradients
from otflow.meanfield.units import Elementwise
from otflow.measures import Measure, Particles, Parts
from otflow.measures.sums import check_draw

__all__ = ["MultiLayer"]


class MultiLayer(Model):
    r"""Network of :math:`L \ge 2` hidden layers, a function of several parts.

    .. math:: h^1_j = \varphi_1(w_j\cdot x + b^1_j),\qquad
        h^{l+1}_k = \varphi_{l+1}\Bigl(\frac1{N_l}\sum_j W^l_{kj}\,h^l_j
        + b^{l+1}_k\Bigr),\qquad
        f(x) = \frac1{N_L}\sum_k a_k\,h^L_k + c .

    This is the scaling of :cite:t:`araujo2019mean`. The parts of its measure are

    - "inner", `Particles`, the rows :math:`(w_j, b^1_j)`, shape (N_1, d + 1);
    - "middle1", ..., `Euclidean`, the matrices :math:`W^l`, shape (N_{l+1}, N_l);
    - "bias2", ..., `Euclidean`, the biases :math:`b^{l+1}`, shape (N_{l+1},);
    - "outer", `Particles`, the rows :math:`a_k`, shape (N_L, m).

    Their metrics are the learning rates of the scaling: a velocity is :math:`-N`
    times the partial derivative in the first and last weights and the biases, and
    :math:`-N_l N_{l+1}` times that in a middle weight. So all weights move at a speed
    of order 1 for every width.

    Parameters
    ----------
    widths : sequence of int
        Numbers :math:`N_1, \dots, N_L` of hidden units, two layers of two units at
        least.
    units : str, callable, or sequence of these
        The activation :math:`\varphi` of all layers, as for `TwoLayer`, or one for each
        layer.
    outputs : int, optional
        Number m of outputs; by default one output (m = 1), and f has shape (n,).
    bias : bool
        Whether units have biases. Without them there are no parts "bias2", ..., and
        the rows of "inner" are :math:`w_j`.
    offset : float or sequence of float, optional
        The constant c, one number per output; it is not trained.

    Attributes
    ----------
    widths : tuple of int
        As above.
    units : tuple of callable
        One activation for each hidden layer.
    outputs, bias, offset
        As above.
    names : tuple of str
        Names of the parts, in their order.

    Raises
    ------
    ValueError
        If a name is unknown, if there are fewer than two widths, or if one is less than
        2; at the evaluation, if parts have other names or shapes.
    TypeError
        If a width is no integer; at the evaluation, if the measure is not made of
        parts, or a part is of another kind.

    See Also
    --------
    otflow.meanfield.TwoLayer : One hidden layer, a function of one measure.
    to_sequential, from_sequential : The network as a torch module.
    align_networks : Two networks, unit by unit.

    Notes
    -----
    Particles of other masses than 1/N turn the mean over their units into an integral.
    A network is no function of the law of its middle weights, nor of its inner ones
    alone: unit j owns row j of "inner" and column j of "middle1". Reorder the units of
    a layer in all parts at once (`permuted`), and f does not change. Reorder or
    resample the rows of one part alone, and f does change. So a risk of the network is
    not `~otflow.Functional.exchangeable`: `JKO` keeps the rows in their places, of all
    parts together and of each part alone, and schemes that copy or add atoms raise
    `Unsupported`.

    For N to infinity, with weights drawn independently, trained networks tend to a
    limit, the law of a path :math:`(\theta_{1,n_1}, \theta_{n_1,n_2}, \dots,
    \theta_{n_L,1})` of weights from the input to the output, see `paths`. Weights of
    different layers that are independent at the start stay so in the limit, but for
    both ends: a weight that leaves the first layer depends on the inner weights of its
    unit, and one that enters the last layer on the outer weight. So the law is

    .. math:: \rho_t = \rho_t^{(0,1)}(\theta_{1,n_1}, \theta_{n_1,n_2})
        \prod_{l=2}^{L-2}\rho_t^{(l)}(\theta_{n_l,n_{l+1}})\;
        \rho_t^{(L-1,L)}(\theta_{n_{L-1},n_L}, \theta_{n_L,1}),\qquad L \ge 3 .

    With middle weights of mean 0 the limit is trivial: arguments of the second layer
    are of the order :math:`N^{-1/2}`, and so are the velocities. Hence `draw` takes
    the mean 1. Nor does a limit of infinite depth exist: signals and velocities grow or
    decay geometrically in L.

    Time of value and velocity O(n) times the number of weights; memory that of the
    weights and of a block of rows, without graphs.

    Examples
    --------
    >>> import torch, otflow as of
    >>> network = of.meanfield.networks.MultiLayer((50, 40), "tanh")
    >>> mu = network.draw(1, torch.Generator().manual_seed(0))
    >>> mu.names
    ('inner', 'middle1', 'bias2', 'outer')
    >>> X = torch.linspace(-2, 2, 20)[:, None]
    >>> risk = of.meanfield.Risk(network, X, X[:, 0].sin())
    >>> run = of.flow(risk, mu, of.ExplicitEuler(), dt=0.3, steps=100, every=100)
    >>> bool(run.records["energy"][-1] < 0.1 * run.records["energy"][0])
    True
    """

    exchangeable = False  # row j of a part belongs to unit j

    def __init__(
        self,
        widths: Sequence[int],
        units: str | Elementwise | Sequence[str | Elementwise],
        *,
        outputs: int | None = None,
        bias: bool = True,
        offset: float | Sequence[float] | ArrayLike | None = None,
    ) -> None:
        super().__init__(outputs, offset)
        self.widths = as_widths(widths)
        self.units = as_units(units, len(self.widths))
        self.bias = true_or_false(bias, "bias")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parts, in their order."""
        depth = len(self.widths)
        middle = [f"middle{layer}" for layer in range(1, depth)]
        biases = [f"bias{layer}" for layer in range(2, depth + 1)] if self.bias else []
        return ("inner", *middle, *biases, "outer")

    def shapes(self, d: int) -> dict[str, tuple[int, ...]]:
        """Return the shape of each part for inputs of dimension d.

        Parameters
        ----------
        d : int
            Dimension of the inputs.

        Returns
        -------
        dict of str to tuple of int
            The shapes, by the names of the parts, in their order.

        Raises
        ------
        ValueError, TypeError
            If d is no positive integer.
        """
        d = non_negative_int(d, "d", minimum=1)
        N = self.widths
        middle = [(after, before) for before, after in pairwise(N)]
        biases = [(after,) for after in N[1:]] if self.bias else []
        inner, outer = (N[0], d + int(self.bias)), (N[-1], self.outputs or 1)
        return dict(zip(self.names, (inner, *middle, *biases, outer), strict=True))

    def draw(
        self,
        d: int,
        generator: torch.Generator,
        *,
        inner: Law = (0.0, 1.0),
        middle: Law = (1.0, 1.0),
        biases: Law = (0.0, 0.0),
        outer: Law = (0.0, 1.0),
        dtype: torch.dtype | None = None,
    ) -> Parts:
        r"""Return a network of independent normal weights.

        Parameters
        ----------
        d : int
            Dimension of the inputs.
        generator : torch.Generator
            Source of randomness; the weights lie on its device.
        inner, middle, biases, outer : tuple of two float
            Mean and standard deviation of the weights of each kind; those of the first
            biases are `inner`, those of the other biases `biases`.
        dtype : torch.dtype, optional
            float32 or float64; the default of torch if it is not given.

        Returns
        -------
        Parts
            One measure for this network.

        Raises
        ------
        ValueError, TypeError
            If a law is no pair of finite numbers, or a deviation is negative.

        Notes
        -----
        Independent weights of a fixed law are what the limit of wide networks starts
        from. With means 0 of the middle weights that limit is trivial, see the class.
        `from_sequential` starts from the weights of a torch module, which grow as
        :math:`\sqrt N` in this scaling.

        Examples
        --------
        >>> import torch, otflow as of
        >>> network = of.meanfield.networks.MultiLayer((5, 3), "relu", bias=False)
        >>> mu = network.draw(2, torch.Generator().manual_seed(0))
        >>> mu["inner"].points.shape, mu["middle1"].values.shape
        (torch.Size([5, 2]), torch.Size([3, 5]))
        """
        check_generator(generator)
        d = non_negative_int(d, "d", minimum=1)
        dtype = as_dtype(dtype)
        laws = {"inner": inner, "middle": middle, "bias": biases, "outer": outer}
        laws = {name: as_law(law, name) for name, law in laws.items()}
        drawn = []
        for name, shape in self.shapes(d).items():
            law = laws[name.rstrip("0123456789")]
            drawn.append(normal_weights(shape, law, generator, dtype))
        return self.measure(drawn)

    def measure(self, weights: Sequence[ArrayLike]) -> Parts:
        """Return a measure of given weights, all units of a layer of equal mass.

        Parameters
        ----------
        weights : sequence of Tensor or ndarray
            One for each of the `names`, of the `shapes` for some d; copied.

        Returns
        -------
        Parts
            A measure of this network.

        Raises
        ------
        ValueError, TypeError
            If their number or a shape is wrong, or a weight is not finite.

        Examples
        --------
        >>> import torch, otflow as of
        >>> network = of.meanfield.networks.MultiLayer((2, 2), "relu", bias=False)
        >>> W1, a = torch.tensor([[1.0], [2.0]]), torch.tensor([[5.0], [7.0]])
        >>> W2 = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
        >>> network(network.measure([W1, W2, a]), torch.ones(1, 1))
        tensor([17.2500])
        >>> (5 * (3 * 1 + 4 * 2) / 2 + 7 * (1 * 2) / 2) / 2
        17.25
        """
        mu = Parts(as_weights(weights, self.names))
        self.check_measure(mu, self.inputs_of(mu))
        return mu

    def inputs_of(self, mu: Measure) -> int:
        """Return the dimension of the inputs that the inner weights of a measure fit.

        At least 1, so that a measure of none raises for its shape.
        """
        if not isinstance(mu, Parts) or "inner" not in mu:
            return 1
        return max(mu["inner"].dim - int(self.bias), 1)

    # The model ------------------------------------------------------------------------

    def check_measure(self, mu: Measure, d: int) -> None:
        how = f"network.draw({d}, generator) makes one"
        check_kind(mu, Parts, "the measure of a MultiLayer", cure=how)
        assert isinstance(mu, Parts)
        if mu.names != self.names:
            msg = (
                f"{self!r} needs the parts {list(self.names)}, in this order, got "
                f"{list(mu.names)}; {how}"
            )
            raise ValueError(msg)
        for name, shape in self.shapes(d).items():
            part = mu[name]
            check_kind(part, kind_of(name), f"the part {name!r}", cure=how)
            if part.coordinates.shape != shape:
                msg = (
                    f"the part {name!r} must have shape {shape} for {d} inputs and the "
                    f"widths {self.widths}, got {tuple(part.coordinates.shape)}"
                    f"{self._cure(mu, d, name, shape)}"
                )
                raise ValueError(msg)

    def _cure(self, mu: Parts, d: int, name: str, shape: tuple[int, ...]) -> str:
        """Return the network that the shapes of parts fit, or how to draw others."""
        shapes = {name: tuple(mu[name].coordinates.shape) for name in mu.names}
        if len(shapes["outer"]) == 2 and all(shapes.values()):
            middle = [shapes[name] for name in self.names if name.startswith("middle")]
            widths = (shapes["inner"][0], *(shape[0] for shape in middle))
            m = shapes["outer"][1]
            outputs = self.outputs if m == (self.outputs or 1) else m
            try:
                fits = MultiLayer(widths, self.units, outputs=outputs, bias=self.bias)
            except ValueError:
                fits = None
            if fits is not None and fits.shapes(d) == shapes:
                more = f", outputs={outputs}" if outputs != self.outputs else ""
                return f"; MultiLayer({widths}, ...{more}) fits all its parts"
        units = ""
        if kind_of(name) is Particles and shapes[name][1:] == shape[1:]:
            units = (
                f": each of its atoms is a unit with weights in other parts, and it "
                f"takes no others; InPart(F, mu, {name!r}).first_variation("
                f"mu[{name!r}]) is that of its own"
            )
        return (
            f"{units}; network.draw({d}, generator) makes a measure of the right shapes"
        )

    def encode(self, X: Tensor) -> Tensor:
        if not self.bias:
            return super().encode(X)
        return torch.cat([X, X.new_ones(len(X), 1)], dim=1)

    def weights(self, mu: Parts) -> Weights:
        """Return the tensors of the parts of a measure, with their graphs.

        Parameters
        ----------
        mu : Parts
            A measure that `check_measure` accepts.

        Returns
        -------
        Weights
            They share the memory of the measure.
        """
        inner, outer = mu["inner"], mu["outer"]
        like = inner.coordinates
        equal = (like.new_full((N,), 1.0 / N) for N in self.widths[1:-1])
        rest = [mu[name].coordinates for name in self.names[1:-1]]
        depth = len(self.widths)
        return Weights(
            inner=like,
            middle=tuple(rest[: depth - 1]),
            biases=tuple(rest[depth - 1 :]),
            outer=outer.coordinates,
            masses=(inner.weights, *equal, outer.weights),
        )

    def respond(self, inputs: Tensor, mu: Measure) -> Tensor:
        assert isinstance(mu, Parts)
        scalar = self.outputs is None
        f = outputs_of(self.units, self.weights(mu), inputs, scalar=scalar)
        return self.add_offset(f)

    def value_and_velocity(
        self, loss: Loss, inputs: Tensor, y: Tensor, mu: Measure
    ) -> tuple[Tensor, Tensor] | None:
        units = self.units
        assert isinstance(mu, Parts)
        # The pass needs slopes of all activations, and has no graph.
        if not all_units(units) or records(*mu.tensors()):
            return None
        with torch.no_grad():
            value, gradients = value_and_gradients(
                units,
                loss,
                self.add_offset,
                self.weights(mu),
                inputs,
                y,
                scalar=self.outputs is None,
            )
            rest = (*gradients.middle, *gradients.biases)
            tangents = [
                mu[name].tangent_of(partials, _no_value)
                for name, partials in zip(self.names[1:-1], rest, strict=True)
            ]
            joined = mu.joined([gradients.inner, *tangents, gradients.outer])
        return value, joined.neg_()

    # Units ----------------------------------------------------------------------------

    def permuted(self, mu: Parts, orders: Sequence[Tensor]) -> Parts:
        r"""Return the same network with the units of each layer in another order.

        Parameters
        ----------
        mu : Parts
            A measure of this network.
        orders : sequence of Tensor, shapes (N_l,), int64
            One permutation for each hidden layer: unit k of the answer is unit
            ``orders[l][k]`` of `mu`.

        Returns
        -------
        Parts
            A measure of the same outputs, up to round-off.

        Raises
        ------
        ValueError, TypeError
            If there are not as many permutations as layers, or one is none.

        Examples
        --------
        >>> import torch, otflow as of
        >>> network = of.meanfield.networks.MultiLayer((4, 3), "tanh")
        >>> mu = network.draw(2, torch.Generator().manual_seed(0))
        >>> nu = network.permuted(
        ...     mu, [torch.arange(4).flip(0), torch.tensor([2, 0, 1])]
        ... )
        >>> x = torch.ones(1, 2)
        >>> torch.allclose(network(mu, x), network(nu, x))
        True
        """
        self.check_measure(mu, self.inputs_of(mu))
        check_orders(orders, self.widths, mu.device)
        depth, parts = len(self.widths), dict[str, Measure]()
        for name, order in (("inner", orders[0]), ("outer", orders[-1])):
            law = mu[name]
            assert isinstance(law, Particles)
            parts[name] = law.with_free_atoms(
                law.points[order], law.weights[order], is_uniform=law.is_uniform
            )
        for layer in range(1, depth):
            W, after = mu[f"middle{layer}"], orders[layer]
            new = W.coordinates[after][:, orders[layer - 1]]
            parts[f"middle{layer}"] = W.with_coordinates(new)
            if self.bias:
                b = mu[f"bias{layer + 1}"]
                parts[f"bias{layer + 1}"] = b.with_coordinates(b.coordinates[after])
        return mu.replace(**parts)

    def paths(self, mu: Parts, n: int, generator: torch.Generator) -> Particles:
        r"""Draw paths of weights from the input to the output: the survey's particles.

        A path passes a unit :math:`n_l` of each layer, drawn by its mass, and is the
        list :math:`(\theta_{1,n_1}, \theta_{n_1,n_2}, \dots, \theta_{n_L,1})`
        :cite:p:`yang2020meanfield`.

        Parameters
        ----------
        mu : Parts
            A measure of this network.
        n : int
            Number of paths.
        generator : torch.Generator
            Source of randomness.

        Returns
        -------
        Particles
            n particles of equal mass and dimension q + (L - 1) + m: a row of "inner",
            the middle weights in turn, each followed by the bias of the unit that it
            enters if there are biases, and a row of "outer". They are differentiable in
            the weights of the network.

        Raises
        ------
        ValueError, TypeError
            If the measure is none of this network.

        Notes
        -----
        Paths of one network that meet in a unit are dependent. For N to infinity n
        paths are independent draws of the law in the notes of the class.

        Examples
        --------
        >>> import torch, otflow as of
        >>> network = of.meanfield.networks.MultiLayer((30, 20, 10), "tanh", bias=False)
        >>> generator = torch.Generator().manual_seed(0)
        >>> network.paths(network.draw(2, generator), 7, generator)
        Particles(n=7, dim=5, dtype=float32, device=cpu)
        """
        self.check_measure(mu, self.inputs_of(mu))
        weights = self.weights(mu)
        for masses in weights.masses:
            n = check_draw(n, generator, masses)
        units = [
            torch.multinomial(m, n, replacement=True, generator=generator)
            for m in weights.masses
        ]
        columns = [weights.inner[units[0]]]
        for layer, W in enumerate(weights.middle):
            after = units[layer + 1]
            columns.append(W[after, units[layer]][:, None])
            if weights.biases:
                columns.append(weights.biases[layer][after][:, None])
        columns.append(weights.outer[units[-1]])
        return Particles(torch.cat(columns, dim=1))

    def __repr__(self) -> str:
        one = len(set(map(id, self.units))) == 1
        units = (
            shown(self.units[0])
            if one
            else f"({', '.join(shown(unit) for unit in self.units)})"
        )
        named = {"outputs": self.outputs, "offset": self.offset}
        options = [
            f", {key}={value!r}" for key, value in named.items() if value is not None
        ]
        bias = "" if self.bias else ", bias=False"
        return f"MultiLayer({self.widths}, {units}{bias}{''.join(options)})"


def _no_value(_: Measure) -> Tensor:
    """Stand for the functional, which the tangent of a Euclidean part does not need."""
    msg = "a Euclidean part needs no functional"
    raise AssertionError(msg)
