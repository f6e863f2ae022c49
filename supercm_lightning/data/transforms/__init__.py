"""Batched augmentation and normalisation on the device; pure tensor functions, no Lightning."""
