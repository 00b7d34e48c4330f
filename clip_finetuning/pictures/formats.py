"""Formats that Pillow reads with another package's help alone, which is imported when the first such picture comes."""

import functools

AVIF = (b"avif", b"avis")
HEIC = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1")
JPEG_XL = (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n")
MOST_BRANDS = 32  # of an ISO media file, that are looked at
# What is missing is a fixed wording, since it is what lost pictures are counted by.
MISSING = {
    "HEIC": 'HEIC picture, which needs the package pillow-heif: pip install -e ".[heif]"',
    "AVIF": "AVIF picture, which needs Pillow 11.3 or later: pip install -U pillow",
    "JPEG XL": "JPEG XL picture, which needs the package pillow-jxl-plugin: pip install pillow-jxl-plugin",
}


def missing_reader(data: bytes) -> str | None:
    """What is missing to read an encoded picture of a format of its own; None if nothing is, or it is of a usual format."""
    special = special_format(data)
    return MISSING[special] if special and not _is_readable(special) else None


def special_format(data: bytes) -> str | None:
    """The name of an encoded picture's format, if it is one that needs help."""
    if data[4:8] == b"ftyp":
        end = min(int.from_bytes(data[:4], "big"), 16 + 4 * MOST_BRANDS)
        brands = {data[8:12], *(data[place : place + 4] for place in range(16, end, 4))}
        return "AVIF" if brands.intersection(AVIF) else "HEIC" if brands.intersection(HEIC) else None
    return "JPEG XL" if data.startswith(JPEG_XL) else None


@functools.lru_cache
def _is_readable(special: str) -> bool:
    """Whether Pillow reads this format now; registers the package that helps it."""
    from PIL import features

    if special == "AVIF" and "avif" in features.modules and features.check_module("avif"):
        return True
    try:
        if special == "JPEG XL":
            import pillow_jxl  # noqa: F401  # pyright: ignore[reportMissingImports]  registers itself

            return True
        import pillow_heif
    except ImportError:
        return False
    # Since version 1 pillow-heif leaves AVIF to Pillow.
    register = getattr(pillow_heif, "register_avif_opener" if special == "AVIF" else "register_heif_opener", None)
    if register is not None:
        register()
    return register is not None
