"""The pure core: what to train, where, in which order, and how long it takes.

Refuses to know files, clocks, sockets and tensors: time and randomness are arguments,
and whoever calls it does the reading and the writing.
"""
