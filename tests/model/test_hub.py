"""Sharing: through huggingface_hub's own client, with a server on this machine in the place of the Hub."""

import base64
import hashlib
import importlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

import isd
from isd.model import VAE, Classifier, LatentDiffusion, model_card

pytest.importorskip("huggingface_hub")
FIXTURE = Path(__file__).parents[1] / "data" / "models" / "format_1"


class Hub(BaseHTTPRequestHandler):
    """The few calls of the Hub that uploads and downloads of small files make; commits are kept in memory."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b"".join(self._chunks())
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            self.server.created.append(asked)
            return self._json({"url": f"{self.server.address}/me/cells", "id": "me/cells"})
        if "/preupload/" in self.path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self._json({"files": files})
        if "/commit/" in self.path:
            tree = dict(self.server.commits[-1]) if self.server.commits else {}
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    tree[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                elif entry["key"] == "deletedFile":
                    tree.pop(entry["value"]["path"])
            self.server.commits.append(tree)
            oid = self._oid(len(self.server.commits))
            return self._json(
                {"commitUrl": f"{self.server.address}/me/cells/commit/{oid}", "commitOid": oid, "success": True}
            )
        return self._json({}) if "validate-yaml" in self.path else self.send_error(404)

    def do_GET(self):
        self.server.asked.append(self.path)
        tree = self.server.commits[-1] if self.server.commits else {}
        if match := re.match(r"/api/models/me/cells(?:/revision/([^?]+))?(?:\?|$)", self.path):
            tree, oid = self._at(match[1])
            if tree is None:
                self.send_response(404)
                self.send_header("X-Error-Code", "RevisionNotFound")
                self.send_header("Content-Length", "0")
                return self.end_headers()
            return self._json({"id": "me/cells", "sha": oid, "siblings": [{"rfilename": n} for n in tree]})
        if "/tree/" in self.path:
            tree, _ = self._at(re.search(r"/tree/([^/?]+)", self.path)[1])
            return self._json(
                [{"type": "file", "path": n, "size": len(b), "oid": self._hash(b)} for n, b in tree.items()]
            )
        if match := re.match(r"/me/cells/resolve/([^/]+)/(.+)", self.path):
            tree, oid = self._at(match[1])
            body = tree[match[2].split("?")[0]]
            self.send_response(200)
            for key, value in {
                "ETag": f'"{self._hash(body)}"',
                "X-Repo-Commit": oid,
                "Content-Length": len(body),
            }.items():
                self.send_header(key, str(value))
            self.end_headers()
            return self.wfile.write(body) if self.command == "GET" else None
        return self.send_error(404)

    do_HEAD = do_GET

    def _chunks(self):
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    @staticmethod
    def _oid(n):
        return f"{n:040x}"

    @staticmethod
    def _hash(body):
        return hashlib.sha1(body).hexdigest()

    def _at(self, revision):
        if not self.server.commits:
            return {}, self._oid(0)
        oids = {self._oid(i + 1): tree for i, tree in enumerate(self.server.commits)}
        if revision in (None, "main"):
            revision = self._oid(len(oids))
        return oids.get(revision), revision

    def _json(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    server.address = f"http://127.0.0.1:{server.server_address[1]}"
    server.commits, server.created, server.asked = [], [], []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    constants = importlib.import_module("huggingface_hub.constants")  # before the address is set: it is kept otherwise
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_ENDPOINT", server.address)
    monkeypatch.setenv("HF_TOKEN", "hf_only_for_the_server_of_this_test")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def model():
    return LatentDiffusion.load(FIXTURE / "model")


def test_what_is_pushed_comes_back_by_name_and_by_revision(hub, model, tmp_path):
    url = model.push_to_hub("me/cells", license="cc0-1.0", description="No cells: numbers of a test.", private=True)
    assert "private" in json.dumps(hub.created[0])  # "private": true, or in later versions of the client "visibility"
    assert url.endswith("0001")
    assert sorted(hub.commits[0]) == sorted(
        [
            "README.md",
            *(f"{f}{n}" for f in ("", "vae/") for n in ("features.json", "model.json", "weights.safetensors")),
        ]
    )
    again = LatentDiffusion.from_hub("me/cells", cache_dir=tmp_path)
    assert again.fingerprint == model.fingerprint
    # a second model in its place; the first is still there under its commit
    model.vae.push_to_hub("me/cells")
    assert not any(name.startswith("vae/") for name in hub.commits[1])
    assert VAE.from_hub("me/cells", cache_dir=tmp_path).fingerprint == model.vae.fingerprint
    first = LatentDiffusion.from_hub("me/cells", revision=url.rsplit("/", 1)[1], cache_dir=tmp_path)
    assert first.fingerprint == model.fingerprint
    with pytest.raises(OSError, match=r"(?i)revision"):
        VAE.from_hub("me/cells", revision="nowhere", cache_dir=tmp_path)


def test_only_a_models_files_are_fetched_and_no_pickle(hub, model, tmp_path):
    model.push_to_hub("me/cells")
    hub.commits[0] |= {"model.pt": b"\x80\x04", "setup.py": b"raise SystemExit", "adata.h5ad": b"not fetched either"}
    hub.asked.clear()
    assert LatentDiffusion.from_hub("me/cells", adata=False, cache_dir=tmp_path).fingerprint == model.fingerprint
    fetched = {path.split("/resolve/")[1].split("/", 1)[1] for path in hub.asked if "/resolve/" in path}
    assert fetched == {f"{f}{n}" for f in ("", "vae/") for n in ("features.json", "model.json", "weights.safetensors")}
    with pytest.raises(ValueError, match="reads no pickles"):
        LatentDiffusion.from_hub("me/cells", allow_pickle=True)


def test_what_was_changed_on_the_way_is_refused(hub, model, tmp_path):
    model.vae.push_to_hub("me/cells")
    weights = bytearray(hub.commits[0]["weights.safetensors"])
    weights[-1] ^= 1
    hub.commits[0]["weights.safetensors"] = bytes(weights)
    with pytest.raises(ValueError, match="does not match its digest"):
        VAE.from_hub("me/cells", cache_dir=tmp_path)


def test_a_classifier_comes_back_for_its_diffusion_model(hub, model, tmp_path):
    classifier = Classifier.load(FIXTURE / "classifier", diffusion=model)
    classifier.push_to_hub("me/cells")
    again = Classifier.from_hub("me/cells", diffusion=model, cache_dir=tmp_path)
    assert again.fingerprint == classifier.fingerprint


def test_without_the_package_the_extra_is_named(model, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"isodiff\[hub\]"):
        model.push_to_hub("me/cells")


# -- the card ---------------------------------------------------------------------------------------------------


def head(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_the_card_says_what_the_model_is(model, adata):
    fake = isd.tl.generate(model, n_obs=50, seed=0)
    real = isd.tl.generate(model, n_obs=120, seed=1)
    table = isd.metrics.evaluate(real, fake, metrics=["coverage", "mmd"], groups=False, n_boot=20, reference="all")
    card = model_card(
        model, metrics=table, repo_id="me/cells", license="cc-by-4.0", description="Made up.", tags=["test"]
    )
    told = head(card)
    assert (told["library_name"], told["license"], told["tags"][-1]) == ("isodiff", "cc-by-4.0", "test")
    values = {m["name"]: m["value"] for m in told["model-index"][0]["results"][0]["metrics"]}
    row = table[(table["metric"] == "coverage") & (table["group"] == "all")].iloc[0]
    assert values[f"coverage ({row['space']})"] == pytest.approx(row["value"], abs=1e-6)
    for text in (
        "40 transcripts",
        "Made up.",
        "from_hub('me/cells')",
        model.fingerprint,
        "54 for training",
        "n_latent=3",
        "b (27)",
    ):
        assert text in card, text
    assert card == model_card(
        model, metrics=fake, repo_id="me/cells", license="cc-by-4.0", description="Made up.", tags=["test"]
    )


def test_nothing_in_the_words_of_others_ends_the_head(model):
    card = model_card(model, title='x"\n---\nmodel: evil', description="a\n```\n<script>", license="a: b\n---")
    assert head(card)["license"] == "a: b\n---"
    assert "<script>" not in card
    assert "not measured" in card.lower()


def test_a_card_needs_a_trained_model_and_a_table(model, adata):
    LatentDiffusion.setup_anndata(adata)
    with pytest.raises(ValueError, match="not trained"):
        model_card(LatentDiffusion(adata, n_hidden=8))
    for wrong in (adata, 3):
        with pytest.raises(TypeError, match=r"isd\.metrics\.evaluate"):
            model_card(model, metrics=wrong)
