"""Counts that are typed: steps of a loop."""

import operator
from typing import Any

MOST = 10_000  # more steps than any loop has a use for: a slip of the finger


def whole(name: str, value: Any, cure: str) -> int:
    """A count from 1 to MOST as a plain integer, numpy's too; True is none. Raises ValueError."""
    try:
        count = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        count = 0
    if not 1 <= count <= MOST:
        limit = f"at most {MOST}" if count > MOST else "at least 1"
        raise ValueError(f"wanted {name} as a whole number of {limit}, got {value}; type {cure}")
    return count
