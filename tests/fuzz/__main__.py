"""Fuzz one target for a while: python -m tests.fuzz NAME --seconds N [--seed S].

With atheris installed (pip install atheris; on Linux) inputs are steered by coverage, else they are files of
the corpus changed at random. What breaks is written into the corpus and named; keep it there.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import mkdtemp

CORPUS = Path(__file__).parent / "corpus"
INSTRUMENTED = ["coordinator", "worker", "protos", "scheduler", "compression", "tests.fuzz"]


def changed(rng: random.Random, seeds: Sequence[bytes]) -> bytes:
    """A seed with a few bytes changed, cut out, doubled, or spliced with another seed."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randint(1, 6)):
        at = rng.randint(0, len(data))
        match rng.randint(0, 4):
            case 0 if at < len(data):
                data[at] = rng.randint(0, 255)
            case 1:
                del data[at : at + rng.randint(1, 16)]
            case 2:
                data[at:at] = data[at : at + rng.randint(1, 64)]
            case 3:
                other = rng.choice(seeds)
                start = rng.randint(0, len(other))
                data[at:] = other[start:]
            case _:
                data[at:at] = rng.randbytes(rng.randint(1, 8))
    return bytes(data)


def keep(name: str, data: bytes) -> str:
    path = CORPUS / name / f"found-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    return str(path)


def by_chance(name: str, seconds: float, seed: int) -> int:
    """Returns how many inputs were tried; raises what the target raised."""
    from tests.fuzz.targets import TARGETS, corpus

    rng, target = random.Random(seed), TARGETS[name]
    seeds = [data for _, data in corpus(name)]
    until, tried = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        data = changed(rng, seeds)
        try:
            target(data)
        except BaseException:
            print(f"{name}: broken by {keep(name, data)}", file=sys.stderr)
            raise
        tried += 1
    return tried


def by_coverage(name: str, seconds: float, seed: int) -> None:
    """Does not return: atheris ends the process, with 0 if nothing was found. Raises ImportError."""
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        from tests.fuzz.targets import TARGETS
    target = TARGETS[name]
    target(b"")  # what is imported late is imported now
    where = CORPUS / name
    argv = [
        sys.argv[0],
        f"-max_total_time={int(seconds)}",
        f"-seed={seed}",
        f"-artifact_prefix={where}/found-",
        "-max_len=4096",
        mkdtemp(),  # what is new goes here; the corpus is only read
        str(where),
    ]
    atheris.Setup(argv, target)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=sorted(d.name for d in CORPUS.iterdir()))
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--by-chance", action="store_true", help="without atheris, even if it is there")
    args = parser.parse_args()
    if not args.by_chance:
        try:
            by_coverage(args.name, args.seconds, args.seed)
        except ImportError:
            print("found no atheris: inputs are changed at random", file=sys.stderr)
    tried = by_chance(args.name, args.seconds, args.seed)
    print(f"{args.name}: {tried} inputs, nothing broke")


if __name__ == "__main__":
    main()
