"""Tensor <-> payload. Refuses to know networks, ranks and schedules."""
