"""The flags of a run: fields of its configuration, and parts of it as short specs."""
