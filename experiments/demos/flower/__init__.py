"""Digits on a Flower federation of real processes, dense and sparse."""
