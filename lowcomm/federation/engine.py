"""The only place that looks whether Flower is there."""

from __future__ import annotations

from importlib import metadata

from lowcomm.types import ConfigError

SERIES = "1.42"
"""The worker of a client speaks the Runtime API of this series of flwr."""


def need_flower() -> None:
    """Raise ConfigError unless a flwr of the right series is installed."""
    try:
        version = metadata.version("flwr")
    except metadata.PackageNotFoundError:
        raise ConfigError("package flwr is missing. Fix: pip install 'lowcomm[flower]'") from None
    if not version.startswith(f"{SERIES}."):
        raise ConfigError(f"flwr {version} is installed, {SERIES} is needed. Fix: pip install 'flwr=={SERIES}.*'")
