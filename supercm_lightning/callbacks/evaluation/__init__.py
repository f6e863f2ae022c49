"""Callbacks that evaluate, draw and write predictions."""
