"""Numbers for people: three significant digits, decimal prefixes, a dash where nothing was recorded."""

from __future__ import annotations

import math

DASH = "—"
_PREFIXES = ("", "k", "M", "G", "T", "P", "E")


def _three_digits(value: float) -> float:
    """Rounded to three significant digits, so that 999.7 already counts as 1000 when a prefix is chosen."""
    return float(f"{value:.3g}")


def _plain(value: float) -> str:
    """Three significant digits without an exponent and without trailing zeros; 0 <= value < 1000."""
    if value == 0:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    text = f"{value:.{min(decimals, 6)}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _prefixed(value: float) -> tuple[str, str]:
    scaled, index = _three_digits(value), 0
    while abs(scaled) >= 1000 and index < len(_PREFIXES) - 1:
        scaled, index = _three_digits(scaled / 1000), index + 1
    return _plain(scaled), _PREFIXES[index]


def format_bytes(count_bytes: float | None) -> str:
    """`1.2 MB`; decimal units, because links are sold and measured in them."""
    if count_bytes is None:
        return DASH
    digits, prefix = _prefixed(count_bytes)
    return f"{digits} {prefix}B"


def format_bits(rate_bytes_per_s: float | None) -> str:
    """`12.5 Mbit/s`, for bytes per second."""
    if rate_bytes_per_s is None:
        return DASH
    digits, prefix = _prefixed(rate_bytes_per_s * 8)
    return f"{digits} {prefix}bit/s"


def format_count(count: float | None) -> str:
    """`3.4 M`; exact below 10 000."""
    if count is None:
        return DASH
    if abs(count) < 10_000 and float(count).is_integer():
        return str(int(count))
    digits, prefix = _prefixed(count)
    return f"{digits} {prefix}".strip()


def format_seconds(duration_s: float | None) -> str:
    """`12 ms`, `3.4 s`, `4 min 05 s` or `2 h 07 min`."""
    if duration_s is None:
        return DASH
    if abs(duration_s) < 0.9995:
        return f"{_plain(_three_digits(duration_s * 1000))} ms"
    if abs(duration_s) < 59.95:
        return f"{_plain(_three_digits(duration_s))} s"
    whole = round(duration_s)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(duration_s / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def format_share(share: float | None) -> str:
    """A fraction of 1 as a percentage: `4.2 %`."""
    return DASH if share is None else f"{100 * share:.1f} %"


def format_decimal(value: float | None, digits: int = 3) -> str:
    """Fixed point with `digits` places; quality numbers are compared by their last places."""
    return DASH if value is None else f"{value:.{digits}f}"


def format_rate(per_s: float | None) -> str:
    """`12.5 /s`."""
    if per_s is None:
        return DASH
    digits, prefix = _prefixed(per_s)
    return f"{digits}{prefix} /s"
