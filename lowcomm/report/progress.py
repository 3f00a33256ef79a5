"""What a person sees while a run goes on: one live line on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

if TYPE_CHECKING:
    from rich.progress import TaskID

PLAIN_EVERY_S = 10.0


class Progress:
    """Shown by rank 0 only; a disabled one prints nothing."""

    def __init__(self, *, name: str, steps: int, enabled: bool) -> None:
        self.console = Console(stderr=False)
        self.enabled = enabled
        self.steps = steps
        self._last_plain_s = 0.0
        self._sync_text = ""
        self._eval_text = ""
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        if enabled and self.console.is_terminal:
            columns = (TextColumn("[bold]{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
            self._bar = RichProgress(*columns, TimeRemainingColumn(), console=self.console, transient=False)
            self._task = self._bar.add_task(name, total=steps, text="")
            self._bar.start()

    def stepped(self, *, step: int, round: int, loss: float, tokens: float, tokens_per_s: float) -> None:
        """After some inner steps: loss in nats per token, tokens over all islands."""
        if not self.enabled:
            return
        text = (
            f"step {step}/{self.steps}  round {round}  loss {loss:.3f}  {tokens / 1e6:.2f}M tokens  "
            f"{tokens_per_s:,.0f} tok/s{self._sync_text}{self._eval_text}"
        )
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, text=text)
        elif time.monotonic() - self._last_plain_s > PLAIN_EVERY_S or step == self.steps:
            self._last_plain_s = time.monotonic()
            self.console.print(text, highlight=False, soft_wrap=True)

    def synced(self, *, seconds_s: float, sent_bytes: int) -> None:
        """After a sync of island 0."""
        self._sync_text = f"  sync {seconds_s * 1e3:.0f} ms  sent {sent_bytes / 1e6:.1f} MB"

    def evaluated(self, *, bits_per_byte: float) -> None:
        """After an evaluation of the global weights."""
        self._eval_text = f"  val {bits_per_byte:.3f} bits/byte"

    def note(self, text: str) -> None:
        """Something that a person should read."""
        if self.enabled:
            self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def close(self) -> None:
        """Leave the terminal as it was; safe to call twice."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
