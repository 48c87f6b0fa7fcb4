"""Files out of a package of the Python registry, without installing it. Knows no model and no data set.

pip downloads (so indexes, proxies and caches are as the user set them up) one version with one known
hash; the archive is read under size caps, and only plain files whose names were asked for leave it.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

MAX_MEMBERS = 10_000


class FetchError(Exception):
    """What could not be had: says what was tried, what was found, and what to do."""


@dataclass(frozen=True, slots=True)
class Package:
    """One file of the registry, pinned. `source`: its source archive is wanted, not its wheel."""

    name: str
    version: str
    sha256: str
    source: bool = False


@contextmanager
def downloaded(package: Package) -> Iterator[Path]:
    """The package's archive in a temporary directory. Raises FetchError with pip's words."""
    with tempfile.TemporaryDirectory(prefix="isthmus-") as tmp:
        wanted = Path(tmp) / "wanted.txt"
        wanted.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
        # By name, not `:all:`, which would have the build tools themselves built from source.
        only = [f"--{'no-binary' if package.source else 'only-binary'}", package.name]
        command = [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"),
            *("--no-deps", "--require-hashes", *only, "--dest", f"{tmp}/got", "--requirement", str(wanted)),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = "\n".join(done.stderr.strip().splitlines()[-8:]) or f"exit code {done.returncode}"
            raise FetchError(
                f"pip could not download {package.name}=={package.version}:\n{said}\n"
                "required: a reachable package index (see pip config, PIP_INDEX_URL, HTTPS_PROXY)"
            )
        files = sorted((Path(tmp) / "got").iterdir())
        if len(files) != 1:
            raise FetchError(f"pip left {len(files)} files for {package.name}; required one archive")
        yield files[0]


def extract(archive: Path, wanted: Callable[[PurePosixPath], bool], into: Path, max_bytes: int) -> list[Path]:
    """Write the members that `wanted` accepts into `into`, flat, by their last name; sorted.

    Raises FetchError for an archive that is none, more than `max_bytes` in all, or a name twice.
    """
    try:
        if archive.suffix == ".whl":
            return _extract_zip(archive, wanted, into, max_bytes)
        return _extract_tar(archive, wanted, into, max_bytes)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as e:
        raise FetchError(f"{archive.name}: found no readable archive ({e})") from None


def _extract_tar(
    archive: Path, wanted: Callable[[PurePosixPath], bool], into: Path, max_bytes: int
) -> list[Path]:
    written: list[Path] = []
    with tarfile.open(archive) as tar:
        for count, member in enumerate(tar):
            _check_count(archive, count)
            if not member.isfile() or not wanted(PurePosixPath(member.name)):
                continue
            max_bytes = _left(archive, max_bytes, member.size)
            member.name = PurePosixPath(member.name).name
            _check_new(archive, into / member.name)
            tar.extract(member, into, filter="data")  # refuses links, devices and paths that leave `into`
            written.append(into / member.name)
    return sorted(written)


def _extract_zip(
    archive: Path, wanted: Callable[[PurePosixPath], bool], into: Path, max_bytes: int
) -> list[Path]:
    written: list[Path] = []
    with zipfile.ZipFile(archive) as z:
        for count, member in enumerate(z.infolist()):
            _check_count(archive, count)
            if member.is_dir() or not wanted(PurePosixPath(member.filename)):
                continue
            # zipfile reads no more of a member than the size it states, so the cap holds
            max_bytes = _left(archive, max_bytes, member.file_size)
            member.filename = PurePosixPath(member.filename).name
            _check_new(archive, into / member.filename)
            written.append(Path(z.extract(member, into)))
    return sorted(written)


def _check_count(archive: Path, count: int) -> None:
    if count >= MAX_MEMBERS:
        raise FetchError(f"{archive.name}: found more than {MAX_MEMBERS} members; required fewer")


def _left(archive: Path, max_bytes: int, size: int) -> int:
    if size > max_bytes:
        raise FetchError(f"{archive.name}: found more bytes than the cap leaves ({size} > {max_bytes})")
    return max_bytes - size


def _check_new(archive: Path, path: Path) -> None:
    if path.exists():
        raise FetchError(f"{archive.name}: found two members named {path.name}; required one")
