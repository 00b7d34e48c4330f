"""A server that speaks the protocol of the Hugging Face hub, as far as its client and transformers ask."""

import contextlib
import hashlib
import http.server
import json
import re
import threading
from urllib.parse import unquote

COMMIT = "c0ffee" + "0" * 34
RESOLVE = re.compile(r"/(?:api/resolve-cache/models/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
MODEL = re.compile(r"/api/models/([^/]+/[^/]+)(?:/revision/[^/]+)?")
TREE = re.compile(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(/.*)?")


class Hub:
    """Repositories, {name: {file: bytes}}, at `address`; used as a context.

    `cuts`: {file: [after how many bytes the answers to its GETs break off, first to last; 0 is an answer 500]}. `asked` are
    (method, path, the range that was asked for or "").
    """

    def __init__(self, repositories, cuts=None):
        self.repositories, self.cuts, self.asked = repositories, {k: list(v) for k, v in (cuts or {}).items()}, []
        hub = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                path = unquote(self.path.partition("?")[0])
                hub.asked.append((self.command, path, self.headers.get("Range", "")))
                if match := RESOLVE.fullmatch(path):
                    self.file(match[1], match[3])
                elif match := TREE.fullmatch(path):
                    self.tree(match[1], (match[3] or "").strip("/"))
                elif match := MODEL.fullmatch(path):
                    self.about(match[1])
                else:
                    self.missing("RepoNotFound")

            do_HEAD = do_GET

            def file(self, repository, name):
                data = hub.repositories.get(repository, {}).get(name)
                if data is None:
                    return self.missing("EntryNotFound" if repository in hub.repositories else "RepoNotFound")
                start = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or [0, 0])[1])
                etag = f'"{hashlib.sha256(data).hexdigest()}"'
                headers = {"ETag": etag, "X-Repo-Commit": COMMIT, "X-Linked-Etag": etag, "X-Linked-Size": len(data)}
                headers["Accept-Ranges"] = "bytes"
                if start:
                    headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
                cut = None
                if self.command == "GET" and hub.cuts.get(name):
                    cut = hub.cuts[name].pop(0)
                if cut == 0:
                    return self.answer(500, b"", {})
                return self.answer(206 if start else 200, data[start:], headers, cut)

            def tree(self, repository, folder):
                files = hub.repositories.get(repository)
                if files is None or folder:
                    return self.missing("EntryNotFound")
                found = [{"type": "file", "path": n, "size": len(d), "oid": COMMIT} for n, d in files.items()]
                return self.answer(200, json.dumps(found).encode(), {"Content-Type": "application/json"})

            def about(self, repository):
                files = hub.repositories.get(repository)
                if files is None:
                    return self.missing("RepoNotFound")
                about = {"id": repository, "modelId": repository, "sha": COMMIT, "private": False, "tags": []}
                about["siblings"] = [{"rfilename": name} for name in files]
                return self.answer(200, json.dumps(about).encode(), {"Content-Type": "application/json"})

            def missing(self, code):
                self.answer(404, b"", {"X-Error-Code": code, "X-Repo-Commit": COMMIT})

            def answer(self, status, body, headers, cut=None):
                self.send_response(status)
                for name, value in {**headers, "Content-Length": len(body)}.items():
                    self.send_header(name, str(value))
                self.end_headers()
                if self.command == "GET":
                    with contextlib.suppress(OSError):
                        self.wfile.write(body[:cut])
                self.close_connection = cut is not None

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def point_to(monkeypatch, address):
    """Let the client in this process ask another hub; it reads HF_ENDPOINT when it is imported."""
    from huggingface_hub import constants, file_download

    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    for module in (constants, file_download):  # before version 1.0 the second has the template by a name of its own
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
