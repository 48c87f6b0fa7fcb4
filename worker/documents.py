"""Files to documents: text, JSON lines, Parquet. Knows no tokens. Streams; never holds a whole file.

A document comes in pieces of at most about a million characters that end at a line's end where they
can, so that a file of any size can be tokenized in little memory.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator
from pathlib import Path

from worker.tokenizer import DataError

PIECE_CHARS = 1 << 20
MAX_LINE_BYTES = 64 << 20
"""Of a JSON line, which must be parsed whole."""

Document = Iterator[str]


def find_files(patterns: tuple[str, ...], base_dir: Path) -> list[Path]:
    """Files of all patterns (relative to `base_dir`), each once, sorted by name.

    Raises DataError naming the pattern and the directory if a pattern finds none, and for a file
    of an unknown kind.
    """
    found: set[str] = set()
    for pattern in patterns:
        names = [n for n in glob.glob(pattern, root_dir=base_dir, recursive=True) if (base_dir / n).is_file()]
        if not names:
            raise DataError(
                f"data.files: found no file for {pattern!r} in {base_dir.resolve()}; "
                "required at least one (is the data directory right? was the data fetched?)"
            )
        found.update(Path(n).as_posix() for n in names)
    files = [base_dir / name for name in sorted(found)]
    for path in files:
        if path.suffix not in READERS:
            raise DataError(f"{path}: found the kind {path.suffix!r}; required one of {', '.join(READERS)}")
        if path.stat().st_size == 0:
            raise DataError(f"{path}: found an empty file; required text")
    return files


def documents(path: Path, text_key: str) -> Iterator[Document]:
    """The documents of one file, in order, each as its pieces. Raises DataError naming file and line."""
    try:
        yield from READERS[path.suffix](path, text_key)
    except OSError as e:
        raise DataError(f"{path}: cannot be read: {e.strerror or e}") from None


def _text(path: Path, text_key: str) -> Iterator[Document]:  # noqa: ARG001 - the readers' one signature
    yield _text_pieces(path)


def _text_pieces(path: Path) -> Document:
    line = 1
    with path.open(encoding="utf-8-sig", newline="") as f:
        while True:
            try:
                piece = f.read(PIECE_CHARS) + f.readline(PIECE_CHARS)
            except UnicodeDecodeError as e:
                raise DataError(
                    f"{path}: found the byte 0x{e.object[e.start]:02x} after line {line}; required UTF-8 text"
                ) from None
            if not piece:
                return
            line += piece.count("\n")
            yield piece


def _json_lines(path: Path, text_key: str) -> Iterator[Document]:
    with path.open("rb") as f:
        number = 0
        while raw := f.readline(MAX_LINE_BYTES + 1):
            number += 1
            where = f"{path}:{number}"
            if len(raw) > MAX_LINE_BYTES:
                raise DataError(f"{where}: found a line longer than {MAX_LINE_BYTES} bytes; required shorter")
            if not raw.strip():
                continue
            try:
                record = json.loads(raw.decode("utf-8-sig" if number == 1 else "utf-8"))
            except (ValueError, RecursionError) as e:
                raise DataError(f"{where}: found no JSON ({e}); required one object a line") from None
            if not isinstance(record, dict):
                raise DataError(f"{where}: found a {type(record).__name__}; required an object")
            if text_key not in record:
                keys = ", ".join(sorted(record)[:10]) or "none"
                raise DataError(f"{where}: found no key {text_key!r} (keys: {keys}); required data.text_key")
            yield _checked(record[text_key], where, text_key)


def _parquet(path: Path, text_key: str) -> Iterator[Document]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DataError(f"{path}: the package `pyarrow` is not installed; install isthmus[worker]") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns = file.schema_arrow.names
            if text_key not in columns:
                raise DataError(
                    f"{path}: found no column {text_key!r} (columns: {', '.join(columns[:10])}); "
                    "required data.text_key"
                )
            row = 0
            for batch in file.iter_batches(batch_size=256, columns=[text_key]):
                for value in batch.column(0).to_pylist():
                    row += 1
                    yield _checked(value, f"{path}, row {row}", text_key)
    except pyarrow.ArrowException as e:
        raise DataError(f"{path}: found no readable Parquet ({e}); required a Parquet file") from None


READERS = {".txt": _text, ".jsonl": _json_lines, ".parquet": _parquet}


def _checked(value: object, where: str, text_key: str) -> Document:
    if not isinstance(value, str):
        raise DataError(f"{where}: found {text_key!r} to be a {type(value).__name__}; required text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise DataError(f"{where}: found half a surrogate pair in {text_key!r}; required text") from None
    return iter((value,))
