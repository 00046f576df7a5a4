"""Names from a hub, an address or an archive: nothing is written outside the folder that is meant."""

import gzip
import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from files import downloads
from files.downloads import cached_path, get_from_cache
from files.errors import UserError
from files.pretrained import pretrained_file
from tests.helpers.file_server import kept, quick, serve


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    quick(tmp_path, monkeypatch)


HUB_IDS = ["../../evil", "..", "a/../../evil", "a/..", "..\\..\\evil", "C:evil", "C:\\evil", "/evil/bert", "a/b/c",
           "a//b", "~nobody/x", "a\0b", "a\nb", "a" * 5000, "\udcff", "-x", ".hidden", "a b", "a--b", "http://", "http://[::1",
           "http://\udcff/x", "https://a..b/x", "http://127.0.0.1:99999999/x", "http:///x", "http://\0/x"]


@pytest.mark.parametrize("name", HUB_IDS, ids=range(len(HUB_IDS)))
def test_names_that_are_no_hub_ids(name, tmp_path, monkeypatch, record):
    monkeypatch.chdir(tmp_path)
    with serve({}) as server:
        monkeypatch.setenv("MINBERT_HUB", server.url)
        with pytest.raises(UserError) as error:
            pretrained_file(name, ("vocab.txt",))
        assert server.log == [] and kept(tmp_path) == [] and "\n" not in str(error.value)
    shown = name[:30].encode("unicode_escape").decode().replace("\\\\", "\\")
    record("Hostile files", f"--pretrained {shown}{'...' if len(name) > 30 else ''}",
           "an error; nothing asked for or written", error.value)


@pytest.mark.parametrize("revision", ["../../evil", "..\\evil", "a/..", "/evil", "", " ", "a--b"])
def test_revisions(revision, tmp_path, monkeypatch):
    with serve({}) as server:
        monkeypatch.setenv("MINBERT_HUB", server.url)
        with pytest.raises(UserError):
            pretrained_file("bert", ("vocab.txt",), revision=revision)
        assert server.log == [] and kept(tmp_path) == []


@pytest.mark.parametrize("name", ["..", "../../evil.bin", "%2e%2e%2fevil.bin", "..\\..\\evil.bin", "C:evil.bin",
                                  ".bashrc", "evil.bin?/../..", "\u202eevil.bin", "x" * 3000 + ".bin", "a\rb.bin", ""])
def test_addresses_of_odd_names(name, tmp_path, record):
    """Whatever the address, the file lies two levels below the cache under a plain name with the suffix it had."""
    class Everything(dict):
        def get(self, path, default):
            return b"weights"

    with serve(Everything()) as server:
        url = f"{server.url}/a/b/{name}"
        path = Path(pretrained_file(url, ("model.safetensors",)))
        assert path.parent.parent == tmp_path / "cache" and path.read_bytes() == b"weights"
        assert path.suffix == (".bin" if name.endswith(".bin") else path.suffix)
        assert set(path.name) <= set("abcdefghijklmnopqrstuvwxyzC_0123456789.") and path.name[0] != "."
        copy = Path(get_from_cache(url))
        assert copy.parent == tmp_path / "cache" and len(copy.name) in (64, 129)
    assert {path.parent for path in tmp_path.rglob("*") if path.is_file()} <= {
        tmp_path / "cache", tmp_path / "cache" / downloads.url_to_filename(url)[:16]}
    shown = name[-30:].encode("unicode_escape").decode().replace("\\\\", "\\")
    record("Hostile files", f"--pretrained http://HOST/a/b/{shown}", "a plain name below the cache", path.name)


def zipped(path, name, kind=None):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("good.txt", "good")
        member = zipfile.ZipInfo(name)
        member.filename = name  # as it stands: ZipInfo cuts names at a zero byte
        if kind == "link":
            member.external_attr = 0o120777 << 16
        archive.writestr(member, "/etc/passwd")


def tarred(path, name, kind=None):
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo("good.txt")
        archive.addfile(member)
        member = tarfile.TarInfo(name)
        member.type = {None: tarfile.REGTYPE, "link": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE,
                       "device": tarfile.CHRTYPE, "pipe": tarfile.FIFOTYPE}[kind]
        member.linkname = "../../evil"
        member.size = 4 if kind is None else 0
        archive.addfile(member, io.BytesIO(b"evil"))


MEMBERS = [("../evil.txt", None), ("in/../../evil.txt", None), ("/tmp/evil.txt", None), ("..\\evil.txt", None),
           ("C:\\evil.txt", None), ("link", "link"), ("link", "hard link"), ("null", "device"), ("pipe", "pipe")]


@pytest.mark.parametrize(("name", "kind"), MEMBERS)
@pytest.mark.parametrize("make", [zipped, tarred])
def test_archives_that_reach_outside(make, name, kind, tmp_path, record):
    if make is zipped and kind not in (None, "link"):
        pytest.skip("a zip file has no such members")
    path = tmp_path / "in" / "in" / "archive"
    path.parent.mkdir(parents=True)
    make(path, name, kind)
    with pytest.raises(UserError, match="link or a device" if kind else "outside") as error:
        cached_path(path, extract_compressed_file=True)
    assert kept(tmp_path) == ["archive"] and not os.path.lexists("/tmp/evil.txt")
    assert not os.path.lexists(f"{path}-extracted") and not os.path.lexists(f"{path}-extracting")
    record("Hostile files", f"a {make.__name__[:3]} file with a member {kind or name}",
           "refused, nothing unpacked", error.value, folder=path.parent)


def test_bombs(tmp_path, record):
    zeros, member = bytes(10 << 20), tarfile.TarInfo("zeros")
    member.size = len(zeros)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(10):
            archive.writestr(str(number), zeros)
    (tmp_path / "bomb.tgz").write_bytes(gzip.compress(member.tobuf() + zeros) * 10)
    for path in (tmp_path / "bomb.zip", tmp_path / "bomb.tgz"):
        with pytest.raises(UserError, match="100 times its size; nothing was unpacked") as error:
            cached_path(path, extract_compressed_file=True)
        assert kept(tmp_path) == ["bomb.tgz", "bomb.zip"] and not os.path.lexists(f"{path}-extracted")
        record("Hostile files", f"a {path.suffix} file of 100 kB with 100 MiB of zeros in it",
               "refused, nothing unpacked", error.value, folder=tmp_path)


@pytest.mark.parametrize("make", [zipped, tarred])
def test_damaged_archives(make, tmp_path, record):
    make(tmp_path / "whole", "x.txt")
    whole = (tmp_path / "whole").read_bytes()
    for size in (10, 30, 60, len(whole) - 30, len(whole) - 9):
        path = tmp_path / f"cut{size}"
        damaged = bytearray(whole)
        damaged[size] ^= 255
        for content in (whole[:size], bytes(damaged)):
            path.write_bytes(content)
            try:
                cached_path(path, extract_compressed_file=True)
            except UserError as error:
                assert "cannot be unpacked" in str(error) or "outside" in str(error) or "link" in str(error)
                assert not os.path.lexists(f"{path}-extracted") and not os.path.lexists(f"{path}-extracting")
                seen = str(error)
    record("Hostile files", f"a {make.__name__[:3]} file that is cut or damaged", "refused, nothing kept", seen,
           folder=tmp_path)
