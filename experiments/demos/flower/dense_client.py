"""The client of the demonstration without the line that makes it sparse."""

from experiments.demos.flower.client import dense_app as app

__all__ = ["app"]
