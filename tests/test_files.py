"""Files that are there whole or not at all, whatever interrupts the writing."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading

import pytest

from seedregistry.common import files
from seedregistry.common.files import write_atomically

POSIX = pytest.mark.skipif(os.name == "nt", reason="modes and links of POSIX")


def blocks_that_end_in(error: BaseException):
    yield b"new "
    raise error


def write_and_fail(path):
    path.write_bytes(b"new ")
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (blocks_that_end_in(KeyboardInterrupt()), KeyboardInterrupt),
        (blocks_that_end_in(ValueError("no")), ValueError),
        (write_and_fail, OSError),
    ],
)
def test_an_interrupted_write_leaves_the_old_file(tmp_path, content, error):
    """After an interrupt, or an error on the way, the old file is as it was and stands alone."""
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(b"old")
    with pytest.raises(error):
        write_atomically(path, content)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "content",
    [b"new", [b"n", b"ew"], lambda path: path.write_bytes(b"new")],
    ids=["bytes", "blocks", "function"],
)
def test_every_form_of_content(tmp_path, content):
    """Bytes, blocks of bytes and a function write a file anew, or in the place of another."""
    path = tmp_path / "file"
    for _ in range(2):
        write_atomically(path, content)
        assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@POSIX
def test_a_private_file_is_private_while_it_is_written(tmp_path):
    """What replaces a file has its mode from the first byte on, not only when it is done."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o600)
    modes = []

    def look():
        modes.extend(stat.S_IMODE(other.stat().st_mode) for other in tmp_path.iterdir())
        yield b"new"

    write_atomically(path, look())
    assert modes == [0o600, 0o600]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@POSIX
def test_a_link_is_followed(tmp_path):
    """A link stays one, and the file that it names has the new content."""
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    write_atomically(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_the_longest_name(tmp_path):
    """A name as long as the file system allows can be written."""
    path = tmp_path / ("n" * 255)
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"


def test_content_is_on_the_disk_before_the_name(tmp_path, monkeypatch):
    """The content is flushed, then the file is renamed, then the folder is flushed."""
    steps = []
    path = tmp_path / "file"
    sync_file, sync_folder = files._sync_file, files.sync_folder
    monkeypatch.setattr(
        files, "_sync_file", lambda file: (steps.append(path.exists()), sync_file(file))
    )
    monkeypatch.setattr(
        files, "sync_folder", lambda folder: (steps.append(path.exists()), sync_folder(folder))
    )
    write_atomically(path, b"new")
    assert steps == [False, True]


def test_threads_that_write_one_file(tmp_path):
    """Of many writers at once one wins, whole, and nothing is left beside the file."""
    path = tmp_path / "file"
    contents = [bytes([65 + number]) * 100_000 for number in range(8)]
    threads = [
        threading.Thread(target=write_atomically, args=(path, content)) for content in contents
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents
    assert list(tmp_path.iterdir()) == [path]


def test_processes_that_save_one_ledger(tmp_path):
    """Two processes that save to one name at once leave a ledger that verifies."""
    from seedregistry.ledger import verify_file

    script = (
        "import seedregistry\n"
        "registry = seedregistry.SeedRegistry(42)\n"
        "registry.reserve('model', range(2000))\n"
        "for _ in range(20): registry.ledger.save('ledger.jsonl')"
    )
    command = [sys.executable, "-W", "ignore", "-c", script]
    processes = [subprocess.Popen(command, cwd=tmp_path) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert verify_file(tmp_path / "ledger.jsonl").ok
    assert [file.name for file in tmp_path.iterdir()] == ["ledger.jsonl"]
