"""The search page and its API, by a real server on the loopback and, where there is one, in a real Chromium."""

import contextlib
import http.client
import io
import json
import re
import signal
import subprocess
import sys
import threading
import time
from urllib.parse import quote

import pytest
import uvicorn
from PIL import Image

import search_clip
from clip_finetuning.search import server
from clip_finetuning.search.index import Index
from clip_finetuning.search.query import mixed, open_encoder
from tests.helpers import ROOT, png_header, write_config

COLOURS = {"red": (200, 30, 30), "green": (30, 160, 60), "blue": (30, 60, 200)}
SCRIPT = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    """Two indexes of the same pictures, by models of two seeds."""
    folder = tmp_path_factory.mktemp("catalogue")
    config = write_config(folder)
    mapping = []
    for number in range(12):
        colour = list(COLOURS)[number % 3]
        Image.new("RGB", (40 + number, 60), COLOURS[colour]).save(folder / f"{number}.png")
        caption = SCRIPT if number == 0 else f"a {colour} shirt, number {number}"
        entry = {"image_path": str(folder / f"{number}.png"), "image_name": f"{number}.png", "caption": caption}
        mapping.append({**entry, "category": colour.upper() if number % 2 else "", "product_id": str(number)})
    (folder / "catalogue.json").write_text(json.dumps(mapping))
    found = []
    for seed, name in ((1, "base"), (2, "fine-tuned")):
        place = str(folder / name)
        search_clip.main(
            [
                "index",
                str(folder / "catalogue.json"),
                "--output",
                place,
                f"--model-name={config}",
                "--model-pretrained=",
                f"--seed={seed}",
                "--num-workers=0",
                "--device=cpu",
                "--precision=fp32",
                "--allow-outside",
            ]
        )
        index = Index.open(place)
        found.append(server.Side(name, index, open_encoder(index.about)))
    return found


@contextlib.contextmanager
def running(sides):
    """The address of a server over these indexes, in a thread."""
    listener = server.listening("127.0.0.1", 0)
    web = uvicorn.Server(uvicorn.Config(server.application(sides, server.LOOPBACK), log_level="error"))
    thread = threading.Thread(target=web.run, kwargs={"sockets": [listener]})
    thread.start()
    while not web.started:
        time.sleep(0.01)
    yield listener.getsockname()
    web.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def address(sides):
    with running(sides) as address:
        yield address


@pytest.fixture
def ask(address):
    """ask(path, method, body, headers) -> (status, content, headers)."""

    def request(path, method="GET", body=None, headers=None):
        connection = http.client.HTTPConnection(*address, timeout=20)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before it was sent whole
            connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        content = response.read()
        if response.headers["Content-Type"] == "application/json":
            content = json.loads(content)
        return response.status, content, response.headers

    return request


def encoded(picture, form="PNG"):
    file = io.BytesIO()
    picture.save(file, form)
    return file.getvalue()


def as_answer(side, vector, top=10, category=None):
    return [(hit.product_id, hit.caption, hit.category) for hit in side.index.search(vector, top, category)[0]]


def shown(answer):
    return [(result["product_id"], result["caption"], result["category"]) for result in answer["results"]]


def test_words_are_answered_by_every_index(ask, sides):
    status, content, _ = ask(f"/search?q={quote('a red shirt')}&top=5")
    assert status == 200
    assert [answer["name"] for answer in content["answers"]] == ["base", "fine-tuned"]
    for side, answer in zip(sides, content["answers"]):
        assert shown(answer) == as_answer(side, side.encoder.texts(["a red shirt"]), 5)
        assert len(answer["results"]) == 5
    assert shown(content["answers"][0]) != shown(content["answers"][1])


def test_a_query_that_the_model_cuts_is_said(ask):
    status, content, _ = ask(f"/search?q={quote('red shirt ' * 39)}")
    assert status == 200 and content["note"].startswith("the query is longer than the model reads")
    assert ask(f"/search?q={quote('red shirt!')}")[1]["note"] == ""


def test_a_picture_is_answered_and_with_words_both_count(ask, sides):
    picture = encoded(Image.new("RGBA", (50, 50), (30, 60, 200, 120)))
    alone = sides[1].encoder.pictures([picture])
    both = mixed(alone, sides[1].encoder.texts(["green shirt"]))
    for path, vector in (("/search", alone), (f"/search?q={quote('green shirt')}", both)):
        status, content, _ = ask(path, "POST", picture)
        assert status == 200
        assert shown(content["answers"][1]) == as_answer(sides[1], vector)
        scores = [result["score"] for result in content["answers"][1]["results"]]
        assert scores == pytest.approx([hit.score for hit in sides[1].index.search(vector, 10)[0]], abs=1e-6)


