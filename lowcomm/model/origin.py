"""Where a pretrained model comes from that is not simply a directory: made or converted when it is first needed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Origin(ABC):
    """A frozen dataclass that names a model."""

    @abstractmethod
    def directory(self) -> Path | None:
        """A transformers directory with the model, made on the first call and cached; None: there is no such model.

        Raises ConfigError if what it is made of is missing.
        """


@dataclass(frozen=True, kw_only=True)
class Scratch(Origin):
    """No pretrained model of a name: a preset from scratch, or a directory."""

    def directory(self) -> None:
        return None
