"""A web server of a test, on 127.0.0.1, as friendly or as hostile as its pages."""

import http.server
import threading
from collections import Counter, defaultdict


class WebServer:
    """Answers with `pages[path](request)`, a function of the handler; `requests` are the headers that each path was asked with.

    Used as a context; what a page does not finish stays unfinished.
    """

    def __init__(self, pages):
        self.pages, self.requests = pages, defaultdict(list)
        lock = threading.Lock()
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                path = self.path.partition("?")[0]
                with lock:
                    server.requests[path].append({name.title(): value for name, value in self.headers.items()})
                    self.attempt = len(server.requests[path])
                page = server.pages.get(path)
                if page is None:
                    self.send(b"nothing here", status=404)
                else:
                    page(self)

            def send(self, body, status=200, length=None, **headers):
                """A whole answer; `length` is what it says of itself. Drops the connection where that is not true."""
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.send_header("Content-Length", str(len(body) if length is None else length))
                self.end_headers()
                self.wfile.write(body)
                self.close_connection = length not in (None, len(body))

            def log_message(self, *_):
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 50

            def handle_error(self, *_):
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def counts(self):
        return Counter({path: len(asked) for path, asked in self.requests.items()})

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def file_page(data, drops=(), ranges=True, etag='"1"'):
    """A page of a file; `drops`: after how many bytes each of the first answers breaks off; `ranges`: parts are served."""

    def page(request):
        start = 0
        wanted = request.headers.get("Range")
        if wanted and ranges and request.headers.get("If-Range", etag) == etag:
            start = int(wanted[len("bytes=") :].rstrip("-"))
        headers = {"ETag": etag} if etag else {}
        if start:
            headers["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        body = data[start:]
        sent = body[: drops[request.attempt - 1]] if request.attempt <= len(drops) else body
        request.send(sent, 206 if start else 200, len(body), **headers)

    return page
