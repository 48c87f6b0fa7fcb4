"""The error of a run whose numbers have left the finite ones. Knows nothing of how they came about."""


class Diverged(Exception):
    """A loss, a gradient or a tensor to be sent that is not finite; names step, rank and what it was."""
