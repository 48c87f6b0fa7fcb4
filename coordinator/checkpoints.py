"""The directory of checkpoints: files arrive in pieces, are hashed, flushed and renamed; the manifest last.

A checkpoint exists when its manifest does. Nothing is read back without comparing its hash with
the manifest, and an earlier checkpoint is never taken in place of a broken one unasked. What is
named and kept how is `scheduler.checkpoint_layout`'s; tensors inside the files are nobody's here.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from scheduler.checkpoint_layout import (
    CHUNK_BYTES,
    MANIFEST,
    MAX_FILE_BYTES,
    LayerFileInfo,
    Manifest,
    ManifestError,
    parse_manifest,
    safe_file_name,
    step_dir,
    step_of_dir,
    to_remove,
)

DIRECTORY = "checkpoints"
PART = ".part"
MAX_MANIFEST_BYTES = 64 << 20


class CheckpointError(Exception):
    """Root: CheckpointCorrupt | CheckpointMissing | CheckpointWriteError | UploadRefused."""


class CheckpointCorrupt(CheckpointError):
    """A file is not what the manifest says: names the file, what was found, what is required."""


class CheckpointMissing(CheckpointError):
    """There is no such checkpoint, or none at all."""


class CheckpointWriteError(CheckpointError):
    """The disk did not take it (full, read-only); checkpoints that exist are untouched."""


class UploadRefused(CheckpointError):
    """A file that was announced or sent other than it must be."""


def _flush_directory(path: Path) -> None:
    """Make renames in `path` survive a power cut."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Upload:
    """One file on its way in: `write` pieces in order, then `commit`; or `abandon`."""

    def __init__(self, directory: Path, name: str, total_bytes: int) -> None:
        self._final = directory / name
        self._part = directory / f"{name}.{uuid4().hex[:8]}{PART}"
        self._total = total_bytes
        self._hash = hashlib.sha256()
        self.n_bytes = 0
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = self._part.open("xb")
        except OSError as e:
            raise CheckpointWriteError(f"{self._part}: {e.strerror}") from e

    def write(self, data: bytes, offset: int) -> None:
        """Raises UploadRefused for a piece that is out of place, CheckpointWriteError for a full disk."""
        if offset != self.n_bytes:
            raise UploadRefused(
                f"{self._final.name}: found a piece at {offset}, required one at {self.n_bytes}"
            )
        if self.n_bytes + len(data) > self._total:
            raise UploadRefused(f"{self._final.name}: found more than the {self._total} bytes announced")
        try:
            self._file.write(data)
        except OSError as e:
            raise CheckpointWriteError(f"{self._part}: {e.strerror}") from e
        self._hash.update(data)
        self.n_bytes += len(data)

    def commit(self, sha256: str) -> LayerFileInfo:
        """Flush, compare, rename. Raises UploadRefused if size or hash differ, CheckpointWriteError."""
        found = self._hash.hexdigest()
        if self.n_bytes != self._total:
            raise UploadRefused(f"{self._final.name}: found {self.n_bytes} bytes, required {self._total}")
        if found != sha256:
            raise UploadRefused(f"{self._final.name}: found sha256 {found}, required {sha256}; send it again")
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._part.rename(self._final)
        except OSError as e:
            raise CheckpointWriteError(f"{self._final}: {e.strerror}") from e
        return LayerFileInfo(self._final.name, found, self.n_bytes)

    def abandon(self) -> None:
        """Forget what came. Idempotent, and harmless after `commit`."""
        with suppress(OSError):  # the disk is full, and what was buffered is not wanted
            self._file.close()
        self._part.unlink(missing_ok=True)


