"""The seam between a run and its outlets: a Show that hands every event on."""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any, Protocol, Self

from ..progress import Show

Event = dict[str, Any]


class OutletMissing(Exception):
    """An outlet was asked for whose package is not installed: says what to install."""


class Outlet(Protocol):
    """Takes events until it is closed; may raise anything, and is then asked no more."""

    name: str

    def take(self, event: Event) -> None: ...
    def close(self) -> None: ...


class WithOutlets:
    """Shows every event with `show`, then hands it to each outlet that still works."""

    def __init__(self, show: Show, outlets: Iterable[Outlet]) -> None:
        self._show = show
        self._outlets = list(outlets)

    def __call__(self, event: Event) -> None:
        self._show(event)
        for outlet in tuple(self._outlets):
            try:
                outlet.take(event)
            except Exception as error:  # whatever its package raises: the run goes on
                self._leave(outlet, error)

    def _leave(self, outlet: Outlet, error: Exception) -> None:
        self._outlets.remove(outlet)
        reason = f"{outlet.name} is told nothing more: {type(error).__name__}: {error}"
        self._show({"event": "warning", "reason": reason})

    def __enter__(self) -> Self:
        self._show.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for outlet in tuple(self._outlets):
            try:
                outlet.close()
            except Exception as broken:  # as above
                self._leave(outlet, broken)
        self._show.__exit__(kind, error, trace)
