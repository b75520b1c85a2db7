"""Elementary functions to the digits of the decimal context, by power series."""

from decimal import Decimal, getcontext, localcontext
from functools import lru_cache


def pi():
    return _pi(getcontext().prec)


@lru_cache
def _pi(digits):
    """Return pi by the formula of Machin."""
    with localcontext() as context:
        context.prec = digits + 5
        return 16 * _arctan(1 / Decimal(5)) - 4 * _arctan(1 / Decimal(239))


def _series(first, ratio):
    """Return the sum of a series, from its first term and the ratio of the next."""
    total, term, k = Decimal(0), first, 0
    smallest = Decimal(10) ** -getcontext().prec
    while k < 3 or abs(term) > smallest * abs(total):
        total += term
        k += 1
        term *= ratio(k)
    return total


def _arctan(x):
    return _series(x, lambda k: -x * x * (2 * k - 1) / (2 * k + 1))


def atan(x):
    for _ in range(3):  # half the angle
        x = x / (1 + (1 + x * x).sqrt())
    return 8 * _arctan(x)


def sin(x):
    x = x % (2 * pi())
    return _series(x, lambda k: -x * x / ((2 * k) * (2 * k + 1)))


def cos(x):
    return sin(x + pi() / 2)


def exp(x):
    return x.exp()


def log(x):
    return x.ln()


def expm1(x):
    return exp(x) - 1


def log1p(x):
    return log(1 + x)


def sinh(x):
    return (exp(x) - exp(-x)) / 2


def cosh(x):
    return (exp(x) + exp(-x)) / 2


def tanh(x):
    return 1 - 2 / (exp(2 * x) + 1)


def sigmoid(x):
    return 1 / (1 + exp(-x))


def softplus(x):
    return log(1 + exp(x))


def erf(x):
    if abs(x) > 20:  # nearer to 1 than 1e-170
        return Decimal(1).copy_sign(x)
    with localcontext() as context:
        context.prec += 360  # terms of size exp(x^2) cancel
        half = _series(x, lambda k: -x * x / k * (2 * k - 1) / (2 * k + 1))
        return 2 * half / pi().sqrt()
