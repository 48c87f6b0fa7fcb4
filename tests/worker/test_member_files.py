"""Files of a checkpoint through a session that breaks: what the thread of work is told of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any, cast

import grpc
import pytest

from scheduler.checkpoint_layout import LayerFileInfo
from worker.checkpoint import LayerFileError
from worker.member import LoopFiles
from worker.runtime import Uploads
from worker.session import Session
from worker.transport import TransportAborted

FILE = LayerFileInfo("layer-0000.safetensors", "0" * 64, 10)


class Broken:
    """A session whose every call ends with this status."""

    def __init__(self, code: grpc.StatusCode) -> None:
        self._error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), "told why")

    async def get_layer(self, *_: Any) -> bytes:
        raise self._error

    async def put_layer(self, *_: Any) -> None:
        raise self._error


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    thread = threading.Thread(target=made.run_forever)
    thread.start()
    yield made
    made.call_soon_threadsafe(made.stop)
    thread.join()
    made.close()


def files(code: grpc.StatusCode, loop: asyncio.AbstractEventLoop) -> LoopFiles:
    session = cast(Session, Broken(code))
    return LoopFiles(lambda: session, loop)


def test_a_coordinator_that_goes_away_while_a_layer_comes_ends_the_loading_and_not_the_worker(
    loop: asyncio.AbstractEventLoop,
) -> None:
    for code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        with pytest.raises(TransportAborted, match="the coordinator went away: told why"):
            files(code, loop).get(4, FILE)


def test_a_layer_that_the_coordinator_does_not_send_is_named(loop: asyncio.AbstractEventLoop) -> None:
    with pytest.raises(LayerFileError, match=r"layer-0000.safetensors: .* did not send it: told why"):
        files(grpc.StatusCode.DATA_LOSS, loop).get(4, FILE)


def test_a_layer_that_is_not_stored_is_named(loop: asyncio.AbstractEventLoop) -> None:
    with pytest.raises(Uploads, match=r"layer-0000.safetensors: the coordinator did not store it: told why"):
        files(grpc.StatusCode.RESOURCE_EXHAUSTED, loop).put(4, FILE.name, b"")
