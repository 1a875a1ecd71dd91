"""Callables of other packages, named as Flower names components: ``package.module:callable``, and their arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pkgutil import resolve_name
from typing import Annotated, Any, cast

from pydantic import BaseModel, ConfigDict, Field

COMPONENT = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*"
LayerName = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[\w-]+(\.[\w-]+)*$")]
"""A submodule of a network, or one of its parameters, by its dotted name."""
LayerNames = Annotated[tuple[LayerName, ...], Field(max_length=1_000)]
ComponentName = Annotated[str, Field(max_length=200, pattern=f"^{COMPONENT}$")]

Scalar = (
    bool
    | Annotated[int, Field(ge=-(2**53), le=2**53)]
    | Annotated[float, Field(ge=-1e39, le=1e39, allow_inf_nan=False)]
    | Annotated[str, Field(max_length=200)]
    | None
)
Argument = Scalar | Annotated[tuple[Scalar, ...], Field(max_length=64)]
Arguments = Annotated[
    dict[Annotated[str, Field(max_length=100, pattern=r"^[A-Za-z_]\w*$")], Argument], Field(max_length=32)
]
"""Keyword arguments, as JSON and a command line can hold them."""


def lies_in(name: str, layers: Iterable[str]) -> bool:
    """Tell whether a submodule, a parameter or an array of a network is one of some layers, or in one of them."""
    return any(name == layer or name.startswith(f"{layer}.") for layer in layers)


class Component(BaseModel):
    """A callable, and the keyword arguments that it is called with."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: ComponentName
    arguments: Arguments = Field(default_factory=dict)

    def resolve(self) -> Callable[..., Any]:
        """Import the callable.

        Raises
        ------
        ImportError
            If its package, its module or the callable is not there; the text says which.
        """
        return resolved(self.name)


def resolved(name: str) -> Callable[..., Any]:
    """Import the callable of a name.

    Raises
    ------
    ImportError
        If its package, its module or the callable is not there; the text says which.
    """
    try:
        found = resolve_name(name)
    except (AttributeError, ValueError) as error:
        raise ImportError(str(error)) from error
    if not callable(found):
        raise ImportError(f"'{name}' is a {type(found).__name__}, which cannot be called")
    return cast("Callable[..., Any]", found)


def name_of(component: Callable[..., Any]) -> str:
    """Return the name by which another process can import a callable.

    Raises
    ------
    ValueError
        If there is none: it is made inside a function, or in the script that runs.
    """
    name = f"{getattr(component, '__module__', '')}:{getattr(component, '__qualname__', '')}"
    if "<" in name or name.startswith(("__main__:", ":")) or name.endswith(":"):
        raise ValueError(
            f"{component!r} has no name that another process can import; define it at the top of a module that is "
            "not the script itself"
        )
    return name
