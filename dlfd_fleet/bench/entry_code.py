"""The code of what users add, for the keys of rows and models: what was made under other code is made anew."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from functools import cache, partial
from importlib.metadata import packages_distributions, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_OURS = __name__.partition(".")[0]


def code_of(entry: Callable[..., Any]) -> str:
    """Return a digest of the code that a callable of another package is made of; nothing for one of ours."""
    while isinstance(entry, partial):
        entry = entry.func
    module = getattr(entry, "__module__", None) if hasattr(entry, "__qualname__") else type(entry).__module__
    return code_of_module(str(module))


@cache
def code_of_module(module: str) -> str:
    """Return a digest of a module's source, and of all its package's; nothing for one of ours.

    Where there is no source, it is the version of the distribution.
    """
    top = module.partition(".")[0]
    if top == _OURS:
        return ""
    file = _source(module)
    if file is None:
        return ", ".join(f"{name} {version(name)}" for name in sorted(set(packages_distributions().get(top, ()))))
    sha = hashlib.sha256()
    for source in sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]:
        sha.update(source.read_bytes())
    return sha.hexdigest()


def _source(module: str) -> Path | None:
    """Return the file of a module that lies in no package, or the ``__init__.py`` of the outermost one that has one."""
    script = getattr(sys.modules.get(module), "__file__", None)
    if module in ("__main__", "__mp_main__"):
        return Path(script) if script else None
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        spec = find_spec(".".join(parts[:end]))
        if spec is not None and spec.origin and Path(spec.origin).is_file():
            return Path(spec.origin)
    return None
