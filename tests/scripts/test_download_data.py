"""scripts/download_data.py against a real server on this machine."""

import subprocess
import sys
from pathlib import Path

import pytest

from files.errors import UserError
from scripts import download_data
from tests.helpers.file_server import quick, serve

# Two small files in place of the course's twelve; the ids are `git hash-object`'s.
FILES = {"/data/sts-dev.csv": b"\tid\tsentence1\n" * 20_000, "/data/quora-dev.csv": "0\té\n".encode()}
IDS = {
    "sts-dev.csv": "062918cbbee9aa5e2057ad4f38f9bd4cc70f9581",
    "quora-dev.csv": "c3e2ae481cd7d18add788abd41dbcde8bc476be2",
}
COURSE_IDS = download_data.BLOB_IDS


@pytest.fixture(autouse=True)
def small_files(tmp_path, monkeypatch):
    quick(tmp_path, monkeypatch)
    monkeypatch.setattr(download_data, "BLOB_IDS", IDS)


def run(server, folder, *flags):
    download_data.main(["--data_dir", str(folder), "--base_url", f"{server.url}/data/", *flags])


def contents(folder):
    return {f"/data/{path.name}": path.read_bytes() for path in folder.iterdir()}


def test_fetches_what_is_missing_and_skips_what_is_right(tmp_path, capsys):
    with serve(FILES) as server:
        run(server, tmp_path / "new" / "data")
        assert contents(tmp_path / "new" / "data") == FILES
        (tmp_path / "new" / "data" / "quora-dev.csv").unlink()
        server.log.clear()
        run(server, tmp_path / "new" / "data")
        assert server.log == [("GET", "/data/quora-dev.csv", None)]
    assert "sts-dev.csv: already there" in capsys.readouterr().out


def test_goes_on_where_it_stopped(tmp_path, record):
    with serve(FILES, cut=100_000) as server:
        with pytest.raises(UserError, match=f"{tmp_path / 'sts-dev.csv'} could not .* by hand"):
            run(server, tmp_path)
        assert not (tmp_path / "sts-dev.csv").exists()
        part = (tmp_path / "sts-dev.csv.part").stat().st_size
        assert part > 50_000
        server.cut = None
        run(server, tmp_path)
        assert ("GET", "/data/sts-dev.csv", f"bytes={part}-") in server.log
        assert contents(tmp_path) == FILES
    record("Downloads", "download_data, cut again and again; the command again", "an error, then taken up",
           "could not be downloaded ... Run the command again; then both files whole")


def test_part_of_another_file_is_thrown_away(tmp_path):
    (tmp_path / "sts-dev.csv.part").write_bytes(b"?" * 20)
    with serve(FILES) as server:
        run(server, tmp_path)
    assert contents(tmp_path) == FILES


def test_another_file_from_the_server_is_refused(tmp_path, record):
    with serve({**FILES, "/data/sts-dev.csv": b"<tab>"}) as server, pytest.raises(UserError, match="git blob") as error:
        run(server, tmp_path)
    assert contents(tmp_path) == {}
    record("Downloads", "download_data, and a server that has another file", "refused, nothing written", error.value,
           folder=tmp_path)


def test_another_file_in_the_way_is_left_unless_forced(tmp_path):
    (tmp_path / "sts-dev.csv").write_bytes(b"mine")
    with serve(FILES) as server:
        with pytest.raises(UserError, match="sts-dev.csv.*--force"):
            run(server, tmp_path)
        assert contents(tmp_path) == {**FILES, "/data/sts-dev.csv": b"mine"}
        run(server, tmp_path, "--force")
        assert contents(tmp_path) == FILES


@pytest.mark.parametrize("address", ["/some/folder", "ftp://host/data"])
def test_base_url_that_is_no_address(address, tmp_path, record):
    with pytest.raises(UserError, match=f"^--base_url {address}: not an address") as error:
        download_data.main(["--data_dir", str(tmp_path / "data"), "--base_url", address])
    assert not (tmp_path / "data").exists()
    record("Downloads", f"download_data --base_url {address}", "an error at once that names the flag", error.value)


def test_course_files_have_their_ids(course_dir):
    assert len(COURSE_IDS) == 12
    for name in ("ids-sst-train.csv", "ids-cfimdb-dev.csv", "quora-dev.csv", "sts-test-student.csv"):
        assert download_data.git_blob_id(Path(course_dir) / name) == COURSE_IDS[name]


def test_command_ends_with_2_and_no_traceback(tmp_path):
    options = ["--data_dir", tmp_path, "--base_url", "http://127.0.0.1:9"]
    command = [sys.executable, "-m", "scripts.download_data", *options]
    root = Path(download_data.__file__).parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"error: {tmp_path / 'ids-sst-train.csv'} could not be downloaded (http://127.0.0.1:9")
