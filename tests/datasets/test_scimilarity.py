"""The download, from a server on this machine: whole, once, and nothing but the files that are wanted."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from isd.datasets import _scimilarity, fetch_scimilarity

pytest.importorskip("pooch")
FILES = {
    "encoder.ckpt": b"encoder",
    "decoder.ckpt": b"decoder",
    "gene_order.tsv": b"A\nB\n",
    "layer_sizes.json": b"{}",
    "index.bin": b"large and not wanted",
}


class Handler(SimpleHTTPRequestHandler):
    requests = 0

    def do_GET(self):
        type(self).requests += 1
        super().do_GET()

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path):
    (tmp_path / "www").mkdir()
    Handler.requests = 0
    handler = partial(Handler, directory=str(tmp_path / "www"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}/annotation_model_v1.tar.gz?download=1"
        httpd.shutdown()
        thread.join()


def archive(tmp_path, files=FILES, extra=()):
    """An archive on the server; ``extra`` are members as they are."""
    path = tmp_path / "www" / "annotation_model_v1.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"annotation_model_v1/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for member in extra:
            tar.addfile(member, io.BytesIO(b"x" * member.size))
    return path


def member(name, kind=tarfile.REGTYPE, link="", size=0):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


def test_the_wanted_files_arrive_and_are_not_downloaded_twice(server, tmp_path):
    path = archive(tmp_path)
    known = "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    folder = fetch_scimilarity(tmp_path / "cache", known, url=server)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {k: v for k, v in FILES.items() if k != "index.bin"}
    assert Handler.requests == 1
    assert fetch_scimilarity(tmp_path / "cache", known, url=server) == folder
    (folder / "encoder.ckpt").unlink()  # a folder that is not whole is made again, from the archive that is there
    assert (fetch_scimilarity(tmp_path / "cache", known, url=server) / "encoder.ckpt").read_bytes() == b"encoder"
    assert Handler.requests == 1
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == [
        "annotation_model_v1",
        "annotation_model_v1.tar.gz",
    ]


def test_another_hash_is_an_error_and_leaves_nothing(server, tmp_path):
    archive(tmp_path)
    with pytest.raises(ValueError, match="hash"):
        fetch_scimilarity(tmp_path / "cache", "sha256:" + "0" * 64, url=server)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(
    ("extra", "match"),
    [
        (member("../../evil.txt", size=1), "outside of its folder"),
        (member("/etc/evil.txt", size=1), "outside of its folder"),
        (member("annotation_model_v1/decoder.ckpt", tarfile.SYMTYPE, "/etc/passwd"), "a link"),
        (member("annotation_model_v1/decoder.ckpt", tarfile.LNKTYPE, "../../secret"), "a link"),
        (member("annotation_model_v1/encoder.ckpt", size=1), "more than once"),
    ],
)
def test_what_points_elsewhere_is_refused(server, tmp_path, extra, match):
    lacking = {k: v for k, v in FILES.items() if k != "decoder.ckpt"}
    archive(tmp_path, FILES if "decoder" not in extra.name else lacking, [extra])
    with pytest.raises(ValueError, match=match):
        fetch_scimilarity(tmp_path / "cache", url=server)
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["annotation_model_v1.tar.gz"]
    assert not (tmp_path / "evil.txt").exists()


def test_what_is_too_large_unpacked_is_refused(server, tmp_path, monkeypatch):
    archive(tmp_path)
    monkeypatch.setattr(_scimilarity, "_MAX_BYTES", 10)
    with pytest.raises(ValueError, match="unpacked, more than"):
        fetch_scimilarity(tmp_path / "cache", url=server)


def test_a_file_that_is_missing_or_an_archive_cut_short_is_named(server, tmp_path):
    archive(tmp_path, {k: v for k, v in FILES.items() if k != "gene_order.tsv"})
    with pytest.raises(ValueError, match=r"lacks gene_order\.tsv"):
        fetch_scimilarity(tmp_path / "one", url=server)
    path = archive(tmp_path, {**FILES, "encoder.ckpt": bytes(range(256)) * 400})
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match="no whole tar"):
        fetch_scimilarity(tmp_path / "two", url=server)
    assert not (tmp_path / "two" / "annotation_model_v1").exists()


def test_an_address_that_does_not_answer_is_an_os_error(server, tmp_path):
    with pytest.raises(OSError, match="404"):
        fetch_scimilarity(tmp_path / "cache", url=server.replace("annotation", "nothing"))
