"""Files by http and https: bounded redirects that stay http, the environment's proxies, and a body that can be gone on with."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import urllib.request
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import urllib3
from urllib3 import exceptions

from clip_finetuning.runtime.version import version

SCHEMES = ("http", "https")
REDIRECTS = 5
CONNECT_SECONDS, READ_SECONDS = 10.0, 30.0
CONNECTIONS = 16  # of a host that are kept open
BUSY = (408, 425, 429, 500, 502, 503, 504)  # answers that may be another one later
TOO_MANY = 429
GONE = (404, 410)
AT_ONCE = 1 << 16  # bytes; a connection that breaks off costs at most these


class HttpError(OSError):
    """What went wrong: `reason` is one of a few wordings, for counting.

    `temporary`: another attempt may go well, after `wait` seconds if the server asks for some. `answered`: something did.
    """

    def __init__(
        self, reason: str, detail: str = "", temporary: bool = False, wait: float | None = None, answered: bool = True
    ) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail, self.temporary, self.wait, self.answered = reason, detail, temporary, wait, answered


class HttpFile:
    """What `ResumingStream` connects to: the body of a URL from any byte on, as long as it is the same.

    `length`: bytes of the whole body, None where the server does not say. Known once it was opened.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.length: int | None = None
        self._version: str | None = None
        self._is_known = False

    def __call__(self, position: int) -> Body:
        """Open it. Raises HttpError."""
        headers = {"Range": f"bytes={position}-"} if position else {}
        if position and self._version:
            headers["If-Range"] = self._version
        response = request(self.url, headers)
        try:
            start = self._start_of(response)
            body = Body(response)
            body.skip(position - start)
        except BaseException:
            response.close()
            raise
        return body

    def _start_of(self, response: urllib3.BaseHTTPResponse) -> int:
        """The place of a response's first byte. Raises HttpError for no success, or for another file than before."""
        if response.status not in (200, 206):
            raise refusal(response)
        start, length = 0, _whole_number(response.headers.get("Content-Length"))
        if response.status == 206:
            stated = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
            if not stated:
                raise HttpError("unusable answer", "a part that does not say which")
            start, length = int(stated[1]), _whole_number(stated[2])
        version = _version_of(response)
        if self._is_known and (version, length) != (self._version, self.length):
            raise HttpError("changed while it was read", self.url)
        self._is_known, self._version, self.length = True, version, length
        return start


class Body:
    """The bytes of a response. Raises HttpError where they break off before the end that was announced."""

    def __init__(self, response: urllib3.BaseHTTPResponse) -> None:
        self._response = response

    def read(self, size: int) -> bytes:
        if not size:
            return b""
        try:
            return self._response.read(min(size, AT_ONCE), decode_content=False)
        except exceptions.HTTPError as error:
            raise HttpError("broke off", _cause(error), temporary=True) from error
        except OSError as error:
            raise HttpError("broke off", str(error), temporary=True) from error

    def skip(self, size: int) -> None:
        """Read and forget so many bytes, of a server that always starts at the first one."""
        if size < 0:
            raise HttpError("unusable answer", "another part than was asked for")
        while size:
            data = self.read(size)
            if not data:
                raise HttpError("changed while it was read", "it is shorter now")
            size -= len(data)

    def close(self) -> None:
        self._response.close()


def request(url: str, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
    """The response to a GET, with its body still to be read, redirects followed. Raises HttpError."""
    for _ in range(REDIRECTS + 1):
        response = _ask(url, headers)
        target = response.get_redirect_location()
        if not target:
            return response
        response.close()
        try:
            url = urljoin(url, target)
        except ValueError as error:
            raise HttpError("not a valid URL", target) from error
        if scheme_of(url) not in SCHEMES:
            raise HttpError("redirect to what is not http", url)
    raise HttpError("too many redirects", url)


def refusal(response: urllib3.BaseHTTPResponse) -> HttpError:
    """What a response that is no success means."""
    status, wait = response.status, None
    if status in BUSY:
        with contextlib.suppress(exceptions.InvalidHeader, ValueError, OverflowError):
            wait = urllib3.Retry().get_retry_after(response)
    if status == TOO_MANY:
        wait = max(wait or 0, 1.0)
    return HttpError(f"HTTP {status}" + (" (not found)" if status in GONE else ""), "", status in BUSY, wait)


def scheme_of(url: str) -> str:
    return url.partition(":")[0].lower()


def host_of(url: str) -> str:
    """Who is asked for a URL: host and port; blank for what is no URL."""
    try:
        return urlsplit(url).netloc.rpartition("@")[2].lower()
    except ValueError:
        return ""


def _ask(url: str, headers: dict[str, str]) -> urllib3.BaseHTTPResponse:
    try:
        parts = urlsplit(url)
        headers = {"User-Agent": _agent(), "Accept-Encoding": "identity", **headers}
        if parts.username is not None:
            login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            headers |= urllib3.make_headers(basic_auth=login)
        if not parts.hostname:
            raise HttpError("not a valid URL", url)
        return _pool(_proxy(parts.scheme, parts.hostname), os.getpid()).request(
            "GET", url, headers=headers, redirect=False, retries=False, preload_content=False
        )
    except (exceptions.LocationValueError, exceptions.LocationParseError, UnicodeError, ValueError) as error:
        raise HttpError("not a valid URL", f"{url} ({error})") from error
    except exceptions.NewConnectionError as error:  # urllib3 counts it among those that come too late
        raise HttpError("no connection", _cause(error), temporary=True, answered=False) from error
    except exceptions.TimeoutError as error:
        raise HttpError("timed out", _cause(error), temporary=True, answered=False) from error
    except exceptions.HTTPError as error:
        raise HttpError("no connection", _cause(error), temporary=True, answered=False) from error


@functools.cache
def _agent() -> str:
    return f"clip-finetuning/{version()}"


def _proxy(scheme: str, host: str) -> str | None:
    if urllib.request.proxy_bypass(host):
        return None
    return urllib.request.getproxies().get(scheme)


@functools.lru_cache(maxsize=8)
def _pool(proxy: str | None, process: int) -> Any:
    """The connections of a process: one that was forked must not read what its parent asked for."""
    timeout = urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS)
    if proxy:
        return urllib3.ProxyManager(proxy, maxsize=CONNECTIONS, timeout=timeout)
    return urllib3.PoolManager(maxsize=CONNECTIONS, timeout=timeout)


def _version_of(response: urllib3.BaseHTTPResponse) -> str | None:
    """What tells a file from a later one under the same URL, in the words that `If-Range` takes."""
    tag = response.headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")


def _whole_number(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() and text.isascii() and len(text) < 20 else None


def _cause(error: Exception) -> str:
    """urllib3 wraps what happened in the names of its own objects."""
    text = str(error.args[0] if error.args else error)
    return re.sub(r"<[^>]*>:? ?|\w+\([^()]*\): ", "", text) or type(error).__name__
