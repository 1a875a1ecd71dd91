"""Find and freeze layers of a network: named ones, and those without gradients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from dlfd_fleet.components import lies_in
from dlfd_fleet.exceptions import ModelFileError


def without_gradients(network: nn.Module, known: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return the outermost submodules without any gradient, then single parameters without one.

    Empty for a network without any gradient.

    Parameters
    ----------
    known
        Those that are left out, with all that is in them.
    """
    if len({parameter.requires_grad for parameter in network.parameters()}) < 2:
        return ()
    found = list[str]()
    for name, module in network.named_modules(remove_duplicate=False):
        new = [own for own, _ in module.named_parameters() if not lies_in(f"{name}.{own}", (*known, *found))]
        if name and new and not any(parameter.requires_grad for parameter in module.parameters()):
            found.append(name)
    for name, parameter in network.named_parameters(remove_duplicate=False):
        if not parameter.requires_grad and not lies_in(name, (*known, *found)):
            found.append(name)
    return tuple(found)


def frozen_values(layers: Iterable[str], arrays: Mapping[str, Tensor]) -> dict[str, int]:
    """Return the number of values in each of these frozen layers.

    A layer inside another of them counts with the outer one.
    """
    known, values = set(layers), Counter[str]()
    for name, array in arrays.items():
        parts = name.split(".")
        outermost = next((one for end in range(1, len(parts) + 1) if (one := ".".join(parts[:end])) in known), None)
        if outermost is not None:
            values[outermost] += array.numel()
    return dict(values)


def stop_gradients(network: nn.Module, layers: Iterable[str]) -> None:
    """Stop the gradients of these submodules and parameters.

    Raises
    ------
    ModelFileError
        If a name is unknown, or no parameter with a gradient is left.
    """
    modules, parameters = (
        dict(named(remove_duplicate=False)) for named in (network.named_modules, network.named_parameters)
    )
    for layer in layers:
        if layer not in modules and layer not in parameters:
            known = ", ".join(name for name, _ in network.named_children())
            raise ModelFileError(
                f"The network has no layer '{layer}' to freeze (model.frozen); its outermost ones are: {known}."
            )
        for parameter in modules[layer].parameters() if layer in modules else [parameters[layer]]:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise ModelFileError(
            "Every layer of the network is frozen (model.frozen): nothing is left that can learn or forget."
        )
