"""The parts of the encoder as they were loaded: what --norm, --ffn, --attention and --positions stand at."""


def as_loaded(bert):
    """Change nothing."""
