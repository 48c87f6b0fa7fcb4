"""Data: samples are the text, their ids are stable, the split is clean, and mistakes are named."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from scheduler.job import DataSpec
from worker.data import Dataset, open_dataset
from worker.tokenizer import ByteTokenizer, DataError

TEXT = Path(__file__).parent.parent / "data" / "text.txt"


def opened(root: Path, *files: str, length: int = 8, cache: Path | None = None, **spec: object) -> Dataset:
    whole = {"held_out": 0.0, "eval_samples": 0, **spec, "files": files}
    return open_dataset(DataSpec.model_validate(whole, strict=False), length, root, cache)


def all_samples(d: Dataset) -> np.ndarray:
    return np.stack([d.sample(i) for i in range(d.n_samples)])


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(DataError) as e:
        call()
    return str(e.value)


@pytest.fixture
def bpe(tmp_path: Path) -> Path:
    inner = Tokenizer(BPE())
    inner.pre_tokenizer = ByteLevel(add_prefix_space=False)
    inner.decoder = ByteLevelDecoder()
    inner.train(
        [str(TEXT)], BpeTrainer(vocab_size=400, special_tokens=["<|endoftext|>"], show_progress=False)
    )
    inner.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_documents_are_kept_apart_by_the_token_that_ends_them(tmp_path: Path, bpe: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one and two"}\n{"text": "three"}\n')
    joined, apart = (opened(tmp_path, "a.jsonl", documents=d) for d in ("joined", "apart"))
    assert joined.separator is None
    assert apart.separator == 256
    assert (all_samples(apart) == all_samples(joined)).all()
    assert (all_samples(apart) == 256).any()
    inner = json.loads(bpe.read_text())
    text = json.dumps(inner).replace("<|endoftext|>", "<|other|>")
    bpe.write_text(text)
    message = refused(lambda: opened(tmp_path, "a.jsonl", documents="apart", tokenizer=bpe.name))
    assert "found apart with the tokenizer tokenizer.json, which has no token for the end" in message
    assert "required" in message
    opened(tmp_path, "a.jsonl", documents="joined", tokenizer=bpe.name, length=2)


def test_samples_are_the_text_in_order_shifted_by_one(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("second file")
    (tmp_path / "a.txt").write_text("first, é!")
    packed = [*"first, é!".encode(), 256, *b"second file", 256]
    d = opened(tmp_path, "*.txt", length=5)
    assert (d.n_samples, d.n_eval, d.vocab, d.n_tokens) == ((len(packed) - 1) // 5, 0, 257, len(packed))
    for i in range(d.n_samples):
        assert d.sample(i).dtype == np.int64
        assert d.sample(i).tolist() == packed[5 * i : 5 * i + 6]


def test_order_of_patterns_and_overlap_change_nothing(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt", "sub/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"the text of {name} " * 4)
    digests = {
        opened(tmp_path, *patterns).digest
        for patterns in (("**/*.txt",), ("sub/*.txt", "*.txt"), ("b.txt", "./a.txt", "*.txt", "sub/c.txt"))
    }
    assert len(digests) == 1


def test_the_kinds_of_file_give_the_same_documents(tmp_path: Path) -> None:
    texts = ["one document", "another,\nof two lines", "and a third: ünïcödé"]
    lines = [json.dumps({"text": t, "n": 1}) for t in texts]
    (tmp_path / "d.jsonl").write_text("\n".join([lines[0], "", *lines[1:]]) + "\n")
    pq.write_table(pa.table({"text": texts, "n": [1, 2, 3]}), tmp_path / "d.parquet")
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.txt").write_text(text)
    as_json, as_parquet = opened(tmp_path, "d.jsonl"), opened(tmp_path, "d.parquet")
    assert as_json.digest == as_parquet.digest == opened(tmp_path, "?.txt").digest
    assert (all_samples(as_json) == 256).sum() == 2 or as_json.n_tokens % 8 == 1


@given(
    n_chars=st.integers(40, 3000),
    length=st.integers(2, 12),
    share=st.floats(0, 0.9),
    n_eval=st.integers(1, 9),
)
@settings(max_examples=40, deadline=None)
def test_the_split_is_complete_and_clean(
    tmp_path_factory: pytest.TempPathFactory, n_chars: int, length: int, share: float, n_eval: int
) -> None:
    root = tmp_path_factory.getbasetemp() / "split"
    root.mkdir(exist_ok=True)
    # Two-byte characters, each used once: any three bytes in a row occur only there.
    text = "".join(chr(0x100 + i) for i in range(n_chars // 2))
    (root / "t.txt").write_text(text, encoding="utf-8")
    d = opened(root, "t.txt", length=length, held_out=share, eval_samples=n_eval)
    packed = [*text.encode(), 256]
    total = (len(packed) - 1) // length
    ids = {tuple(packed[i * length : (i + 1) * length + 1]): i for i in range(total)}
    train = [ids[tuple(d.sample(i).tolist())] for i in range(d.n_samples)]
    held = [ids[tuple(d.eval_sample(i).tolist())] for i in range(d.n_eval)]
    assert train == sorted(set(train))
    assert held == sorted(set(held))
    assert not set(train) & set(held)
    wanted = 0 if share == 0 else min(total - 1, max(1, round(share * total)))
    assert (d.n_samples, d.n_eval) == (total - wanted, min(n_eval, wanted))


def test_the_cache_gives_the_same_and_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def open_cached() -> Dataset:
        return opened(TEXT.parent, "text.txt", length=32, cache=tmp_path / "c", held_out=0.1, eval_samples=4)

    fresh = open_cached()
    kept = opened(TEXT.parent, "text.txt", length=32, held_out=0.1, eval_samples=4)
    assert fresh.digest == kept.digest
    assert np.array_equal(all_samples(fresh), all_samples(kept))

    def never(_self: ByteTokenizer, _text: str) -> list[int]:
        raise AssertionError("tokenized although the cache has it")

    monkeypatch.setattr(ByteTokenizer, "encode", never)
    assert open_cached().digest == fresh.digest
    assert sorted(p.suffix for p in (tmp_path / "c").iterdir()) == [".lock", ".uint16"]


def test_a_changed_text_or_a_damaged_cache_changes_the_digest(tmp_path: Path) -> None:
    text = tmp_path / "t.txt"
    text.write_text("some text " * 20)
    first = opened(tmp_path, "t.txt", cache=tmp_path / "c")
    (cache,) = (tmp_path / "c").glob("*.uint16")
    raw = bytearray(cache.read_bytes())
    raw[100] ^= 1
    cache.write_bytes(raw)
    assert opened(tmp_path, "t.txt", cache=tmp_path / "c").digest != first.digest
    text.write_text("some test " * 20)
    assert opened(tmp_path, "t.txt", cache=tmp_path / "c").digest != first.digest
    assert len(list((tmp_path / "c").glob("*.uint16"))) == 2


def test_digest_tells_sample_length_and_split_apart() -> None:
    def digest(length: int, held_out: float, n_eval: int) -> str:
        return opened(TEXT.parent, "text.txt", length=length, held_out=held_out, eval_samples=n_eval).digest

    digests = [digest(8, 0, 0), digest(9, 0, 0), digest(8, 0.1, 2), digest(8, 0.1, 3), digest(8, 0.2, 2)]
    assert len(set(digests)) == 5
    assert digest(8, 0, 0) == digests[0]


OPEN = """
import sys
from pathlib import Path
from scheduler.job import DataSpec
from worker.data import open_dataset
spec = DataSpec(files=("text.txt",), held_out=0.0, eval_samples=0)
print(open_dataset(spec, 32, Path(sys.argv[1]), Path(sys.argv[2])).digest)
"""


def test_workers_of_one_machine_share_one_cache(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OPEN, str(TEXT.parent), str(tmp_path)]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    digests = [w.communicate(timeout=60)[0].strip() for w in workers]
    assert digests == [opened(TEXT.parent, "text.txt", length=32).digest] * 3
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".lock", ".uint16"]


def test_a_tokenizer_file_is_used_by_path_or_directory(bpe: Path) -> None:
    (bpe.parent / "a.txt").write_text("O Romeo, Romeo! wherefore art thou Romeo? " * 5)
    d = opened(bpe.parent, "a.txt", tokenizer="tokenizer.json")
    assert d.digest == opened(bpe.parent, "a.txt", tokenizer=".").digest
    assert d.vocab == 400
    assert d.tokenizer.end == 0
    text = "wherefore art thou Romeo?"
    assert d.decode(d.encode(text)) == text
    assert len(d.encode(text)) < len(text)
    assert d.n_tokens < len("O Romeo, Romeo! wherefore art thou Romeo? " * 5)


@given(st.text())
def test_bytes_give_any_text_back(text: str) -> None:
    t = ByteTokenizer()
    ids = t.encode(text)
    assert all(0 <= i < t.vocab for i in ids)
    assert t.decode([*ids, t.end or 0]) == text


def test_bytes_decode_whatever_a_model_writes() -> None:
    assert ByteTokenizer().decode([0xFF, 65, 256, 66, 0xC3]) == "\ufffdAB\ufffd"


def test_a_long_text_in_many_pieces_is_the_same_text(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = opened(TEXT.parent, "text.txt", length=64)
    monkeypatch.setattr("worker.documents.PIECE_CHARS", 100)
    assert opened(TEXT.parent, "text.txt", length=64).digest == whole.digest


def test_a_missing_file_names_pattern_and_directory(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text " * 20)
    message = refused(lambda: opened(tmp_path, "a.txt", "none/*.txt"))
    assert "'none/*.txt'" in message
    assert str(tmp_path) in message


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.txt", b"", "a.txt: found an empty file"),
        ("a.csv", b"x", "found the kind '.csv'; required one of .txt, .jsonl, .parquet"),
        ("a.txt", b"line\n\xffbad", "a.txt: found the byte 0xff"),
        ("a.txt", b"short", "a.txt: found 6 tokens in all"),
        ("a.jsonl", b'{"text": "x"}\n{"text": \n', "a.jsonl:2: found no JSON"),
        ("a.jsonl", b'{"text": "x"}\n\n["x"]\n', "a.jsonl:3: found a list; required an object"),
        ("a.jsonl", b'{"body": "x"}\n', "a.jsonl:1: found no key 'text' (keys: body)"),
        ("a.jsonl", b'{"text": 5}\n', "a.jsonl:1: found 'text' to be a int; required text"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "a.jsonl:1: found half a surrogate pair"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl:1: found no JSON"),
        ("a.jsonl", b'{"text": "\xff"}\n', "a.jsonl:1: found no JSON"),
        ("a.parquet", b"PAR1 but not really", "a.parquet: found no readable Parquet"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    for cache in (None, tmp_path / "cache"):
        assert told in refused(lambda cache=cache: opened(tmp_path, name, cache=cache))  # type: ignore[misc]
    assert not list(tmp_path.glob("cache/*.uint16.*"))  # nothing half-written


def test_a_long_json_line_is_refused_before_it_is_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.documents.MAX_LINE_BYTES", 50)
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x" * 50}))
    assert "a.jsonl:1: found a line longer than 50 bytes" in refused(lambda: opened(tmp_path, "a.jsonl"))


def test_parquet_names_column_and_row(tmp_path: Path) -> None:
    pq.write_table(pa.table({"body": ["x"]}), tmp_path / "a.parquet")
    assert "found no column 'text' (columns: body)" in refused(lambda: opened(tmp_path, "a.parquet"))
    pq.write_table(pa.table({"text": ["x", None]}), tmp_path / "a.parquet")
    assert "row 2: found 'text' to be a NoneType" in refused(lambda: opened(tmp_path, "a.parquet"))


def test_text_too_short_for_the_split_says_how_much_is_needed(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 12)
    message = refused(lambda: opened(tmp_path, "a.txt", length=8, held_out=0.1, eval_samples=1))
    assert "one held out" in message
    assert "required at least 17" in message
    assert opened(tmp_path, "a.txt", length=8).n_samples == 1


def test_a_bad_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text " * 20)
    (tmp_path / "bad.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    assert "no file" in refused(lambda: opened(tmp_path, "a.txt", tokenizer="none.json"))
    assert "bad.json: found no tokenizer" in refused(lambda: opened(tmp_path, "a.txt", tokenizer="bad.json"))
    assert "empty/tokenizer.json" in refused(lambda: opened(tmp_path, "a.txt", tokenizer="empty"))


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text " * 20)
    assert "token cache cannot be written" in refused(
        lambda: opened(tmp_path, "a.txt", cache=tmp_path / "a.txt" / "c")
    )


def test_a_full_disk_leaves_no_half_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("text " * 20)

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as m:
        m.setattr("worker.data.os.fsync", full)
        assert "No space left" in refused(lambda: opened(tmp_path, "a.txt", cache=tmp_path / "c"))
    assert [p.suffix for p in (tmp_path / "c").iterdir()] == [".lock"]
    assert opened(tmp_path, "a.txt", cache=tmp_path / "c").n_samples > 0


def test_a_sample_out_of_range_is_refused() -> None:
    d = opened(TEXT.parent, "text.txt", length=64, held_out=0.1, eval_samples=3)
    with pytest.raises(IndexError, match=f"required 0 to {d.n_samples - 1}"):
        d.sample(d.n_samples)
    with pytest.raises(IndexError, match="found training sample -1"):
        d.sample(-1)
    with pytest.raises(IndexError, match="found evaluation sample 3; required 0 to 2"):
        d.eval_sample(3)
