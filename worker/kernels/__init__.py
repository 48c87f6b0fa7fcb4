"""Fused kernels, each the twin of an eager reference; a test compares the two."""
