import errno
import os
import socket
import subprocess
import sys

import pytest

from isd import _atomic
from isd._atomic import recover, whole_file, whole_folder


def names(folder):
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_what_breaks_off_leaves_the_older_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(type(error)), whole_file(path) as new:
        new.write_text("half of the n")
        raise error
    assert (path.read_text(), names(tmp_path)) == ("old", ["table.csv"])
    with whole_file(path) as new:
        new.write_text("new")
    assert (path.read_text(), names(tmp_path)) == ("new", ["table.csv"])


def test_hdf5_on_a_full_disk_says_so(tmp_path):
    with pytest.raises(OSError, match="File too large") as caught, whole_file(tmp_path / "a.h5ad"):
        raise RuntimeError(
            "Can't decrement id ref count (unable to extend file properly, errno = 27, error message = '...')"
        )
    assert (caught.value.errno, names(tmp_path)) == (27, [])
    with pytest.raises(RuntimeError, match="something else"), whole_file(tmp_path / "a.h5ad"):
        raise RuntimeError("something else")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(IsADirectoryError, match="name of a file"), whole_file(tmp_path):
        pass


def test_files_have_the_users_mask(tmp_path):
    old = os.umask(0o027)
    try:
        with whole_file(tmp_path / "a") as new:
            new.write_text("")
        with whole_folder(tmp_path / "b") as new:
            (new / "c").write_text("")
    finally:
        os.umask(old)
    assert [(tmp_path / n).stat().st_mode & 0o777 for n in ("a", "b", "b/c")] == [0o640, 0o750, 0o640]


@pytest.fixture(params=["exchange", "two renames"])
def way(request, monkeypatch):
    if request.param == "two renames":
        monkeypatch.setattr(_atomic, "_exchange", lambda a, b: False)


def test_folders_change_places(tmp_path, way):
    for text in ("old", "new"):
        with whole_folder(tmp_path / "model") as folder:
            (folder / text).mkdir()
            (folder / text / "weights").write_text(text)
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model") == ["new"]


def test_a_folder_that_is_not_filled_changes_nothing(tmp_path, way):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("old")
    with pytest.raises(OSError, match="full"), whole_folder(tmp_path / "model") as folder:
        (folder / "weights").write_text("ne")
        raise OSError("full")
    assert (names(tmp_path), (tmp_path / "model" / "weights").read_text()) == (["model"], "old")


def test_a_folder_moved_aside_is_put_back(tmp_path, monkeypatch):
    """Killed between two renames, where the file system cannot exchange: the older model is beside."""
    monkeypatch.setattr(_atomic, "_exchange", lambda a, b: False)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("old")
    replace, calls = os.replace, []

    def killed(a, b):
        calls.append(a)
        if len(calls) == 2:
            raise KeyboardInterrupt  # no handler for errors of the disk runs
        replace(a, b)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "model") as folder:
        (folder / "weights").write_text("new")
    monkeypatch.undo()
    assert names(tmp_path) == [".model.old"]
    recover(tmp_path / "model")
    assert (tmp_path / "model" / "weights").read_text() == "old"


def test_the_exchange_is_one_step_here(tmp_path):
    if not sys.platform.startswith("linux"):
        pytest.skip("renameat2 is Linux's")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not _atomic._exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system cannot exchange names")
    assert names(tmp_path / "a") == ["b"]
    with pytest.raises(FileNotFoundError):
        _atomic._exchange(tmp_path / "a", tmp_path / "none")


def test_what_dead_processes_left_is_removed_and_that_of_others_is_not(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    host = socket.gethostname()
    dead = tmp_path / f".model.new-{host}-{gone.pid}-00ff"
    others = [
        f".model.new-{host}-{os.getppid()}-00ff",
        f".model.new-elsewhere-{gone.pid}-00ff",
        f".other.new-{host}-{gone.pid}-0",
    ]
    for name in (dead.name, *others):
        (tmp_path / name).mkdir()
        (tmp_path / name / "weights").write_text("")
    with whole_folder(tmp_path / "model"):
        pass
    assert names(tmp_path) == sorted([*others, "model"])
