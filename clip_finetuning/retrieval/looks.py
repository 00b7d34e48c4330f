"""What pictures look like, whatever the model makes of them: the fingerprints by which the audit finds near-duplicates."""

from clip_finetuning.pictures.decode import load_picture
from clip_finetuning.pictures.near_duplicates import can_fingerprint, fingerprint, packed


def check() -> None:
    """ValueError if the library for it is not there."""
    if not can_fingerprint():
        raise ValueError(
            'look-alikes are found with ImageHash, which is not installed: pip install -e ".[near-duplicates]"'
        )


def look_of(data: bytes) -> bytes:
    """Encoded picture -> its fingerprint, packed. Raises PictureError. Called in the workers, where pictures are decoded."""
    return packed(fingerprint(load_picture(data)))
