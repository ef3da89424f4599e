"""Counts to how surely they are no luck: exact chances, intervals of shares, corrected for many looks."""

from collections.abc import Sequence
from math import exp, factorial, log, log1p, pi, sqrt
from typing import Final

Z: Final = 1.96
"""Of the normal distribution: 95 %, two-sided."""

_SMALL: Final = 16
_LOG_ROOT: Final = 0.5 * log(2 * pi)
_ENOUGH: Final = 1e-17
"""A term of a sum that is smaller than so much of it changes no double any more."""


def _reckon_error(whole: int) -> float:
    """What Stirling's formula lacks of log(whole!), from that itself."""
    if not whole:
        return 0.0  # only asked for where its factor falls out
    return log(factorial(whole)) - (whole + 0.5) * log(whole) + whole - _LOG_ROOT


_ERRORS: Final = tuple(map(_reckon_error, range(_SMALL)))


def binomial_tail(k: int, n: int, p: float) -> float:
    """The chance that `k` or more of `n` are it, where each is with the chance `p`.

    Exact to about 1e-12 of itself, down to the smallest double.
    """
    if k <= 0:
        return 1.0
    if k > n or p <= 0:
        return 0.0
    if p >= 1:
        return 1.0
    odds = p / (1 - p)
    if k > n * p:
        term = total = _binomial(k, n, p)
        while k < n and term > _ENOUGH * total:
            term *= (n - k) * odds / (k + 1)
            total += term
            k += 1
        return min(total, 1.0)
    k -= 1
    term = total = _binomial(k, n, p)
    while k > 0 and term > _ENOUGH * total:
        term *= k / ((n - k + 1) * odds)
        total += term
        k -= 1
    return max(1.0 - total, 0.0)


def poisson_lower(k: int, mean: float) -> float:
    """The chance of `k` or fewer where `mean` is to be expected.

    Exact to about 1e-12 of itself.
    """
    if k < 0:
        return 0.0
    if mean <= 0:
        return 1.0
    if k < mean:
        term = total = _poisson(k, mean)
        while k > 0 and term > _ENOUGH * total:
            term *= k / mean
            total += term
            k -= 1
        return min(total, 1.0)
    k += 1
    term = total = _poisson(k, mean)
    while term > _ENOUGH * total:
        k += 1
        term *= mean / k
        total += term
    return max(1.0 - total, 0.0)


def wilson(part: int, whole: int, z: float = Z) -> tuple[float, float]:
    """Wilson's interval of a share, from 0 to 1; all of it where nothing was counted."""
    if whole <= 0:
        return 0.0, 1.0
    share, square = part / whole, z * z
    middle = share + square / (2 * whole)
    spread = z * sqrt(share * (1 - share) / whole + square / (4 * whole * whole))
    scale = 1 + square / whole
    return (
        0.0 if part == 0 else (middle - spread) / scale,
        1.0 if part == whole else (middle + spread) / scale,
    )


def newcombe(a: int, n1: int, c: int, n2: int, z: float = Z) -> tuple[float, float, float]:
    """Two shares `a / n1` and `c / n2` of different calls to their difference, lowest and highest.

    Newcombe's hybrid score interval (his method 10). Of no calls the share is taken to be 0, and may
    be anything.
    """
    first = a / n1 if n1 > 0 else 0.0
    second = c / n2 if n2 > 0 else 0.0
    low_first, high_first = wilson(a, n1, z)
    low_second, high_second = wilson(c, n2, z)
    difference = first - second
    return (
        difference,
        difference - sqrt((first - low_first) ** 2 + (high_second - second) ** 2),
        difference + sqrt((high_first - first) ** 2 + (second - low_second) ** 2),
    )


def fisher(a: int, b: int, c: int, d: int) -> float:
    """Fisher's exact test of the table [[a, b], [c, d]], one-sided: the chance of `a` or more.

    Rows and columns keep their sums. Exact to about 1e-12 of itself.
    """
    row, other, column = a + b, c + d, a + c
    if not row or not other or not column or not b + d:
        return 1.0
    first, last = max(0, column - other), min(row, column)
    if a <= first:
        return 1.0
    if a * (row + other) > row * column:
        x = a
        term = total = _hypergeometric(x, row, other, column)
        while x < last and term > _ENOUGH * total:
            term *= (row - x) * (column - x) / ((x + 1) * (other - column + x + 1))
            total += term
            x += 1
        return min(total, 1.0)
    x = a - 1
    term = total = _hypergeometric(x, row, other, column)
    while x > first and term > _ENOUGH * total:
        term *= x * (other - column + x) / ((row - x + 1) * (column - x + 1))
        total += term
        x -= 1
    return max(1.0 - total, 0.0)


def odds_ratio(a: int, b: int, c: int, d: int) -> float:
    """The odds ratio of the table [[a, b], [c, d]], Haldane's: half a call is added to each field."""
    return ((a + 0.5) * (d + 0.5)) / ((b + 0.5) * (c + 0.5))


def benjamini_hochberg(ps: Sequence[float]) -> list[float]:
    """Chances of many looks to the share of false finds if each that is no greater counts as one.

    In the same order; none is over 1.
    """
    found = [0.0] * len(ps)
    least = 1.0
    order = sorted(range(len(ps)), key=ps.__getitem__, reverse=True)
    for rank, place in zip(range(len(ps), 0, -1), order, strict=True):
        least = min(least, ps[place] * len(ps) / rank)
        found[place] = least
    return found


# ---------------------------------------------------------- single terms (Loader 2000, saddle point)


def _stirling_error(whole: int) -> float:
    """What Stirling's formula lacks of log(whole!)."""
    if whole < _SMALL:
        return _ERRORS[whole]
    square = whole * whole
    inner = 1 / 1260 - (1 / 1680 - 1 / 1188 / square) / square
    return (1 / 12 - (1 / 360 - inner / square) / square) / whole


def _deviance(x: float, mean: float) -> float:
    """Deviance: x log(x / mean) + mean - x, no digits lost where they are near each other."""
    away = x - mean
    if abs(away) >= 0.1 * (x + mean):
        return x * log(x / mean) - away
    v = away / (x + mean)
    total = away * v
    term, square, j = 2 * x * v, v * v, 1
    while True:
        term *= square
        j += 2
        more = total + term / j
        if more == total:
            return total
        total = more


def _binomial(k: int, n: int, p: float) -> float:
    """The chance of exactly `k` of `n`; p neither 0 nor 1."""
    if k == 0:
        return exp(n * log1p(-p))
    if k == n:
        return exp(n * log(p))
    exponent = (
        _stirling_error(n)
        - _stirling_error(k)
        - _stirling_error(n - k)
        - _deviance(k, n * p)
        - _deviance(n - k, n * (1 - p))
    )
    return exp(exponent) * sqrt(n / (2 * pi * k * (n - k)))


def _poisson(k: int, mean: float) -> float:
    """The chance of exactly `k`."""
    if k == 0:
        return exp(-mean)
    return exp(-_stirling_error(k) - _deviance(k, mean)) / sqrt(2 * pi * k)


def _hypergeometric(x: int, row: int, other: int, column: int) -> float:
    """The chance that `x` of the `column` drawn are of the `row`; neither sum of a side is 0."""
    p = column / (row + other)
    return (
        _binomial(x, row, p) * _binomial(column - x, other, p) / _binomial(column, row + other, p)
    )
