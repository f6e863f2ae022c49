"""Helpers that belong to no part."""
