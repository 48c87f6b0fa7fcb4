"""Text to token samples with stable ids: what a job's `data` means, the same on every worker.

All documents, in the order of their files' names, become one array of tokens. Sample `id` is its
tokens [id * L, id * L + L], L = sequence length: L inputs, and the same shifted by one as targets.
The held-out share are the ids with the smallest hash, whatever the seed; training indices count the
others in order. Nothing here knows steps, order or devices.

Tokens are kept in a file of the cache directory, named by what they were made from and mapped into
memory: workers of one machine share it, and a restart tokenizes nothing.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scheduler.job import DataSpec
from worker.documents import documents, find_files
from worker.tokenizer import END_TOKENS, DataError, Tokenizer, open_tokenizer

__all__ = ["DataError", "Dataset", "open_dataset"]

FORMAT = "isthmus-tokens/1"
"""Part of every cache key: changes whenever the same text would give other tokens."""

Tokens = NDArray[np.uint16] | NDArray[np.uint32]
Sample = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Samples of `sequence_length + 1` tokens; training ids 0 .. n_samples - 1, held-out 0 .. n_eval - 1."""

    digest: str
    """Of tokens, sample length and split: equal on two workers exactly if their samples are."""
    sequence_length: int
    tokenizer: Tokenizer
    separator: int | None
    """The token that begins a document, where documents are kept apart."""
    _tokens: Tokens
    _train: NDArray[np.int64]
    _eval: NDArray[np.int64]

    @property
    def vocab(self) -> int:
        """Token ids are below this."""
        return self.tokenizer.vocab

    @property
    def n_samples(self) -> int:
        """Training samples, one epoch."""
        return len(self._train)

    @property
    def n_eval(self) -> int:
        """Evaluation samples."""
        return len(self._eval)

    @property
    def n_tokens(self) -> int:
        return len(self._tokens)

    def sample(self, i: int) -> Sample:
        """Training sample `i`: int64, shape (sequence_length + 1,). IndexError beyond n_samples."""
        return self._at(self._train, i, "training")

    def eval_sample(self, i: int) -> Sample:
        """Held-out sample `i`, likewise; never part of any training sample but for one border token."""
        return self._at(self._eval, i, "evaluation")

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text)

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids)

    def _at(self, ids: NDArray[np.int64], i: int, kind: str) -> Sample:
        if not 0 <= i < len(ids):
            raise IndexError(f"found {kind} sample {i}; required 0 to {len(ids) - 1}")
        start = int(ids[i]) * self.sequence_length
        return self._tokens[start : start + self.sequence_length + 1].astype(np.int64)


def open_dataset(
    spec: DataSpec, sequence_length: int, base_dir: Path, cache_dir: Path | None = None
) -> Dataset:
    """The samples of `spec`, whose paths are relative to `base_dir`; without `cache_dir`, kept in memory.

    Raises DataError: no file, an empty or malformed one, less text than a sample, a bad tokenizer,
    a cache that cannot be written.
    """
    tokenizer = open_tokenizer(spec.tokenizer, base_dir)
    if spec.documents == "apart" and tokenizer.end is None:
        raise DataError(
            f"data.documents: found apart with the tokenizer {spec.tokenizer}, which has no token for the end"
            f" of a document; required one that has ({', '.join(END_TOKENS)}), or data.documents: joined"
        )
    files = find_files(spec.files, base_dir)
    dtype = np.dtype(np.uint16 if tokenizer.vocab <= 1 << 16 else np.uint32)
    if cache_dir is None:
        tokens: Tokens = np.concatenate(list(_packed(files, spec.text_key, tokenizer, dtype)))
    else:
        tokens = _cached(files, spec.text_key, tokenizer, dtype, cache_dir)
    train, held_out = _split(len(tokens), sequence_length, spec, files)
    key = f"{FORMAT} {sequence_length} {spec.held_out!r} {spec.eval_samples} {tokenizer.vocab} {dtype.name} "
    digest = hashlib.sha256(key.encode())
    _update(digest, tokens)
    separator = tokenizer.end if spec.documents == "apart" else None
    return Dataset(digest.hexdigest(), sequence_length, tokenizer, separator, tokens, train, held_out)


