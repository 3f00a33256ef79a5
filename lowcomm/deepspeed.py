"""`lowcomm.deepspeed.attach(engine, every=...)`: see lowcomm.integrations.deepspeed."""

from lowcomm.integrations.deepspeed import attach, islands

__all__ = ["attach", "islands"]
