"""Number types with a range, for parameters that a yaml can set: discounts, shares, weights and sizes.

For Python and mypy, the types are plain `float` or `int`, and so are the values. The range is checked only when a yaml
or a flag is read, not in a constructor that is called from Python.
"""

from __future__ import annotations

import contextlib
import math
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import register_type

if TYPE_CHECKING:
    from builtins import float as BelowOne
    from builtins import float as Discount
    from builtins import float as NonNegative
    from builtins import float as Number
    from builtins import float as Positive
    from builtins import float as PositiveShare
    from builtins import float as Share
    from builtins import int as Count
    from builtins import int as Seed
    from builtins import int as Size
    from builtins import int as Steps
    from builtins import int as Whole


def number_type(name: str, kind: type, text: str, low: float = -math.inf, high: float = math.inf) -> Any:
    """Create a type of finite numbers from `low` to `high`. Error messages describe the type by `text`."""

    def read(value: object) -> float:
        number = math.nan
        # Accept digits in a string. Refuse booleans, and 3.0 for an int.
        if isinstance(value, (str, int, kind)) and not isinstance(value, bool):
            with contextlib.suppress(ValueError, OverflowError):
                number = kind(value)
        if not (math.isfinite(number) and low <= number <= high):
            raise ValueError(f"Expected {text}. Got value: {value}")
        return number

    new = type(name, (kind,), {"__doc__": text, "__module__": __name__})
    register_type(new, lambda value: value, read, deserializer_exceptions=(), type_check=lambda *_: False)
    return new


if not TYPE_CHECKING:
    _LEAST = math.ulp(0.0)  # the smallest float above 0
    Number = number_type("Number", float, "a finite number")
    NonNegative = number_type("NonNegative", float, "a number of at least 0", 0)
    Positive = number_type("Positive", float, "a number above 0", _LEAST)
    Discount = number_type("Discount", float, "a discount (a number from 0 to 1)", 0, 1)
    Share = number_type("Share", float, "a share (a number from 0 to 1)", 0, 1)
    PositiveShare = number_type("PositiveShare", float, "a share (a number above 0, and at most 1)", _LEAST, 1)
    BelowOne = number_type("BelowOne", float, "a number from 0, and below 1", 0, math.nextafter(1, 0))
    Size = number_type("Size", int, f"a whole number from 1 to {2**31 - 1}", 1, 2**31 - 1)
    Count = number_type("Count", int, f"a whole number from 0 to {2**31 - 1}", 0, 2**31 - 1)
    Whole = number_type("Whole", int, f"a whole number from {-(2**31)} to {2**31 - 1}", -(2**31), 2**31 - 1)
    Steps = number_type("Steps", int, f"a whole number from 1 to {2**63 - 1}", 1, 2**63 - 1)
    Seed = number_type("Seed", int, f"a seed (a whole number from 0 to {2**32 - 1})", 0, 2**32 - 1)