def test_a_category_admits_only_its_products(ask, sides):
    status, content, _ = ask("/search?q=shirt&category=RED&top=50")
    assert status == 200
    assert {result["category"] for answer in content["answers"] for result in answer["results"]} == {"RED"}
    assert ask("/about")[1]["categories"] == ["BLUE", "GREEN", "RED"]
    status, content, _ = ask("/search?q=shirt&category=PURPLE")
    assert (status, content["detail"]) == (422, "there is no category 'PURPLE'; /about lists them")


def test_a_category_of_one_index_alone_leaves_the_other_empty(sides, monkeypatch):
    monkeypatch.setattr(sides[0].index, "_categories", {"": 0})
    with running(sides) as (host, port):
        connection = http.client.HTTPConnection(host, port)
        connection.request("GET", "/search?q=shirt&category=RED")
        base, tuned = json.loads(connection.getresponse().read())["answers"]
    assert base["results"] == [] and tuned["results"]


def test_the_pictures_of_results_are_there(ask, sides):
    result = ask("/search?q=shirt")[1]["answers"][1]["results"][0]
    status, content, headers = ask(f"/{result['picture']}")
    assert (status, headers["Content-Type"]) == (200, "image/jpeg")
    assert content == sides[1].index.picture(result["image_key"])
    assert Image.open(io.BytesIO(content)).getpixel((0, 0)) != (0, 0, 0)


@pytest.mark.parametrize(
    "key", ["../../../../etc/passwd", "/etc/passwd", "%2e%2e%2fsettings.py", "nothing", "a'; DROP"]
)
def test_only_pictures_of_the_index_are_given(ask, key):
    assert ask(f"/picture?key={quote(key)}")[0] == 404
    assert ask("/picture?key=0.png&index=2")[0] == 422


@pytest.mark.parametrize("path", ["/../settings.py", "/..%2fsettings.py", "/page/../server.py", "/server.py", "/docs"])
def test_only_the_page_is_given(ask, path):
    assert ask(path)[0] == 404


@pytest.mark.parametrize("path", ["/search?q=", "/search?q=%20%0a", "/search?q=%00", "/search"])
def test_an_empty_query_is_refused(ask, path):
    status, content, _ = ask(path)
    assert status == 422
    assert path == "/search" or "empty" in content["detail"]


def test_limits_of_a_query(ask):
    assert ask(f"/search?q={'x' * 1001}")[0] == 422
    assert ask("/search?q=x&top=0")[0] == ask("/search?q=x&top=101")[0] == 422
    assert ask("/search", "POST", b"")[0] == 422


@pytest.mark.parametrize(
    ("picture", "reason"),
    [
        (b"no picture", "not an image"),
        (png_header(20_000, 20_000), "decompression bomb"),
        (encoded(Image.new("L", (9, 9)))[:-30], "image"),
    ],
)
def test_a_picture_that_cannot_be_used_is_one_line(ask, picture, reason):
    status, content, _ = ask("/search", "POST", picture)
    assert status == 422 and reason in content["detail"] and "\n" not in content["detail"]


def test_an_upload_is_bounded_whatever_it_says_of_its_size(ask, monkeypatch):
    monkeypatch.setattr(server, "LARGEST_UPLOAD", 2**20)
    assert ask("/search", "POST", bytes(2**20 + 1))[0] == 413
    chunks = iter([bytes(2**19)] * 3)
    assert ask("/search", "POST", chunks)[0] == 413  # sent without saying its size
    assert ask("/search", "POST", bytes(2**20))[0] == 422  # small enough to be looked at


def test_a_request_by_another_name_is_refused(ask):
    """A page of the internet may have its own name lead to this machine, and read what a browser here may read."""
    assert ask("/about", headers={"Host": "evil.example"})[0] == 400
    assert ask("/about", headers={"Host": "localhost:1234"})[0] == 200


def test_every_answer_forbids_foreign_content(ask):
    for path in ("/", "/search?q=x", "/page.js"):
        headers = ask(path)[2]
        assert "default-src 'self'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"
    page = ask("/")[1].decode()
    assert "http:" not in page and "https:" not in page  # it works without a network


def test_the_api_describes_itself(ask):
    document = ask("/openapi.json")[1]
    assert set(document["paths"]) == {"/search", "/picture", "/about"}
    names = {parameter["name"] for parameter in document["paths"]["/search"]["get"]["parameters"]}
    assert names == {"q", "category", "top"}
    assert "image/*" in document["paths"]["/search"]["post"]["requestBody"]["content"]


def test_a_port_in_use_is_one_line(address):
    with pytest.raises(OSError, match=rf"cannot listen at 127.0.0.1:{address[1]} .*choose another --port"):
        server.listening(*address)


