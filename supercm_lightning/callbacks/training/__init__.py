"""Callbacks that take part in training."""
