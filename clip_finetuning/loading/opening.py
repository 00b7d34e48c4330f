"""Opens a shard, wherever it is, as a stream that outlives its connection."""

import logging
import time
from functools import partial
from typing import Any
from urllib.parse import urlparse

from webdataset.gopen import gopen, gopen_schemes

from clip_finetuning.loading.shard_list import is_url
from clip_finetuning.runtime.http import SCHEMES, HttpFile
from clip_finetuning.runtime.remote import RemoteFile
from clip_finetuning.runtime.resuming import ResumingStream
from clip_finetuning.runtime.text import printable

log = logging.getLogger(__name__)


def open_shard(shard: str) -> Any:
    """A binary stream of a local path, or of any URL that webdataset or fsspec knows. Raises OSError and ValueError.

    Where a connection breaks, the stream goes on at the same byte; `pipe:` and what webdataset leaves to a command end there.
    """
    if not is_url(shard):
        return open(shard, "rb")
    scheme = urlparse(shard).scheme
    if scheme in SCHEMES:
        return ResumingStream(HttpFile(shard), sleep=partial(_say_and_sleep, shard))
    if scheme in gopen_schemes:
        return gopen(shard)
    return ResumingStream(RemoteFile(shard), sleep=partial(_say_and_sleep, shard))


def _say_and_sleep(shard: str, seconds: float, error: OSError) -> None:
    log.warning("%s: %s; trying again in %g seconds", printable(shard), printable(error), seconds)
    time.sleep(seconds)
