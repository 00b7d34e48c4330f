"""The page for people who search, and the JSON API beside it, described by OpenAPI at /openapi.json.

Everything that the page needs comes from here, so it works without a network. A request names pictures by their key in
an index, never by a path; what a visitor sends is bounded before it is read.
"""

import os
import socket
import threading
import time
from importlib import resources
from typing import Annotated, NamedTuple
from urllib.parse import urlencode

import uvicorn
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect

from clip_finetuning.search.index import Index
from clip_finetuning.search.query import CUT, Encoder, mixed

LARGEST_UPLOAD = 20 * 2**20  # bytes; a photo of a phone has 2 to 12 MB
LONGEST_QUERY = 1000  # characters; models read about 77 tokens
MOST_RESULTS = 100
FILES = {"page.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
LOOPBACK = ["localhost", "127.0.0.1", "[::1]"]


class Side(NamedTuple):
    """One index with the model that asks it; the page shows one, or two beside each other."""

    name: str
    index: Index
    encoder: Encoder


class Result(BaseModel):
    """One product, by its best view."""

    product_id: str
    score: float
    image_key: str
    caption: str
    category: str
    picture: str


class Answer(BaseModel):
    """What one model finds, best first."""

    name: str
    results: list[Result]


class Answers(BaseModel):
    """What every model finds; the last is the one that is served, one before it is what it is compared with."""

    answers: list[Answer]
    milliseconds: float
    note: str = ""  # what was not looked at


class Described(BaseModel):
    """One index, for the page's header."""

    name: str
    model: str
    products: int
    pictures: int


class About(BaseModel):
    """What there is to search."""

    indexes: list[Described]
    categories: list[str]


Text = Annotated[str, Query(max_length=LONGEST_QUERY, description="words that describe the product")]
Category = Annotated[str | None, Query(description="only products of this category")]
Top = Annotated[int, Query(ge=1, le=MOST_RESULTS, description="how many products")]


def application(sides: list[Side], hosts: list[str] | None = None) -> FastAPI:
    """The web application over one index or two; `hosts` are the names that requests may call it by, None for any."""
    app = FastAPI(title="Search a product catalogue", docs_url=None, redoc_url=None)
    if hosts is not None:  # else any page in the visitor's browser could ask for a name that leads here
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    one_at_a_time = (
        threading.Lock()
    )  # a model uses all cores by itself; two at once are slower than one after the other

    @app.middleware("http")
    async def with_headers(request: Request, proceed):
        response = await proceed(request)
        response.headers.update(HEADERS)
        return response

    def answers(text: str, picture: bytes | None, category: str | None, top: int) -> Answers:
        begin = time.perf_counter()
        text = text.strip()
        if not text and not picture:
            raise HTTPException(422, "an empty query: give words, a picture, or both")
        if category and not any(category in side.index.categories() for side in sides):
            raise HTTPException(422, f"there is no category {category!r}; /about lists them")
        with one_at_a_time:
            found = [_answer(number, side, text, picture, category, top) for number, side in enumerate(sides)]
        note = CUT if text and any(side.encoder.is_cut(text) for side in sides) else ""
        return Answers(answers=found, milliseconds=round(1000 * (time.perf_counter() - begin), 1), note=note)

    @app.get("/search")
    def search(q: Text, category: Category = None, top: Top = 10) -> Answers:
        """The products that fit the words best."""
        return answers(q, None, category, top)

    @app.post("/search", openapi_extra=PICTURE_BODY)
    async def search_by_picture(request: Request, q: Text = "", category: Category = None, top: Top = 10) -> Answers:
        """The products that look like the picture in the body, and fit the words if there are some."""
        try:
            picture = await _bounded_body(request)
        except ClientDisconnect:
            raise HTTPException(400, "the picture broke off") from None
        return await run_in_threadpool(answers, q, picture, category, top)

    @app.get("/picture", response_class=Response)
    def picture(key: str, index: Annotated[int, Query(ge=0, lt=len(sides))] = 0) -> Response:
        """The picture of a result."""
        try:
            data = sides[index].index.picture(key)
        except KeyError:
            raise HTTPException(404, f"no picture {key!r} in this index") from None
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": "max-age=3600"})

    @app.get("/about")
    def about() -> About:
        """What there is to search."""
        categories = sorted({category for side in sides for category in side.index.categories()})
        return About(indexes=[_described(side) for side in sides], categories=categories)

    for name, media_type in FILES.items():
        content = resources.files(__name__.rpartition(".")[0]).joinpath(name).read_bytes()
        path = "/" if name == "page.html" else f"/{name}"
        app.add_api_route(path, _file(content, media_type), response_class=Response, include_in_schema=False)
    return app


PICTURE_BODY = {
    "requestBody": {
        "required": True,
        "content": {"image/*": {"schema": {"type": "string", "format": "binary"}}},
    }
}


def serve(sides: list[Side], host: str, port: int) -> None:
    """Serve the page until Ctrl-C. Raises OSError in one line where the port is taken."""
    listener = listening(host, port)
    shown = f"[{host}]" if ":" in host else host
    print(f"http://{shown}:{listener.getsockname()[1]}/ shows the page; Ctrl-C ends it", flush=True)
    hosts = [*LOOPBACK, shown] if host in ("127.0.0.1", "localhost", "::1") else None
    config = uvicorn.Config(application(sides, hosts), log_level="warning", server_header=False)
    uvicorn.Server(config).run(sockets=[listener])


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 takes any free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(128)
    except (OSError, OverflowError) as error:
        listener.close()
        raise OSError(f"cannot listen at {host}:{port} ({error}); choose another --port or --host") from None
    return listener


def _answer(number: int, side: Side, text: str, picture: bytes | None, category: str | None, top: int) -> Answer:
    if category and category not in side.index.categories():
        return Answer(name=side.name, results=[])
    try:
        queries = [side.encoder.texts([text])] if text else []
        queries += [side.encoder.pictures([picture])] if picture else []
    except ValueError as error:  # a picture that cannot be read among them
        raise HTTPException(422, f"the query cannot be used: {error}") from None
    hits = side.index.search(mixed(*queries), top, category or None)[0]
    results = [
        Result(**hit._asdict(), picture=f"picture?{urlencode({'index': number, 'key': hit.image_key})}") for hit in hits
    ]
    return Answer(name=side.name, results=results)


async def _bounded_body(request: Request) -> bytes:
    """The request's body; it is left unread past the limit, whatever its header says."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_UPLOAD:
            raise HTTPException(413, f"the picture has more than {LARGEST_UPLOAD // 2**20} MB; send a smaller one")
    return bytes(body)


def _described(side: Side) -> Described:
    counts, model = side.index.about["counts"], side.index.about["model"]
    weights = os.path.basename(model.get("checkpoint") or model.get("pretrained") or "") or "random weights"
    return Described(
        name=side.name,
        model=f"{os.path.basename(model['name'])}, {weights}",
        products=counts["products"],
        pictures=counts["pictures"],
    )


def _file(content: bytes, media_type: str):
    def file() -> Response:
        return Response(content, media_type=media_type, headers={"Cache-Control": "no-cache"})

    return file
