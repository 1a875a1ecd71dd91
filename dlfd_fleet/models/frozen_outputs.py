"""Compute outputs of a network's first frozen layers once in a training, not in each epoch.

Frozen layers are in eval mode, so their output for a row is the same in every epoch, unless the row is augmented. The
outputs are data of people. They stay in memory and are dropped after the training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dlfd_fleet.models.classifiers import FaceClassifier, FeatureClassifier

MOST_BYTES = 128 * 2**20
"""Most bytes of kept outputs; with more, nothing is kept."""
# Of these the output follows from the input alone, whatever the mode.
_WITHOUT_STATE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh,
    nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d, nn.Flatten, nn.Identity,
)  # fmt: skip
_Forward = Callable[..., Any]


@contextmanager
def frozen_outputs_kept(model: nn.Module, rows: int, *, unchanged: bool) -> Iterator[Callable[[Tensor], None]]:
    """Keep outputs of a model's first frozen layers during a block.

    It applies to a built-in network with a frozen backbone, to an :class:`~torch.nn.Sequential` that starts with frozen
    layers, and to a network that passes its input unchanged to a frozen submodule. For others nothing is kept.

    Parameters
    ----------
    rows
        Number of rows to train on.
    unchanged
        Whether a row's input is always the same; otherwise nothing is kept.

    Yields
    ------
    Callable
        Call it with the rows ``(N,)`` of each batch before calling the model.
    """
    kept = _Kept(rows)
    with ExitStack() as restored:
        if unchanged and isinstance(model, FeatureClassifier):
            frozen = model.frozen_modules()
            if isinstance(model, FaceClassifier):
                if model.backbone in frozen:
                    _replace(model.backbone, kept.remembering(model.backbone.forward), restored)
            elif type(model.network) is nn.Sequential:
                _keep_first_of(model.network, frozen, kept, restored)
            else:
                _keep_of_input(model.network, frozen, kept, restored)
        yield kept.begin


class _Kept:
    """What a module made of the rows so far."""

    def __init__(self, rows: int) -> None:
        self._outputs: Tensor | None = None
        self._is_known = torch.zeros(rows, dtype=torch.bool)
        self._batch: Tensor | None = None
        self._refused = False

    def begin(self, batch: Tensor) -> None:
        """Note which rows come next."""
        self._batch = batch

    def remembering(self, forward: _Forward) -> _Forward:
        """Return what gives the rows' outputs: those that are kept, or else what ``forward`` makes of the inputs.

        Only the first call after each :meth:`begin` is about the rows.
        """

        def remembered(*inputs: Any, **named: Any) -> Any:
            batch, self._batch = self._batch, None
            if batch is None or self._refused:
                return forward(*inputs, **named)
            if self._outputs is not None and bool(self._is_known[batch].all()):
                return self._outputs[batch.to(self._outputs.device)]
            output = forward(*inputs, **named)
            self._keep(batch, output)
            return output

        return remembered

    def _keep(self, batch: Tensor, output: object) -> None:
        if not isinstance(output, Tensor) or output.requires_grad or output.shape[:1] != batch.shape:
            return self.refuse()
        if self._outputs is None:
            if output[0].nbytes * len(self._is_known) > MOST_BYTES:
                return self.refuse()
            self._outputs = output.new_empty((len(self._is_known), *output.shape[1:]))
        self._outputs[batch.to(self._outputs.device)] = output
        self._is_known[batch] = True
        return None

    def refuse(self) -> None:
        """Keep nothing from now on."""
        self._refused, self._outputs = True, None


def _replace(module: nn.Module, forward: _Forward, restored: ExitStack) -> None:
    before = module.__dict__.get("forward")
    module.forward = forward

    def restore() -> None:
        del module.forward
        if before is not None:
            module.forward = before

    restored.callback(restore)


def _keep_first_of(network: nn.Sequential, frozen: set[nn.Module], kept: _Kept, restored: ExitStack) -> None:
    """Keep what the layers make of it that come before the first layer that learns, or that draws random numbers."""
    layers = list(network)
    ends = next(
        (place for place, one in enumerate(layers) if one not in frozen and type(one) not in _WITHOUT_STATE),
        len(layers),
    )
    if frozen.isdisjoint(layers[:ends]):
        return

    def through(some: list[nn.Module], output: Tensor) -> Tensor:
        for layer in some:
            output = layer(output)
        return output

    first = kept.remembering(lambda inputs: through(layers[:ends], inputs))
    _replace(network, lambda inputs: through(layers[ends:], first(inputs)), restored)


def _keep_of_input(network: nn.Module, frozen: set[nn.Module], kept: _Kept, restored: ExitStack) -> None:
    """Keep what the first frozen submodule makes of it that the network gives its own input, unchanged."""
    given = list[tuple[Tensor, int]]()

    def note(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        given[:] = [(inputs[0], inputs[0]._version)] if len(inputs) == 1 and isinstance(inputs[0], Tensor) else []

    hook = network.register_forward_pre_hook(note)
    restored.callback(hook.remove)
    chosen = list[nn.Module]()

    def wrapped(module: nn.Module) -> _Forward:
        forward = module.forward
        remembered = kept.remembering(forward)

        def called(*inputs: Any, **named: Any) -> Any:
            is_input = bool(given) and not named and len(inputs) == 1 and inputs[0] is given[0][0]
            if not is_input or given[0][0]._version != given[0][1] or (chosen and chosen[0] is not module):
                return forward(*inputs, **named)
            chosen[:] = [module]
            output = remembered(*inputs)
            if inputs[0]._version != given[0][1]:
                kept.refuse()  # who changes its input in place does that to what else is made of the input, too
            return output

        return called

    for module in frozen - {network}:
        _replace(module, wrapped(module), restored)
