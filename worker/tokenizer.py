"""Text to token ids and back: bytes, or a `tokenizers` JSON file. Knows no samples and no model.

Both kinds end every document with one token where they have one, so that a model can learn where
documents end.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Protocol

MAX_TOKENIZER_BYTES = 256 << 20
END_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>", "[EOS]")
"""Names under which published tokenizers keep the end of a document, looked for in this order."""


class DataError(Exception):
    """Text, tokenizer or cache that cannot be used: says what was found, where, and what is required."""


class Tokenizer(Protocol):
    """`vocab` ids, all below it; `end` the end-of-document id or None; `identity` tells two apart."""

    vocab: int
    end: int | None
    identity: str

    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: list[int]) -> str: ...


class ByteTokenizer:
    """UTF-8's bytes are ids 0 … 255; 256 ends a document. Any text survives encode and decode."""

    vocab = 257
    end: int | None = 256
    identity = "bytes/1"

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        """Bytes that are no UTF-8 (a model may write them) become U+FFFD; ids above 255 vanish."""
        return bytes(i for i in ids if 0 <= i < 256).decode(errors="replace")


class JsonTokenizer:
    """A `tokenizers` JSON file, as Hugging Face writes it. No special tokens are added around a text."""

    def __init__(self, path: Path) -> None:
        """Raises DataError if the file is missing, too large or not a tokenizer."""
        raw = _read(path)
        self._inner = _parse(raw, path)
        ids: dict[str, int] = self._inner.get_vocab(with_added_tokens=True)
        if not ids:
            raise DataError(f"{path}: found a tokenizer without tokens; required at least two")
        self.vocab = max(ids.values()) + 1
        self.end = next((ids[name] for name in END_TOKENS if name in ids), None)
        self.identity = f"json/{hashlib.sha256(raw).hexdigest()}"

    def encode(self, text: str) -> list[int]:
        return list(self._inner.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: list[int]) -> str:
        return str(self._inner.decode(ids, skip_special_tokens=True))


def open_tokenizer(name: str, base_dir: Path) -> Tokenizer:
    """`bytes`, or a JSON file (or a directory that holds tokenizer.json) relative to `base_dir`."""
    if name == "bytes":
        return ByteTokenizer()
    path = base_dir / name
    return JsonTokenizer(path / "tokenizer.json" if path.is_dir() else path)


def _read(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_TOKENIZER_BYTES:
            raise DataError(f"{path}: found {size} bytes; required at most {MAX_TOKENIZER_BYTES}")
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"tokenizer: found no file {path}; required `bytes`, or the path of a tokenizers JSON file "
            "(or of a directory with tokenizer.json) relative to the data directory"
        ) from None
    except OSError as e:
        raise DataError(f"tokenizer: {path} cannot be read: {e.strerror}") from None


def _parse(raw: bytes, path: Path) -> Any:
    try:
        from tokenizers import Tokenizer as Inner
    except ImportError:
        raise DataError(
            f"{path}: the package `tokenizers` is not installed; install isthmus[worker], "
            "or use `tokenizer: bytes`"
        ) from None
    try:
        return Inner.from_str(raw.decode())
    except Exception as e:  # the library raises bare Exception for everything
        raise DataError(f"{path}: found no tokenizer ({e}); required a tokenizers JSON file") from None
