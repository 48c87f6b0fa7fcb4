"""A worker's identity lasts as long as its directory, belongs to one process, and nobody else can read it."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.identity import KEY, IdentityError, IdentityTaken, first_free, open_identity


def test_it_is_the_same_after_a_restart_and_counts_starts(tmp_path: Path) -> None:
    first = open_identity(tmp_path / "id")
    first.close()
    second = open_identity(tmp_path / "id")
    assert second.keys == first.keys
    assert (first.starts, second.starts) == (1, 2)
    assert second.incarnation.startswith("2-")
    assert second.incarnation == second.incarnation != first.incarnation
    second.close()
    assert (tmp_path / "id").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "id" / KEY).stat().st_mode & 0o777 == 0o600


def test_the_proof_is_of_this_identity_and_this_token(tmp_path: Path) -> None:
    a, b = open_identity(tmp_path / "a"), open_identity(tmp_path / "b")
    assert a.proof("t") == a.proof("t")
    assert len({a.proof("t"), b.proof("t"), a.proof("u")}) == 3
    assert a.keys.secret not in a.proof("t")
    a.close()
    b.close()


def test_workers_of_one_machine_get_one_each(tmp_path: Path) -> None:
    one, two = first_free(tmp_path), first_free(tmp_path)
    assert one.keys != two.keys
    with pytest.raises(IdentityTaken, match="another worker using it"):
        open_identity(one.directory)
    one.close()
    again = first_free(tmp_path)
    assert again.keys == one.keys
    again.close()
    two.close()


def test_a_key_that_is_none_or_that_others_can_read_is_refused(tmp_path: Path) -> None:
    open_identity(tmp_path).close()
    (tmp_path / KEY).chmod(0o644)
    with pytest.raises(IdentityError, match="chmod 600"):
        open_identity(tmp_path)
    (tmp_path / KEY).write_bytes(b"not a key")
    (tmp_path / KEY).chmod(0o600)
    with pytest.raises(IdentityError, match="no CURVE key"):
        open_identity(tmp_path)
    with pytest.raises(IdentityError, match="cannot be written"):
        open_identity(tmp_path / KEY / "below-a-file")


def test_a_count_that_cannot_be_read_begins_again(tmp_path: Path) -> None:
    open_identity(tmp_path).close()
    (tmp_path / "starts").write_text("many")
    again = open_identity(tmp_path)
    assert again.starts == 1
    again.close()
