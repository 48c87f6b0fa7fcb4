"""An error's reason as a person is told it. Knows no command."""

from __future__ import annotations


def reason_of(error: BaseException) -> str:
    """The system's words alone ("No such file or directory"), for whoever names the file; of other errors
    all they say."""
    said = str(getattr(error, "strerror", None) or error)
    return said.partition(" (while attempting to bind")[0]  # which `socket.create_server` adds
