"""Stages around training, each run as `python -m scripts.NAME`."""
