"""`worker export | generate`: a checkpoint as a model, without a coordinator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from protos.ending import end

Checkpoint = Annotated[Path, typer.Argument(help="STATE/checkpoints/step-…", exists=True, file_okay=False)]
DataDir = Annotated[Path | None, typer.Option(help="Paths of the job are relative to it; default: here.")]


def export(
    checkpoint: Checkpoint,
    target: Annotated[Path, typer.Argument(help="Directory to write.")],
    data_dir: DataDir = None,
) -> None:
    """Write a checkpoint in Hugging Face's layout, to be loaded by `transformers`."""
    from worker.export import ExportError, export_checkpoint

    try:
        export_checkpoint(checkpoint, target, data_dir or Path())
    except ExportError as e:
        end(e.code, str(e))
    typer.echo(f"written: {target}")


def generate(
    checkpoint: Checkpoint,
    prompt: Annotated[str, typer.Option(help="Text to continue.")] = "\n",
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 200,
    temperature: Annotated[float, typer.Option(min=0, help="0 takes the likeliest.")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="0: of all.")] = 40,
    seed: int = 0,
    data_dir: DataDir = None,
) -> None:
    """Continue PROMPT with the model of a checkpoint."""
    from worker.export import ExportError, continue_text

    try:
        text = continue_text(checkpoint, prompt, max_new_tokens, temperature, top_k, seed, data_dir or Path())
    except ExportError as e:
        end(e.code, str(e))
    typer.echo(text)