class CheckpointStore:
    """All checkpoints below a state directory."""

    def __init__(self, state_dir: Path) -> None:
        self.root = state_dir / DIRECTORY

    def directory(self, step: int) -> Path:
        return self.root / step_dir(step)

    def upload(self, step: int, name: str, total_bytes: int, cap_bytes: int = MAX_FILE_BYTES) -> Upload:
        """Begin to take a file. Raises UploadRefused (its name or size cannot be), CheckpointWriteError."""
        try:
            safe_file_name(name)
        except ManifestError as e:
            raise UploadRefused(str(e)) from e
        if not 0 < total_bytes <= cap_bytes:
            raise UploadRefused(f"{name}: found a size of {total_bytes} bytes, required 1 .. {cap_bytes}")
        return Upload(self.directory(step), name, total_bytes)

    def write_manifest(self, manifest: Manifest) -> int:
        """The checkpoint exists from here on; returns its bytes. Raises CheckpointWriteError."""
        directory = self.directory(manifest.step)
        part = directory / f"{MANIFEST}{PART}"
        try:
            for f in manifest.files:
                size = (directory / f.name).stat().st_size
                if size != f.n_bytes:
                    raise CheckpointWriteError(f"{f.name}: found {size} bytes on disk, required {f.n_bytes}")
            wanted = {f.name for f in manifest.files}
            for stray in directory.iterdir():  # of an attempt that never got its manifest
                if stray.name not in wanted:
                    stray.unlink()
            with part.open("w") as out:
                out.write(manifest.to_json())
                out.flush()
                os.fsync(out.fileno())
            part.rename(directory / MANIFEST)
            _flush_directory(directory)
            _flush_directory(self.root)
        except OSError as e:
            raise CheckpointWriteError(f"{directory}: {e.strerror or e}") from e
        return sum(f.n_bytes for f in manifest.files)

    def steps(self) -> tuple[int, ...]:
        """Steps of the checkpoints that exist, ascending."""
        if not self.root.is_dir():
            return ()
        found = [
            s
            for p in self.root.iterdir()
            if (s := step_of_dir(p.name)) is not None and (p / MANIFEST).is_file()
        ]
        return tuple(sorted(found))

    def manifest(self, step: int) -> Manifest:
        """Raises CheckpointMissing, CheckpointCorrupt."""
        path = self.directory(step) / MANIFEST
        try:
            if path.stat().st_size > MAX_MANIFEST_BYTES:
                raise CheckpointCorrupt(f"{path}: larger than {MAX_MANIFEST_BYTES} bytes, not a manifest")
            manifest = parse_manifest(path.read_text(), str(path))
        except FileNotFoundError as e:
            have = ", ".join(map(str, self.steps())) or "none"
            raise CheckpointMissing(
                f"{self.root}: found no checkpoint of step {step}; there are: {have}"
            ) from e
        except (ManifestError, UnicodeDecodeError) as e:
            raise CheckpointCorrupt(f"{e}{self._others(step)}") from e
        if manifest.step != step:
            raise CheckpointCorrupt(
                f"{path}: found step {manifest.step}, required {step}{self._others(step)}"
            )
        return manifest

    def verify(self, step: int) -> Manifest:
        """Read every byte and compare it with the manifest. Raises CheckpointCorrupt, naming the file."""
        manifest = self.manifest(step)
        for f in manifest.files:
            path = self.directory(step) / f.name
            try:
                found = _sha256(path)
            except OSError as e:
                raise CheckpointCorrupt(f"{path}: {e.strerror}{self._others(step)}") from e
            if found != f.sha256:
                raise CheckpointCorrupt(
                    f"{path}: found sha256 {found[:16]}…, required {f.sha256[:16]}…{self._others(step)}"
                )
        return manifest

    def _others(self, step: int) -> str:
        others = [s for s in self.steps() if s != step]
        if not others:
            return "; there is no other checkpoint"
        return (
            f"; it is not replaced by another unasked: to go on from an earlier one pass --resume-step "
            f"({', '.join(map(str, others))})"
        )

    def read(self, step: int, name: str) -> Iterator[tuple[int, int, bytes]]:
        """The pieces of a file: (offset, total, bytes). Raises CheckpointMissing."""
        try:
            path = self.directory(step) / safe_file_name(name)
            with path.open("rb") as f:
                total = os.fstat(f.fileno()).st_size
                offset = 0
                while piece := f.read(CHUNK_BYTES):
                    yield offset, total, piece
                    offset += len(piece)
        except (OSError, ManifestError) as e:
            raise CheckpointMissing(f"checkpoint of step {step}: no file {name[:80]!r} ({e})") from e

    def prune(self, keep: int, keep_best: bool) -> tuple[int, ...]:
        """Remove what is neither among the last `keep` nor the best; returns the steps removed."""
        rated = [(s, self.manifest(s).eval_loss) for s in self.steps()]
        remove, _ = to_remove(rated, keep, keep_best)
        for step in remove:
            # The manifest first: what is left if this is interrupted is no checkpoint.
            (self.directory(step) / MANIFEST).unlink()
            shutil.rmtree(self.directory(step))
        return remove

    def discard(self, step: int) -> None:
        """Remove an unfinished checkpoint. One that has its manifest is left alone."""
        if not (self.directory(step) / MANIFEST).exists():
            shutil.rmtree(self.directory(step), ignore_errors=True)

    def set_aside_after(self, step: int) -> tuple[int, ...]:
        """Going on from `step`: rename later checkpoints out of the way, remove what is unfinished."""
        aside = []
        for path in sorted(self.root.iterdir()) if self.root.is_dir() else ():
            at = step_of_dir(path.name)
            if at is None:
                continue
            if not (path / MANIFEST).exists():
                shutil.rmtree(path, ignore_errors=True)
            elif at > step:
                path.rename(path.with_name(f"aside-{path.name}-{uuid4().hex[:6]}"))
                aside.append(at)
        return tuple(aside)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while piece := f.read(CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()
