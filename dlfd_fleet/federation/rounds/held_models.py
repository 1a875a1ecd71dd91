"""Track the models that nodes hold, to send differences instead of whole models."""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from dlfd_fleet.federation.protocol.held_names import BASE, DIFFERENCE, KEPT, NAMED, PRECISION, SHA256, is_kept, name_of
from dlfd_fleet.federation.protocol.packing import COORDINATOR, MODEL, Arrays, arrays_of
from dlfd_fleet.models import ModelCard, digest
from dlfd_fleet.settings import Precision

_MOST_MISSED = 2


class HeldModels:
    """The models that nodes hold, as far as known."""

    def __init__(self) -> None:
        self._held = dict[int, str]()
        self._missed = dict[int, int]()
        self._offered: tuple[str, str, RecordDict] | None = None
        self._frozen = dict[str, str]()
        """Digests of the frozen arrays of models, by the models' names."""

    def note(self, node: int, name: str) -> None:
        """Note the name of the model that a node reports to hold; it may be empty."""
        self._held[node] = name

    def offer(self, model: Arrays, base: Arrays, difference: Arrays, precision: Precision) -> None:
        """Send ``difference`` instead of ``model`` to nodes that hold ``base``, until the next offer."""
        names = digest(model), digest(base)
        records = RecordDict({DIFFERENCE: ArrayRecord.from_torch_state_dict(difference)})
        records[NAMED] = ConfigRecord({SHA256: names[0], BASE: names[1], PRECISION: precision})
        self._offered = *names, records

    def without_held(
        self, tasks: Mapping[int, RecordDict], card: ModelCard | None = None, *, keep: bool = True
    ) -> dict[int, RecordDict]:
        """Return tasks without the model that a node holds, or with a difference from it.

        A node that holds another model with the same frozen arrays is sent only the other arrays.

        Parameters
        ----------
        keep
            Whether nodes keep the model in place of the one that they hold.
        """
        # Many nodes are sent one object; its model is hashed once, and left out once.
        names = {id(records): self._name_model(records, card, keep=keep) for records in _distinct(tasks)}
        trained = {
            id(records): ArrayRecord(card.trained(records.array_records[MODEL]))
            for records in _distinct(tasks)
            if card is not None and names[id(records)] in self._frozen
        }
        short = {id(records): _without_model(records) for records in _distinct(tasks)}
        steps = {
            key: RecordDict({**short[key], **self._difference(keep=keep)})
            for key, name in names.items()
            if self._offered is not None and self._offered[0] == name
        }

        def shortest(node: int, records: RecordDict) -> RecordDict:
            held, name = self._held.get(node), names[id(records)]
            if self._missed.get(node, 0) >= _MOST_MISSED:
                return records
            if name and held == name:
                return short[id(records)]
            if self._offered is not None and held == self._offered[1] and id(records) in steps:
                return steps[id(records)]
            if held and id(records) in trained and self._frozen.get(held) == self._frozen[name]:
                named = ConfigRecord({SHA256: name, BASE: held, PRECISION: "float32", KEPT: keep})
                return RecordDict({**short[id(records)], DIFFERENCE: trained[id(records)], NAMED: named})
            return records

        return {node: shortest(node, records) for node, records in tasks.items()}

    def _difference(self, *, keep: bool) -> RecordDict:
        """Return the records of the offered difference, which say whether nodes keep what it comes to."""
        assert self._offered is not None  # noqa: S101 - asked where there is one
        named = ConfigRecord({**self._offered[2].config_records[NAMED], KEPT: keep})
        return RecordDict({**self._offered[2], NAMED: named})

    def _name_model(self, records: RecordDict, card: ModelCard | None, *, keep: bool) -> str:
        if MODEL not in records:
            return ""
        arrays = arrays_of(records, MODEL, COORDINATOR)
        name = digest(arrays)
        records[NAMED] = ConfigRecord({SHA256: name, KEPT: keep})
        if card is not None and card.frozen:
            self._frozen[name] = digest(card.frozen_of(arrays))
        return name

    def answered(self, node: int, task: RecordDict) -> None:
        """Note that a node has done a task and holds its model, if it keeps it."""
        name = name_of(task)
        if name and is_kept(task):
            self._held[node] = name

    def gives_up(self, node: int, *, held: bool) -> bool:
        """Note whether a node held what a task left out; tell whether nothing is left out for it any more.

        This is so after two failures in a row: its disk may be full, or its processor rounds differently.
        """
        self._missed[node] = 0 if held else self._missed.get(node, 0) + 1
        return self._missed[node] == _MOST_MISSED


def _without_model(records: RecordDict) -> RecordDict:
    return RecordDict({name: record for name, record in records.items() if name != MODEL})


def _distinct(tasks: Mapping[int, RecordDict]) -> list[RecordDict]:
    return list({id(records): records for records in tasks.values()}.values())
