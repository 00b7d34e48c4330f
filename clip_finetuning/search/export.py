"""The vectors of an index as a Parquet file, for a server that many users ask."""

from pathlib import Path

from clip_finetuning.runtime.atomic_write import atomic_write
from clip_finetuning.search.index import Index

ROWS = 10_000  # of a row group, 20 MB at 512 numbers each


def write_parquet(index: Index, path: Path) -> None:
    """Columns image_key, product_id, category, subcategory, caption (text) and vector (a list of D float32, unit length).

    The file's metadata names the model by hash. Raises ValueError if pyarrow is missing.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ValueError('--export parquet needs pyarrow: pip install -e ".[parquet]"') from None
    texts = ("image_key", "product_id", "category", "subcategory", "caption")
    dimensions = index.vectors.shape[1]
    about = {"model": index.about["model"]["name"], "model_hash": index.about["model"]["hash"]}
    columns = [(name, pa.string()) for name in texts] + [("vector", pa.list_(pa.float32(), dimensions))]
    schema = pa.schema(columns, metadata=about)
    with atomic_write(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for start in range(0, len(index), ROWS):
            rows = range(start, min(start + ROWS, len(index)))
            items = index.items(rows)
            vectors = pa.FixedSizeListArray.from_arrays(
                pa.array(index.vectors[rows.start : rows.stop].ravel()), dimensions
            )
            arrays = [pa.array([item[name] for item in items]) for name in texts]
            writer.write_table(pa.Table.from_arrays([*arrays, vectors], schema=schema))
