"""How the report writes numbers, durations, sizes and settings: one place, so that no page ever says "nan"."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

__all__: list[str] = []

MISSING = "—"
MINUS = "−"
_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_SIZES = ("B", "KiB", "MiB", "GiB", "TiB")


def finite(value: Any) -> float | None:
    """Return a value as a finite float, or None for everything else (None, NaN, infinity, "nan", text)."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def number(value: Any, digits: int = 4) -> str:
    """Write a number with so many significant digits, whole ones without decimals: 0.9734, 12.35, 24, 1.2 × 10⁻⁵.

    >>> number(0.97341), number(-1234567.0), number(float("nan"))
    ('0.9734', '−1,234,567', '—')
    """
    x = finite(value)
    if x is None:
        return MISSING
    if x == round(x) and abs(x) < 1e9:
        return _decimals(x, 0)
    mantissa, power = f"{x:.{digits - 1}e}".split("e")
    exponent = int(power)
    if -4 <= exponent <= 8:
        return _decimals(x, max(0, digits - 1 - exponent))
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa} × 10{str(exponent).translate(_SUPERSCRIPTS)}".replace("-", MINUS)


def short(value: float) -> str:
    """Write an axis tick: exact and without trailing zeros."""
    if value == 0:
        return "0"
    if not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.2e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".")
        power = f"10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
        return {"1": power, "-1": MINUS + power}.get(mantissa, f"{mantissa}·{power}".replace("-", MINUS))
    return f"{value:,.10g}".replace("-", MINUS)


def interval(low: Any, high: Any) -> str:
    """Write an interval with as many digits as its width deserves: [0.012, 0.034]."""
    ends = finite(low), finite(high)
    if ends == (None, None):
        return MISSING
    return f"[{', '.join(_end(end, ends, sign) for end, sign in zip(ends, (MINUS, ''), strict=True))}]"


def estimate(value: Any, low: Any, high: Any) -> str:
    """Write an estimate with the precision of its interval."""
    x, ends = finite(value), (finite(low), finite(high))
    return MISSING if x is None else _end(x, ends, "")


def p_value(value: Any) -> str:
    """Write a p-value; below a ten-thousandth its digits say nothing."""
    x = finite(value)
    return "< 0.0001" if x is not None and x < 1e-4 else number(x, 2)


def duration(seconds: Any) -> str:
    """Write seconds as a person would: 0.41 s, 42 s, 3 min 12 s, 1 h 4 min."""
    x = finite(seconds)
    if x is None:
        return MISSING
    if x < 10:
        return f"{number(x, 2)} s"
    whole = round(x)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def size(byte_count: Any) -> str:
    """Write bytes: 512 B, 1.5 MiB."""
    x = finite(byte_count)
    if x is None:
        return MISSING
    power = min(int(math.log(max(abs(x), 1), 1024)), len(_SIZES) - 1)
    return f"{number(x / 1024**power, 3)} {_SIZES[power]}"


def count(value: Any) -> str:
    """Write a count with separators: 118,282; fractions keep four significant digits."""
    x = finite(value)
    if x is None:
        return MISSING
    return f"{x:,.0f}".replace("-", MINUS) if x == round(x) and abs(x) < 1e9 else number(x)


def resource(name: str, value: Any) -> str:
    """Write a resource in the unit that its name implies."""
    if name.endswith("seconds"):
        return duration(value)
    if name.endswith(("bytes", "memory")):
        return size(value)
    return count(value)


def setting(value: Any) -> str:
    """Write a hyper-parameter exactly; nothing is rounded here, since somebody will retype it.

    >>> setting(0.001), setting(True), setting(None), setting(["relu", 3])
    ('0.001', 'yes', 'none', '["relu", 3]')
    """
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.12g}" if math.isfinite(value) else MISSING
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)


def plural(n: Any, singular: str, many: str | None = None) -> str:
    """Write a count with its noun: 1 seed, 6 seeds."""
    return f"{count(n)} {singular if n == 1 else many or singular + 's'}"


def listing(items: Sequence[str]) -> str:
    """Join items as in a sentence: a, b and c."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + (f" and {items[-1]}" if items else "")


def label(name: str) -> str:
    """Write a quantity's name for a heading: test_accuracy becomes "test accuracy"."""
    return name.replace("_", " ")


def _decimals(x: float, places: int) -> str:
    # Adding zero turns a rounded "-0.00" into "0.00".
    return f"{round(x, places) + 0.0:,.{places}f}".replace("-", MINUS)


def _end(x: float | None, ends: tuple[float | None, float | None], sign: str) -> str:
    """Write a number with two significant digits of the interval's width; None is an infinite end."""
    if x is None:
        return f"{sign}∞"
    low, high = ends
    if low is None or high is None or high <= low:
        return number(x, 3)
    places = 1 - math.floor(math.log10(high - low))
    return _decimals(x, max(places, 0)) if -4 < places < 7 else number(x, 3)
