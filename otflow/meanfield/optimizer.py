"""A torch optimiser whose steps are those of the flow of the neurons."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias, overload

import torch
from torch import Tensor, nn

from otflow._typing import Seed
from otflow._validation import (
    check_kind,
    check_like,
    positive,
    seed_and_stream,
    true_or_false,
)
from otflow.errors import Diverged, Unsupported
from otflow.meanfield.neurons import (
    Group,
    check_group,
    check_once,
    coordinates,
    groups_of,
    placed,
)
from otflow.measures import Particles

__all__ = ["FlowOptimizer"]

# A parameter with its group, and its new value or its rows.
Moves: TypeAlias = list[tuple[Group, Tensor, Tensor]]


class FlowOptimizer(torch.optim.Optimizer):
    r"""Move the hidden units of a torch module as particles of the flow of its loss.

    The N hidden units of a two-layer module are the particles
    :math:`\theta_i = (a_i, w_i, b_i)`, each of mass 1/N, and the loss L of the module
    is a functional of their measure. One step is

    .. math:: \theta_i \leftarrow \theta_i - dt\,m\,N\,\frac{\partial L}
        {\partial\theta_i} + \sqrt{2\tau m\,dt}\;\xi_i, \qquad \xi_i \sim N(0, I),

    explicit Euler for (9) of :cite:t:`yang2020meanfield` without noise
    (:math:`\tau = 0`), Langevin dynamics with noise :cite:p:`mei2018mean`. So a loop of
    PyTorch with its own data, loss and schedule follows the flow that `otflow.flow`
    computes, and gives the same numbers.

    Parameters
    ----------
    neurons : torch.nn.Module, or iterable of dict
        A module with two trainable ``Linear`` layers. Their order is read off a
        ``Sequential``, or off their sizes; where both orders fit, the hidden layer must
        be the wider one, and be registered first. Any other module is given as
        parameter groups, see Notes.
    dt : float
        Time step. It is the entry ``"lr"`` of each group, which the schedulers of torch
        change.
    averages : bool
        Whether the module averages its hidden units, :math:`f = \frac1N \sum_i a_i\,
        \varphi_i`, so that its outer weights are the :math:`a_i`. By default it sums
        them, as ``Linear`` does: an outer weight is :math:`c_i = a_i/N`.
    temperature : float
        Factor :math:`\tau` of the entropy; 0 for no noise.
    mobility : float or mapping
        The number m :math:`\ge 0`, or one for each name of a group: ``"outer"``,
        ``"inner"``, ``"constant"``. A mobility of 0 fixes the coordinates.
    generator : torch.Generator or int, optional
        Source of the noise. With the same seed `otflow.flow` draws the same noise.

    Attributes
    ----------
    param_groups : list of dict
        As in torch, with the further entries of Notes.
    seed : int
        Seed of the noise.

    Raises
    ------
    TypeError
        If `neurons` is neither a module nor groups.
    Unsupported
        If no hidden layer is found, or other parameters are trained; if parameters have
        several dtypes, are complex, or coarser than float32; from `step`, for sparse
        gradients.
    ValueError
        If a number is negative; if a group has another entry, or one parameter twice;
        if parameters are on several devices, their numbers of neurons differ, or none
        holds neurons; from `step`, if there is no gradient.
    Diverged
        From `step`, if a gradient or a new parameter is not finite. No parameter has
        changed then.

    See Also
    --------
    from_module : The measure and the network of a module, for `otflow.flow`.

    Notes
    -----
    In the parameters of the module the step is gradient descent: with the rate N dt in
    the inner layer, and in the outer layer dt/N, or N dt if the module averages. The
    gradients are those that ``backward`` left in ``grad``. A penalty in the loss is one
    of the parameters, and a function of :math:`c_i = a_i/N`, not of :math:`a_i`, where
    the module sums.

    Two things cannot be known of a module. Each hidden unit must act alone, which a
    normalisation over units does not. And the momentum of another optimiser that has
    trained the module is no part of this flow.

    The bias of the outer layer is no coordinate of a neuron. It is a constant c of the
    network, which follows :math:`\dot c = -\partial L/\partial c` without noise;
    `TwoLayer` has it fixed as ``offset``. ``requires_grad_(False)`` fixes parameters.

    A group of parameters is a dict with the entries ``"params"``; ``"axis"``, the axis
    of the neurons in each of them, None for constants (by default 0); ``"factor"``, the
    number s with :math:`\theta = s\,` parameter (by default 1); ``"lr"``,
    ``"temperature"``, ``"mobility"``. A parameter moves by the gradient with the rate
    :math:`m\,N\,dt/s^2`.

    ``state_dict`` holds the groups and the state of the generator, so that a resumed
    run continues bit for bit. Cost: O(p N) per step for p numbers per neuron, with a
    copy of the parameters.

    Examples
    --------
    >>> import torch, otflow as of
    >>> x = torch.linspace(-2, 2, 50)[:, None]
    >>> module = torch.nn.Sequential(
    ...     torch.nn.Linear(1, 100), torch.nn.Tanh(), torch.nn.Linear(100, 1)
    ... )
    >>> optimizer = of.meanfield.FlowOptimizer(module, dt=0.2)
    >>> losses = []
    >>> for _ in range(200):
    ...     optimizer.zero_grad()
    ...     loss = 0.5 * (module(x) - x.sin()).square().mean()
    ...     loss.backward()
    ...     optimizer.step()
    ...     losses.append(loss.item())
    >>> losses[-1] < 0.1 * losses[0]
    True
    >>> optimizer.measure()
    Particles(n=100, d=3, dtype=float32, device=cpu)
    """

    seed: int

    def __init__(
        self,
        neurons: nn.Module | Iterable[Group],
        dt: float,
        *,
        averages: bool = False,
        temperature: float = 0.0,
        mobility: float | Mapping[str, float] = 1.0,
        generator: Seed = None,
    ) -> None:
        averages = true_or_false(averages, "averages")
        groups = groups_of(neurons, averages=averages)
        defaults: Group = {
            "lr": positive(dt, "dt"),
            "temperature": positive(temperature, "temperature", or_zero=True),
            "mobility": 1.0,
            "axis": 0,
            "factor": 1.0,
        }
        if isinstance(mobility, Mapping):
            _mobilities(groups, mobility)
        else:
            defaults["mobility"] = positive(mobility, "mobility", or_zero=True)
        super().__init__(groups, defaults)
        if all(group["axis"] is None for group in self.param_groups):
            msg = (
                "all groups are constants, and no parameter holds neurons; give the "
                'axis of the neurons, {"axis": 0}, or take torch.optim.SGD'
            )
            raise ValueError(msg)
        device = self.param_groups[0]["params"][0].device
        self.seed, self._generator = seed_and_stream(generator, device)

    def add_param_group(self, param_group: Group) -> None:
        """Add parameters that are coordinates of the neurons, or constants.

        Parameters
        ----------
        param_group : dict
            A group, see Notes of the class.

        Raises
        ------
        Unsupported
            If a parameter is complex, or of another dtype than those before.
        ValueError
            If a parameter is on another device than those before, or an axis does not
            hold the neurons.
        """
        check_once(param_group.get("params"))
        super().add_param_group(param_group)
        try:
            check_group(self.param_groups)
        except Exception:
            self.param_groups.pop()
            raise

    def measure(self) -> Particles:
        r"""Return the neurons :math:`\theta_i` as they are now, of mass 1/N each.

        Returns
        -------
        Particles
            A copy, without the constants. For a module its coordinates are those of
            `from_module`.
        """
        parts = [group["factor"] * rows for group, _, rows in self._coordinates()]
        return Particles(torch.cat(parts, dim=1))

    @torch.no_grad()
    def assign(self, mu: Particles) -> None:
        """Put the neurons of a measure into the module, in place of its own.

        So any scheme can step between those of the loop: `measure`, a step of
        `BirthDeath` with jumps, or of `JKO`, then `assign`.

        Parameters
        ----------
        mu : Particles
            As many neurons as the module has, of equal masses, as `measure` returns.

        Raises
        ------
        TypeError
            If `mu` is not made of particles, or of another dtype.
        ValueError
            If `mu` has another shape or other masses, or is on another device.
        """
        check_kind(mu, Particles, "mu")
        parts = self._coordinates()
        n, widths = len(parts[0][2]), [rows.shape[1] for *_, rows in parts]
        check_like(mu.points, parts[0][1], "mu", "the module")
        if (mu.n, mu.dim) != (n, sum(widths)):
            msg = (
                f"the module has {n} neurons of {sum(widths)} coordinates, and mu is "
                f"{mu!r}; give a measure of that shape, as measure() returns"
            )
            raise ValueError(msg)
        if not mu.is_uniform:
            msg = (
                "the masses of mu differ, but the neurons of a module have equal ones; "
                "draw equal atoms by schemes.Resample(threshold=1.0), or take "
                "BirthDeath(jumps=True)"
            )
            raise ValueError(msg)
        for (group, parameter, _), rows in zip(
            parts, torch.split(mu.points, widths, dim=1), strict=True
        ):
            parameter.copy_(placed(rows / group["factor"], parameter, group["axis"]))

    def _coordinates(self) -> Moves:
        """Return the parameters that are coordinates, with their rows (N, q)."""
        return [
            (group, parameter, coordinates(parameter.detach(), group["axis"]))
            for group in self.param_groups
            if group["axis"] is not None
            for parameter in group["params"]
        ]

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Make one step of the flow.

        Parameters
        ----------
        closure : callable, optional
            Clears the gradients, evaluates the loss, calls ``backward`` and returns the
            loss.

        Returns
        -------
        float or None
            What the closure returned: the loss before the step.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moves = self._drifts()
        self._diffuse(moves)
        if not _all_finite(new for *_, new in moves):
            msg = "a parameter is not finite after this step; take a smaller dt"
            if not _all_finite(p.grad for _, p, _ in moves if p.grad is not None):
                msg = (
                    "a gradient is NaN or infinite, so that nothing has moved; take a "
                    "smaller dt if the loss rose before, else look at the data and at "
                    "the loss"
                )
            raise Diverged(msg, measure=self.measure())
        for _, parameter, new in moves:
            parameter.copy_(new)
        return loss

    def _drifts(self) -> Moves:
        """Return what moves, moved by the gradient."""
        moves: Moves = []
        for group in self.param_groups:
            rate = _number(group, "lr") * _number(group, "mobility")
            for parameter in group["params"]:
                grad = parameter.grad
                if grad is None or not parameter.requires_grad:
                    continue
                if grad.layout != torch.strided:
                    msg = (
                        "a gradient is sparse, but every neuron moves; make it dense, "
                        "as Embedding(sparse=False) does"
                    )
                    raise Unsupported(msg)
                axis = group["axis"]
                count = 1 if axis is None else parameter.shape[axis]
                rate_here = _in_range(rate * count / group["factor"] ** 2, parameter)
                new = parameter.add(grad, alpha=-rate_here)
                moves.append((group, parameter, new))
        if not moves:
            msg = (
                "no parameter has a gradient; call backward() on the loss before "
                "step(), or give step(closure)"
            )
            raise ValueError(msg)
        return moves

    def _diffuse(self, moves: Moves) -> None:
        """Add the noise to what moves; it is drawn for all coordinates, in order."""
        if not any(_number(group, "temperature") for group in self.param_groups):
            return
        parts = self._coordinates()
        (_, first, rows), widths = parts[0], [rows.shape[1] for *_, rows in parts]
        noise = first.new_empty(len(rows), sum(widths))
        noise.normal_(generator=self._generator)
        shares = dict(
            zip(
                (p for _, p, _ in parts), torch.split(noise, widths, dim=1), strict=True
            )
        )
        for group, parameter, new in moves:
            if (axis := group["axis"]) is None:
                continue
            variance = 2 * group["temperature"] * group["lr"] * group["mobility"]
            xi = placed(shares[parameter], parameter, axis)
            deviation = math.sqrt(variance) / group["factor"]
            new.add_(xi, alpha=_in_range(deviation, parameter))

    # Keeping --------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the groups and the state of the generator.

        Returns
        -------
        dict
            As in torch, with the further entries ``"generator"`` and ``"seed"``.
        """
        state = self._generator.get_state()
        return {**super().state_dict(), "generator": state, "seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the groups and the state of the generator from a `state_dict`.

        Parameters
        ----------
        state_dict : dict
            What `state_dict` returned.

        Raises
        ------
        ValueError
            If it is that of another optimiser, or its generator is on another kind of
            device.
        """
        if "generator" not in state_dict:
            msg = (
                "state_dict is not that of a FlowOptimizer: it has no generator; give "
                "FlowOptimizer(...).state_dict()"
            )
            raise ValueError(msg)
        device = self._generator.device
        stream = torch.Generator(device=device)
        try:
            # Generators take bytes in main memory; a file may be opened on a device.
            stream.set_state(state_dict["generator"].cpu())
        except RuntimeError as error:
            msg = (
                f"the generator of state_dict is not one on {device}; move the module "
                f"to the device of the first run before FlowOptimizer(module, dt)"
            )
            raise ValueError(msg) from error
        super().load_state_dict(state_dict)
        self.seed, self._generator = state_dict["seed"], stream

    def __getstate__(self) -> dict[str, Any]:
        stream = self._generator
        kept = {"state": stream.get_state(), "device": stream.device, "seed": self.seed}
        return {**super().__getstate__(), "_kept": kept}

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        kept = state.pop("_kept", None)
        super().__setstate__(state)
        if kept is not None:
            self.seed, self._generator = kept["seed"], torch.Generator(kept["device"])
            self._generator.set_state(kept["state"])


def _all_finite(tensors: Iterable[Tensor]) -> bool:
    """Return whether all entries are finite, after one wait for the device."""
    return bool(torch.stack([x.isfinite().all() for x in tensors]).all())


def _in_range(rate: float, parameter: Tensor) -> float:
    """Return a rate, infinite where torch would raise since it is beyond the dtype."""
    return rate if rate <= torch.finfo(parameter.dtype).max else math.inf


def _number(group: Group, name: str) -> float:
    """Return an entry that a user or a scheduler may have changed, after a check."""
    return positive(group[name], name, or_zero=True)


def _mobilities(groups: list[Group], mobility: Mapping[str, float]) -> None:
    names = [group.get("name") for group in groups]
    for name, value in mobility.items():
        if name not in names:
            msg = (
                f"mobility names {name!r}, but the groups are {names}; name one of them"
            )
            raise ValueError(msg)
        groups[names.index(name)]["mobility"] = positive(
            value, f"mobility[{name!r}]", or_zero=True
        )
