"""What a person sees while a run goes on: one live line on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import time

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

PLAIN_EVERY_S = 10.0
WARN_EVERY_S = 30.0


class Progress:
    """Shown by rank 0 only; a disabled one prints nothing."""

    def __init__(self, *, name: str, steps: int, enabled: bool) -> None:
        self.console = Console(stderr=False)
        self.enabled = enabled
        self.steps = steps
        self._last_plain_s = 0.0
        self._sync_text = ""
        self._eval_text = ""
        self._warned: dict[str, tuple[float, int]] = {}
        self._live: Live | None = None
        columns = (TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = RichProgress(*columns, console=self.console)
        self._task = self._bar.add_task(escape(name), total=steps)
        if enabled and self.console.is_terminal:
            self._live = Live(Group(self._bar, Text()), console=self.console, refresh_per_second=4)
            self._live.start()

    def stepped(self, *, step: int, round: int, loss: float, tokens: float, tokens_per_s: float) -> None:
        """After some inner steps: loss in nats per token, tokens over all islands."""
        if not self.enabled:
            return
        text = (
            f"round {round}  loss {loss:.3f}  {tokens / 1e6:.2f}M tokens  {tokens_per_s / 1e3:.1f}k/s"
            f"{self._sync_text}{self._eval_text}"
        )
        if self._live is not None:
            self._bar.update(self._task, completed=step)
            self._live.update(Group(self._bar, Text(text)))
        elif time.monotonic() - self._last_plain_s > PLAIN_EVERY_S or step == self.steps:
            self._last_plain_s = time.monotonic()
            self.console.print(f"step {step}/{self.steps}  {text}", highlight=False, soft_wrap=True)

    def synced(self, *, seconds_s: float, sent_bytes: int) -> None:
        """After a sync of island 0."""
        self._sync_text = f"  sync {seconds_s * 1e3:.0f} ms  sent {sent_bytes / 1e6:.1f} MB"

    def evaluated(self, *, bits_per_byte: float) -> None:
        """After an evaluation of the global weights."""
        self._eval_text = f"  val {bits_per_byte:.3f} b/B"

    def note(self, text: str) -> None:
        """Something that a person should read."""
        if self.enabled:
            self.console.print(text, highlight=False, soft_wrap=True, markup=False)

    def warn(self, kind: str, text: str) -> None:
        """A warning that may come with every round, on whichever rank sees it: one line per kind and WARN_EVERY_S."""
        now = time.monotonic()
        shown_s, held = self._warned.get(kind, (-WARN_EVERY_S, 0))
        if now - shown_s < WARN_EVERY_S:
            self._warned[kind] = (shown_s, held + 1)
            return
        self._warned[kind] = (now, 0)
        more = f" ({held} more like it since the last such line)" if held else ""
        self.console.print(f"{text}{more}", highlight=False, soft_wrap=True, markup=False)

    def close(self) -> None:
        """Leave the terminal as it was; safe to call twice."""
        if self._live is not None:
            self._live.stop()
            self._live = None
