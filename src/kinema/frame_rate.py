"""Frame rates as exact fractions, and the numbers that stand for them."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

# 29.97 frames/s are 30000/1001. Every rate of up to three decimals also has a denominator of at most 1001.
MAX_RATE_DENOMINATOR = 1001
_FRACTION = re.compile(r"\s*([0-9]{1,9})\s*/\s*([1-9][0-9]{0,8})\s*")
RATE_ROUNDING = Fraction(2, 10**7)  # 29.97003 means 30000/1001


def exact_rate(fps: float) -> Fraction:
    """Return a frame rate as the fraction with a denominator of at most 1001 that the number stands for."""
    return Fraction(fps).limit_denominator(MAX_RATE_DENOMINATOR)


def rate_number(rate: Fraction) -> float:
    """Return a frame rate as an int if it is whole, else as the float from which `exact_rate` returns it."""
    return rate.numerator if rate.denominator == 1 else float(rate)


def parse_fraction(value: Any) -> Any:
    """Return the number that a text such as "30000/1001" stands for; leave anything else unchanged."""
    match = _FRACTION.fullmatch(value) if isinstance(value, str) else None
    return value if match is None else int(match[1]) / int(match[2])
