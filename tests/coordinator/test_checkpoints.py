"""Checkpoints on disk: taken piece by piece, verified byte by byte, kept by rule; broken ones named."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from coordinator.checkpoints import (
    CheckpointCorrupt,
    CheckpointMissing,
    CheckpointStore,
    CheckpointWriteError,
    UploadRefused,
)
from scheduler.checkpoint_layout import LayerFileInfo, Manifest

NAME = "layer-0000.safetensors"


def put(store: CheckpointStore, step: int, name: str, data: bytes) -> LayerFileInfo:
    upload = store.upload(step, name, len(data))
    try:
        for at in range(0, len(data), 7):
            upload.write(data[at : at + 7], at)
        return upload.commit(hashlib.sha256(data).hexdigest())
    finally:
        upload.abandon()


def save(store: CheckpointStore, step: int, eval_loss: float | None = None) -> Manifest:
    files = tuple(put(store, step, f"layer-{i:04d}.safetensors", bytes([step, i]) * 50) for i in range(2))
    manifest = Manifest("run-1", step, files, step * 8, '{"name": "j"}', 1.5, eval_loss)
    store.write_manifest(manifest)
    return manifest


def test_what_was_saved_is_verified_and_read_back(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    manifest = save(store, 3, 0.5)
    assert store.steps() == (3,)
    assert store.verify(3) == manifest
    pieces = list(store.read(3, NAME))
    assert b"".join(data for _, _, data in pieces) == bytes([3, 0]) * 50
    assert pieces[0][:2] == (0, 100)


def test_files_without_a_manifest_are_no_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    put(store, 3, NAME, b"abc")
    assert store.steps() == ()
    with pytest.raises(CheckpointMissing, match="no checkpoint of step 3; there are: none"):
        store.manifest(3)
    store.discard(3)
    assert not store.directory(3).exists()


@pytest.mark.parametrize("at", [0, 50, 99])
def test_one_changed_byte_is_an_error_that_names_the_file_and_the_other_checkpoints(
    tmp_path: Path, at: int
) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 3)
    save(store, 6)
    path = store.directory(6) / NAME
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)
    with pytest.raises(CheckpointCorrupt, match=rf"{NAME}: found sha256 .* --resume-step \(3\)"):
        store.verify(6)
    assert store.verify(3).step == 3


def test_a_missing_file_and_a_broken_manifest_are_named(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 3)
    (store.directory(3) / NAME).unlink()
    with pytest.raises(CheckpointCorrupt, match=f"{NAME}: No such file"):
        store.verify(3)
    (store.directory(3) / "manifest.json").write_text('{"version": 1, "run"')
    with pytest.raises(CheckpointCorrupt, match=r"manifest.json: found JSONDecodeError"):
        store.verify(3)


@pytest.mark.parametrize(
    "name", ["../../x", "/etc/passwd", "manifest.json", "layer-1.safetensors", "", "layer-0001.safetensors\n"]
)
def test_a_name_that_is_no_layer_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UploadRefused, match="file name"):
        CheckpointStore(tmp_path).upload(1, name, 10)


def test_pieces_out_of_place_too_many_too_few_or_changed_are_refused(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    with pytest.raises(UploadRefused, match=r"required 1 \.\. 100"):
        store.upload(1, NAME, 101, cap_bytes=100)
    upload = store.upload(1, NAME, 4)
    upload.write(b"ab", 0)
    with pytest.raises(UploadRefused, match="a piece at 3, required one at 2"):
        upload.write(b"c", 3)
    with pytest.raises(UploadRefused, match="more than the 4 bytes"):
        upload.write(b"cde", 2)
    with pytest.raises(UploadRefused, match="found 2 bytes, required 4"):
        upload.commit("")
    upload.write(b"cd", 2)
    with pytest.raises(UploadRefused, match=r"found sha256 .* required 00; send it again"):
        upload.commit("00")
    upload.abandon()
    upload.abandon()
    assert list(store.directory(1).iterdir()) == []


def test_a_full_disk_leaves_the_checkpoint_before_untouched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path)
    before = save(store, 3)
    upload = store.upload(6, NAME, 3)
    upload.write(b"abc", 0)

    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as m:
        m.setattr(os, "fsync", full)
        with pytest.raises(CheckpointWriteError, match="No space left on device"):
            upload.commit(hashlib.sha256(b"abc").hexdigest())
        upload.abandon()
        with pytest.raises(CheckpointWriteError, match="No space left on device"):
            save(store, 6)
    store.discard(6)
    assert store.steps() == (3,)
    assert store.verify(3) == before


def test_the_last_and_the_best_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 2.0), (5, None)):
        save(store, step, loss)
    assert store.prune(keep=2, keep_best=True) == (1, 3)
    assert store.steps() == (2, 4, 5)
    assert store.prune(keep=1, keep_best=False) == (2, 4)
    assert store.steps() == (5,)


def test_a_manifest_leaves_out_strays_of_an_upload_that_broke(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    put(store, 3, "layer-0007.safetensors", b"stray")
    save(store, 3)
    assert sorted(p.name for p in store.directory(3).iterdir()) == [
        "layer-0000.safetensors",
        "layer-0001.safetensors",
        "manifest.json",
    ]


def test_going_on_from_an_earlier_step_sets_later_checkpoints_aside(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 3)
    save(store, 6)
    put(store, 9, NAME, b"unfinished")
    assert store.set_aside_after(3) == (6,)
    assert store.steps() == (3,)
    assert not store.directory(9).exists()
    (aside,) = store.root.glob("aside-step-000006-*")
    assert (aside / NAME).exists(), "nothing that was saved is deleted"
