"""Triton decides when it is imported whether it interprets, and PyTorch's flop counter imports it: so here,
before any of these tests' imports."""

import os

import torch

os.environ.setdefault("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1")
