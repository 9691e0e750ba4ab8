"""Checks of configuration values: the message names the field, the value and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any


def reject(label: str, value: Any, allowed: str) -> ValueError:
    return ValueError(f"{label} = {value!r} is not allowed: use {allowed}")


def check_choice(label: str, value: Any, allowed: Iterable[str]) -> None:
    allowed = list(allowed)
    if value not in allowed:
        raise reject(label, value, "one of " + ", ".join(repr(a) for a in allowed))


def check_number(
    label: str,
    value: Any,
    low: float,
    high: float,
    *,
    optional: bool = False,
    low_open: bool = False,
    high_open: bool = False,
) -> None:
    """A finite number between `low` and `high`; `_open` leaves the bound itself out."""
    if value is None and optional:
        return
    inside = is_number(value) and low <= value <= high
    if not inside or (low_open and value == low) or (high_open and value == high):
        interval = f"{'(' if low_open else '['}{low}, {high}{')' if high_open or high == math.inf else ']'}"
        raise reject(label, value, f"a number in {interval}" + (" or None" if optional else ""))


def check_count(label: str, value: Any, low: int = 1) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise reject(label, value, f"a whole number, {low} or more")


def check_boolean(label: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise reject(label, value, "True or False")


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
