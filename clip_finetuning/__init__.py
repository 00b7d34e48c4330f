"""Behind the scripts, a folder a stage: a raw catalogue flows in at `catalogue`, numbers flow out at `retrieval`."""

import importlib
from collections.abc import Callable
from types import ModuleType


def load_on_use(folder: str) -> Callable[[str], ModuleType]:
    """A folder's `__getattr__` (PEP 562) that imports a module of it when a script first names it.

    So a script may stand at the top of its file on all the folders that it works with, and `--help` loads none of them.
    """

    def __getattr__(name: str) -> ModuleType:
        try:
            return importlib.import_module(f"{folder}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{folder}.{name}":
                raise
            raise AttributeError(f"module {folder!r} has no attribute {name!r}") from None

    return __getattr__
