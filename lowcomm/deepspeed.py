"""`lowcomm.deepspeed.attach(engine, every=...)`: see lowcomm.integrations.deepspeed."""

from lowcomm.integrations.deepspeed import Islands, attach, islands

__all__ = ["Islands", "attach", "islands"]
