"""Batched augmentation and normalization on the device; pure tensor functions, no Lightning."""