def test_an_address_that_is_not_here_is_one_line():
    with pytest.raises(OSError, match="cannot listen at 192.0.2.1:0"):
        server.listening("192.0.2.1", 0)


def test_the_command_serves_until_it_is_interrupted(sides):
    """As a user starts it, with the other index to compare with."""
    places = [str(side.index.folder) for side in sides]
    command = [sys.executable, "search_clip.py", "serve", places[1], "--compare", places[0], "--port", "0"]
    with subprocess.Popen([*command, "--precision=fp32"], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        lines = iter(process.stdout.readline, "")
        address = next(found[1] for found in map(re.compile(r"http://(\S+)/ shows the page").match, lines) if found)
        connection = http.client.HTTPConnection(address, timeout=20)
        connection.request("GET", "/about")
        names = [index["name"] for index in json.loads(connection.getresponse().read())["indexes"]]
        process.send_signal(signal.SIGINT)
    assert names == ["base", "fine-tuned"]
    assert process.returncode == 130


# ------------------------------------------------------------------------------------------------ in a browser


@pytest.fixture
def page(browser, address):
    """The page, open at the width of a phone; nothing may fail in its script."""
    page = browser.new_page(viewport={"width": 400, "height": 800})
    faults = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto("http://{}:{}/".format(*address))
    page.wait_for_selector("#category option:nth-child(4)", state="attached")
    yield page
    assert faults == []
    page.close()


def columns(page):
    """The captions that the page shows, a list for each column."""
    return [section.locator(".caption").all_inner_texts() for section in page.locator("section").all()]


def test_a_query_by_keyboard_shows_both_models(page, sides, ask):
    page.keyboard.type("a red shirt")  # the field has the focus
    page.keyboard.press("Enter")
    page.wait_for_selector("section li")
    answers = ask(f"/search?q={quote('a red shirt')}&top=20")[1]["answers"]
    assert columns(page) == [[result["caption"] for result in answer["results"]] for answer in answers]
    assert page.locator("section h2").all_inner_texts() == ["base", "fine-tuned"]
    first, other = ([result["product_id"] for result in answer["results"]] for answer in answers)
    expected = [other.index(product) - rank for rank, product in enumerate(first)]
    marks = [tile.locator(".mark").all_inner_texts() for tile in page.locator("section").first.locator("li").all()]
    assert marks == [[f"▲ {by}" if by > 0 else f"▼ {-by}"] if by else [] for by in expected]
    assert any(expected)
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    assert "q=a+red+shirt" in page.url


def test_markup_in_a_caption_is_text(page):
    page.fill("#words", "shirt")
    page.click("text=Search >> nth=-1")
    page.wait_for_selector("section li")
    assert page.title() == "Search the catalogue"
    assert any(SCRIPT in caption for caption in columns(page)[0])
    assert page.locator("li script, li .caption img").count() == 0


def test_an_address_shows_its_query_again(page, address):
    page.goto("http://{}:{}/?q=shirt&category=RED".format(*address))
    page.wait_for_selector("section li")
    assert (page.input_value("#words"), page.input_value("#category")) == ("shirt", "RED")
    assert all("· RED" in facts for facts in page.locator(".facts").all_inner_texts())


def test_a_picture_is_chosen_and_left_again(page, sides):
    picture = encoded(Image.new("RGB", (40, 60), COLOURS["blue"]))
    page.set_input_files("#file", {"name": "photo.png", "mimeType": "image/png", "buffer": picture})
    page.wait_for_selector("section li")
    found = sides[1].index.search(sides[1].encoder.pictures([picture]), 20)[0]
    assert columns(page)[1] == [hit.caption for hit in found]
    assert page.is_visible("#preview")
    page.click("#remove")
    assert not page.is_visible("#preview")
    page.click("text=Search >> nth=-1")
    assert "Type some words" in page.inner_text("#status")


def test_more_like_a_result(page, sides):
    page.fill("#words", "shirt")
    page.keyboard.press("Enter")
    page.wait_for_selector("section li")
    wanted = page.locator("section").nth(1).locator("li").nth(3)
    caption = wanted.locator(".caption").inner_text()
    with page.expect_response(lambda response: response.request.method == "POST"):
        wanted.locator("button").click()
    page.wait_for_selector("#status:text('products in')")
    assert caption in columns(page)[1][:4]  # pictures of one colour are alike
    assert page.is_visible("#preview")


def test_what_is_refused_is_said(page):
    page.set_input_files("#file", {"name": "photo.png", "mimeType": "image/png", "buffer": b"no picture"})
    page.wait_for_selector("#status.error")
    assert "not an image" in page.inner_text("#status")
