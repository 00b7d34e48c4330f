"""docs/use.md: the vectors of an index in PostgreSQL with pgvector, by the very code of the page."""

import re
import shutil
import tempfile

import pytest

from clip_finetuning.search.index import Index
from tests.helpers import ROOT
from tests.search.test_index import make_index, unit


@pytest.fixture(scope="module")
def database():
    """The URL of a server of the test's own; started by root, it runs as another user, who must reach its folder."""
    pgserver = pytest.importorskip("pgserver")
    pytest.importorskip("psycopg")
    folder = tempfile.mkdtemp()
    try:
        server = pgserver.get_server(folder, cleanup_mode="delete")
    except Exception as error:  # a system where it cannot start: no user to run it as, no shared memory
        shutil.rmtree(folder, ignore_errors=True)
        pytest.skip(f"PostgreSQL cannot start here: {error}")
    yield server.get_uri()
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


def test_the_page_brings_an_index_to_postgres(database, tmp_path, monkeypatch):
    np = pytest.importorskip("numpy")
    pytest.importorskip("pyarrow")
    from clip_finetuning.search.export import write_parquet

    random = np.random.default_rng(0)
    products = [f"P{n // 3}" for n in range(120)]
    make_index(tmp_path / "index", random.normal(size=(120, 8)), products)
    index = Index.open(tmp_path / "index")
    write_parquet(index, tmp_path / "index" / "vectors.parquet")
    page = (ROOT / "docs" / "use.md").read_text(encoding="utf-8")
    [code] = [
        block
        for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL)
        if "pgvector" in block or "psycopg" in block
    ]
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code.replace("postgresql://localhost/shop", database), names)
    for query in unit(random.normal(size=(3, 8))):
        [hits] = index.search(query[None], 10, exact=True)
        found = names["search"](query)
        assert [row[:2] for row in found] == [(hit.product_id, hit.image_key) for hit in hits]
        assert np.allclose([row[2] for row in found], [hit.score for hit in hits], atol=1e-4)