def _split(
    n_tokens: int, length: int, spec: DataSpec, files: list[Path]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ids for training and for evaluation, each ascending; the latter at most `eval_samples`."""
    n = max(0, (n_tokens - 1) // length)
    wants_eval = spec.held_out > 0 and spec.eval_samples > 0
    required = 2 if wants_eval else 1
    if n < required:
        names = ", ".join(p.name for p in files[:3]) + (", …" if len(files) > 3 else "")
        also = " (one to train on, one held out)" if wants_eval else ""
        raise DataError(
            f"{names}: found {n_tokens} tokens in all, fewer than {required} sample(s) of {length}{also}; "
            f"required at least {required * length + 1}: more text, or a shorter sequence_length"
        )
    if spec.held_out == 0:
        return np.arange(n, dtype=np.int64), np.empty(0, dtype=np.int64)
    n_held = min(n - 1, max(1, round(spec.held_out * n)))
    by_hash = np.argsort(_scrambled(n), kind="stable").astype(np.int64)
    held = by_hash[:n_held]
    # The first by hash, not the first in the text: a small evaluation still sees all of the text.
    return np.sort(by_hash[n_held:]), np.sort(held[: spec.eval_samples])


def _scrambled(n: int) -> NDArray[np.uint64]:
    """A 64-bit hash of each id 0 .. n - 1: the finalizer of SplitMix64 (Steele et al. 2014)."""
    x = (np.arange(n, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _packed(files: list[Path], text_key: str, tokenizer: Tokenizer, dtype: np.dtype) -> Iterator[Tokens]:
    """The tokens of all documents, a piece at a time, each document followed by the end token."""
    end = np.array([] if tokenizer.end is None else [tokenizer.end], dtype=dtype)
    for path in files:
        for document in documents(path, text_key):
            for piece in document:
                yield np.array(tokenizer.encode(piece), dtype=dtype)
            yield end


def _cached(
    files: list[Path], text_key: str, tokenizer: Tokenizer, dtype: np.dtype, cache_dir: Path
) -> Tokens:
    """The packed tokens, mapped read-only from the cache file, which is made first if it is not there."""
    key = hashlib.sha256(f"{FORMAT} {tokenizer.identity} {text_key} {dtype.name}\0".encode())
    for path in files:
        key.update(path.suffix.encode() + _sha256(path))
    cache = cache_dir / f"{key.hexdigest()[:32]}.{dtype.name}"
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with _alone(cache.with_suffix(".lock")):
            if not cache.exists():
                _write(cache, _packed(files, text_key, tokenizer, dtype))
    except OSError as e:
        raise DataError(
            f"{cache_dir}: the token cache cannot be written: {e.strerror or e}; required a writable "
            "directory with room for two to four bytes a token"
        ) from None
    if cache.stat().st_size == 0:  # an empty file cannot be mapped
        return np.empty(0, dtype=dtype)
    return np.memmap(cache, dtype=dtype, mode="r")


def _sha256(path: Path) -> bytes:
    try:
        with path.open("rb") as f:
            return hashlib.file_digest(f, "sha256").digest()
    except OSError as e:
        raise DataError(f"{path}: cannot be read: {e.strerror or e}") from None


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One process at a time: the first worker of a machine tokenizes, the others wait and share."""
    with lock.open("w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)  # released when the file is closed, also by a crash
        yield


def _write(path: Path, pieces: Iterator[Tokens]) -> None:
    """All of it or nothing: a temporary file in the same directory, synced, then renamed."""
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".")
    try:
        with os.fdopen(fd, "wb") as f:
            for piece in pieces:
                f.write(piece.tobytes())
            f.flush()
            os.fsync(f.fileno())
        Path(temporary).replace(path)
    except BaseException:
        with suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise


def _update(digest: hashlib._Hash, tokens: Tokens) -> None:
    """Hash in pieces: the array may be a mapped file larger than memory. Little-endian, as it is stored."""
    step = 1 << 24
    for i in range(0, len(tokens), step):
        digest.update(np.ascontiguousarray(tokens[i : i + step]).data)
