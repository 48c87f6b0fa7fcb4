"""The coordinator's own relay: the one of `worker relay`, on a thread with a loop of its own.

Tensors that pass so take nothing of the loop that answers heartbeats but the machine's cores and its card.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from protos.relay import Relay

CALL_S = 10.0
T = TypeVar("T")


@contextmanager
def relay_beside(bind: str, key: bytes) -> Iterator[tuple[str, Relay]]:
    """A relay at host:port while the context is open: (its real address, itself). Raises OSError."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="relay", daemon=True)
    thread.start()
    relay = Relay(key)

    def ask(work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, loop).result(CALL_S)

    try:
        yield ask(relay.listen(bind)), relay
    finally:
        ask(relay.close())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
