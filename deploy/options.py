"""Options that more than one command of ours has, said once."""

from __future__ import annotations

from typing import Annotated

import typer

from deploy.local import Backend

ChosenBackend = Annotated[
    Backend,
    typer.Option(
        help="relay: needs no privilege. switch: real TCP over network namespaces; Linux, root or user "
        "namespaces; tensors go unencrypted between addresses that exist on this machine only."
    ),
]
