"""What touches disk and network."""
