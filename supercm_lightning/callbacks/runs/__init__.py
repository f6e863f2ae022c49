"""Callbacks that own a run: summary, resume, requeue."""
