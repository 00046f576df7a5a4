"""Fetch the course's data files into data/, each checked by its git blob id; what is there and right is skipped.

    python -m scripts.download_data [--data_dir data] [--base_url URL] [--force]

Run the command again after an interruption: it resumes the download.
"""

import argparse
import hashlib
import os
from pathlib import Path

import requests

from files.downloads import fetch_part, retry
from files.errors import Parser, UserError, run_script
from files.http import is_remote_url, shown_url
from files.writing import alone_in

BASE_URL = "https://raw.githubusercontent.com/gpoesia/minbert-default-final-project/main/data"
BLOB_IDS = {
    "ids-sst-train.csv": "9cb7333cb1dae49c2bd2a4b56a24882a6e8704b5",
    "ids-sst-dev.csv": "3171aa629a340809d2db4a50df8f6e5ec9420ab0",
    "ids-sst-test-student.csv": "bbd2313758825f86e24416d6aad64cd93370cf7a",
    "ids-cfimdb-train.csv": "cd57bcbd2f7214ea6dd1783d3e885d324b1f478d",
    "ids-cfimdb-dev.csv": "8a0f5dcf3d40189b96c801a12cd79bf8003e61de",
    "ids-cfimdb-test-student.csv": "1e789c709b3ca0511f027a309b6d8bd21cde41b2",
    "quora-train.csv": "a3b5546f6a0e65b60a328a5d294d1038f5bed1da",
    "quora-dev.csv": "de7cfa32428fd470b93f778fccc45a619e01336f",
    "quora-test-student.csv": "f257ef00558555afb50819578a58205732b16354",
    "sts-train.csv": "12b17760e7795fee35aeeabc290d5651de02622a",
    "sts-dev.csv": "9392860e584717976b8d817cc40c9e6ceeec27e0",
    "sts-test-student.csv": "25f0cf8fafdd1f82b9e2bb460c708af34341ce60",
}


def git_blob_id(path) -> str:
    """Return the id that git gives the file's content: the SHA-1 of `blob <size>`, a zero byte and the content."""
    content = Path(path).read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def fetch(name, blob_id, data_dir: Path, base_url):
    """Download one file next to its place, check it and move it there.

    Raises UserError if the server is out of reach or what it sends is another file.
    """
    path, part, url = data_dir / name, data_dir / f"{name}.part", f"{base_url.rstrip('/')}/{name}"
    taken_up = part.exists()
    try:
        retry(lambda: fetch_part(url, part))
    except requests.RequestException as error:
        raise UserError(
            f"{path} could not be downloaded ({error}). Run the command again to go on where it stopped, or download "
            f"{shown_url(url)} by hand and put it there."
        ) from error
    if (found := git_blob_id(part)) == blob_id:
        os.replace(part, path)
        return
    part.unlink()
    if taken_up:  # the beginning may have been another file's
        return fetch(name, blob_id, data_dir, base_url)
    raise UserError(
        f"{shown_url(url)} is not the course's file (git blob id {found}, should be {blob_id}); nothing was written to "
        f"{path}. Try again, or name another copy of the course's data folder with --base_url."
    )


def main(argv=None):
    """Fetch every course file that is missing; raise UserError if files of another content are in the way."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=Path("data"), help="folder of the files (default: data)")
    parser.add_argument("--base_url", default=BASE_URL, help="address of the folder (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="replace files of another content")
    args = parser.parse_args(argv)
    if not is_remote_url(args.base_url):
        raise UserError(f"--base_url {args.base_url}: not an address that starts with http:// or https://. Files of a "
                        "folder on this machine can be copied, or named with --data_dir.")
    in_the_way = []
    with alone_in(args.data_dir):
        for name, blob_id in BLOB_IDS.items():
            path = args.data_dir / name
            if path.exists() and git_blob_id(path) == blob_id:
                print(f"{path}: already there")
            elif path.exists() and not args.force:
                in_the_way.append(str(path))
            else:
                fetch(name, blob_id, args.data_dir, args.base_url)
                print(f"{path}: downloaded")
    if in_the_way:
        raise UserError(
            f"not the course's files, and left as they are: {', '.join(in_the_way)}. Move them away and run the "
            "command again, or let it replace them with --force."
        )


if __name__ == "__main__":
    run_script(main)
