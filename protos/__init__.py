"""Wire messages, and the only place where dataclass <-> message is known (`convert.py`)."""
