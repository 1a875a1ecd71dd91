"""Store reference models' answers in files beside a site's ledger, which a purge overwrites.

The answers of one job's models are a set. Its files are

- ``references-KEY.json``: the job, the number of models, the classes, and the number of the set;
- ``references-KEY-people.npy``: one record for each person, under the site's keyed digest: in which halves they are,
  and which models were trained on them;
- ``references-KEY-NN.npy``: answers of model NN, one record for each content, under the SHA-256 of its image.

KEY is a digest of the job's name, because text from a message must not become a path. Each file is written whole or not
at all. A set counts once it has the answers of all of its models; then it replaces earlier sets.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dlfd_fleet.exceptions import DataError
from dlfd_fleet.files import whole_file

_DIGEST_BYTES = 32
_PERSON = np.dtype([("key", "u1", (_DIGEST_BYTES,)), ("half", "<u8"), ("trained", "<u8")])


class UnseenAccuracy(BaseModel):
    """Accuracy of reference models on people never trained on, compared with the model.

    Attributes
    ----------
    people
        Number of these people.
    model, references
        Accuracy of the model, and of means of half of the reference models, on their images.
    too_poor
        Whether the reference models are so much worse that an erasure does not use them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    people: Annotated[int, Field(ge=1, le=2**31 - 1)]
    model: Annotated[float, Field(ge=0.0, le=1.0)]
    references: Annotated[float, Field(ge=0.0, le=1.0)]
    too_poor: bool

    def sentence(self) -> str:
        """Return it as a sentence."""
        return (
            f"reference models are right about {self.references:.1%} of the images of {self.people} people never "
            f"trained on, and the model about {self.model:.1%}"
        )


class ReferenceSet(BaseModel):
    """A set of answers.

    Attributes
    ----------
    job
        The job that made its models.
    models
        Number of models.
    classes
        Classes of the answers.
    number
        Number of the set at this site; the latest has the greatest.
    unseen
        Their accuracy at the last comparison with a model; None if never compared.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    job: str
    models: int
    classes: tuple[str, ...]
    number: int = 0
    unseen: UnseenAccuracy | None = None

    @property
    def key(self) -> str:
        """The digest of the job's name, for names of files."""
        return hashlib.sha256(self.job.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Membership:
    """One person's halves and trainings, one bit for each model.

    Attributes
    ----------
    half
        Whether the person is in the model's half.
    trained
        Whether the model was trained on them.
    """

    half: int
    trained: int = 0


def halves(people: Iterable[str], models: int, order: Callable[[int, str], bytes]) -> dict[str, int]:
    """Return the models in whose half each person is, as one bit for each model.

    For each pair of models the people are ordered and cut in the middle; each model gets one half. With an odd number
    either may get one more.

    Parameters
    ----------
    order
        Maps the number of a pair and a person to secret bytes.
    """
    everybody, found = sorted(set(people)), dict[str, int]()
    for pair in range(models // 2):
        ordered = sorted(everybody, key=partial(order, pair))
        middle = (len(ordered) + order(pair, "")[0] % 2) // 2
        for place, person in enumerate(ordered):
            found[person] = found.get(person, 0) | 1 << (2 * pair + (place >= middle))
    return found


class ReferenceFiles:
    """The sets of a site.

    Parameters
    ----------
    folder
        The site's.
    name
        How the names of files begin.
    """

    def __init__(self, folder: Path, name: str = "references") -> None:
        self._folder, self._name_of_files = folder, name

    # ------------------------------------------------------------------ making a set

    def begin(self, wanted: ReferenceSet, people: Callable[[], Mapping[str, int]]) -> ReferenceSet:
        """Begin a set if needed, delete unfinished ones, and return it.

        Parameters
        ----------
        people
            Digests of the people who may be trained on, and the models in whose half each is.

        Raises
        ------
        DataError
            If the set began with other values, or the disk refuses.
        """
        known = self._known()
        for found in known:
            if found.job == wanted.job:
                if (found.models, found.classes) != (wanted.models, wanted.classes):
                    raise DataError(
                        f"The stored answers of {wanted.job} are of other classes or models; start a new job."
                    )
                return found
        self._delete([each for each in known if not self.is_finished(each)])
        new = wanted.model_copy(update={"number": 1 + max((each.number for each in known), default=0)})
        self._write_people(new, {digest: Membership(half) for digest, half in people().items()})
        self._name(new)
        return new

    def note_trained(self, chosen: ReferenceSet, model: int, people: Collection[str]) -> None:
        """Note on whom a model will be trained, before it is.

        Raises
        ------
        DataError
            If the disk refuses.
        """
        known, bit = self.people(chosen), 1 << model
        new = {
            digest: Membership(known[digest].half, known[digest].trained | bit)
            for digest in people
            if not known[digest].trained & bit
        }
        if new:
            self._write_people(chosen, known | new)

    def keep(
        self,
        chosen: ReferenceSet,
        model: int,
        digests: Sequence[str],
        trained: Sequence[bool],
        logits: NDArray[np.float32],
    ) -> None:
        """Store a model's answers; a set that this completes replaces all others.

        Parameters
        ----------
        digests, trained, logits
            SHA-256 of each image, whether the model was trained on it or its person, and its answer ``(N, C)``.

        Raises
        ------
        DataError
            If the disk refuses.
        """
        records = np.zeros(len(digests), _answers_of(chosen))
        records["key"], records["trained"], records["logits"] = _bytes_of(digests), trained, logits
        self._write(self._file(chosen, f"{model:02}"), records)
        if self.is_finished(chosen):
            self._delete([each for each in self._known() if each.job != chosen.job])

    def note_unseen(self, chosen: ReferenceSet, unseen: UnseenAccuracy) -> None:
        """Store the accuracy of a set's models.

        Raises
        ------
        DataError
            If the disk refuses.
        """
        self._name(chosen.model_copy(update={"unseen": unseen}))

    # ------------------------------------------------------------------ reading

    def missing(self, chosen: ReferenceSet) -> int:
        """Return the number of models without answers in a set."""
        return sum(not self._file(chosen, f"{model:02}").exists() for model in range(chosen.models))

    def is_finished(self, chosen: ReferenceSet) -> bool:
        """Tell whether a set has the answers of all of its models."""
        return not self.missing(chosen)

    def has(self, wanted: ReferenceSet) -> bool:
        """Tell whether a job's set is finished."""
        return any(each.job == wanted.job and self.is_finished(each) for each in self._known())

    def current(self) -> ReferenceSet | None:
        """Return the latest set that is finished."""
        return max(filter(self.is_finished, self._known()), key=lambda each: each.number, default=None)

    def people(self, chosen: ReferenceSet) -> dict[str, Membership]:
        """Return the people of a set, by their digests.

        Raises
        ------
        DataError
            If they cannot be read.
        """
        records = self._read(self._file(chosen, "people"), _PERSON)
        pairs = zip(_keys_of(records), records["half"].tolist(), records["trained"].tolist(), strict=True)
        return {digest: Membership(half, trained) for digest, half, trained in pairs if digest}

    def answers(self, chosen: ReferenceSet, model: int) -> tuple[dict[str, int], NDArray[Any]]:
        """Return the position of each image by its SHA-256, and records with ``trained`` and ``logits`` ``(C,)``.

        Raises
        ------
        DataError
            If they cannot be read.
        """
        records = self._read(self._file(chosen, f"{model:02}"), _answers_of(chosen))
        return {digest: place for place, digest in enumerate(_keys_of(records)) if digest}, records

    # ------------------------------------------------------------------ what goes

    def drop(self, jobs: Collection[str]) -> None:
        """Delete the sets of some jobs.

        Raises
        ------
        DataError
            If the disk refuses.
        """
        self._delete([each for each in self._known() if each.job in jobs])

    def keep_only(self, job: str) -> None:
        """Delete the sets of all other jobs.

        Raises
        ------
        DataError
            If the disk refuses.
        """
        if others := [each for each in self._known() if each.job != job]:
            self._delete(others)

    def unfinished(self) -> list[Path]:
        """Return the files of sets that have not the answers of all of their models; what names a set comes first."""
        sets = [each for each in self._known() if not self.is_finished(each)]
        named = [(self._file(each), *sorted(self._folder.glob(f"{self._file(each).stem}-*"))) for each in sets]
        return [file for files in named for file in files]

    def purge(self, images: Container[str], people: Container[str]) -> None:
        """Overwrite the records of some images and people with zeros, and delete files of killed processes.

        Parameters
        ----------
        images, people
            SHA-256 of the images; keyed digests of the people.

        Raises
        ------
        DataError
            If the disk refuses.
        """
        damaged = list[ReferenceSet]()
        for chosen in self._known():
            answers, parts = _answers_of(chosen), [f"{model:02}" for model in range(chosen.models)]
            for part, kind, keys in (("people", _PERSON, people), *((part, answers, images) for part in parts)):
                file = self._file(chosen, part)
                if not file.exists():
                    continue
                try:
                    records = self._read(file, kind)
                except DataError:  # nobody can tell whose answers are in it
                    damaged.append(chosen)
                else:
                    _overwrite(file, records, keys)
        self._delete(damaged)

    # ------------------------------------------------------------------ files

    def _file(self, chosen: ReferenceSet, part: str = "") -> Path:
        name = f"{self._name_of_files}-{chosen.key}"
        return self._folder / (f"{name}-{part}.npy" if part else f"{name}.json")

    def _known(self) -> list[ReferenceSet]:
        """Return the sets that have begun; what a damaged file names is none."""
        found = list[ReferenceSet]()
        for file in sorted(self._folder.glob(f"{self._name_of_files}-*.json")):
            try:
                chosen = ReferenceSet.model_validate_json(file.read_bytes())
            except (FileNotFoundError, ValidationError):  # another process may have deleted it
                continue
            except OSError as error:
                raise DataError(f"Cannot read {file}: {error.strerror}; check its rights.") from error
            found += [chosen] if self._file(chosen) == file else []
        return found

    def _delete(self, sets: Collection[ReferenceSet]) -> None:
        """Delete sets, and files that are of none: what names a set goes first."""
        try:
            for chosen in sets:
                self._file(chosen).unlink(missing_ok=True)
            kept = tuple(self._file(each).stem for each in self._known())
            every = f"{self._name_of_files}-*"
            for file in (*self._folder.glob(every), *self._folder.glob(f".{every}.new")):
                if file.name.startswith(".") or not file.name.startswith(kept):
                    file.unlink(missing_ok=True)
        except OSError as error:
            raise DataError(f"Cannot delete reference answers in {self._folder}: {error.strerror}.") from error

    def _name(self, chosen: ReferenceSet) -> None:
        with self._written(self._file(chosen)) as stream:
            stream.write(chosen.model_dump_json().encode())

    def _write_people(self, chosen: ReferenceSet, people: Mapping[str, Membership]) -> None:
        records = np.zeros(len(people), _PERSON)
        digests = sorted(people)  # an order that says nothing
        records["key"] = _bytes_of(digests)
        records["half"] = [people[digest].half for digest in digests]
        records["trained"] = [people[digest].trained for digest in digests]
        self._write(self._file(chosen, "people"), records)

    def _write(self, file: Path, records: NDArray[Any]) -> None:
        with self._written(file) as stream:
            np.lib.format.write_array(stream, records, allow_pickle=False)

    @contextmanager
    def _written(self, file: Path) -> Iterator[Any]:
        """Yield a new file, readable only by this user, that replaces another one when it is complete."""
        with (
            whole_file(file, DataError) as new,
            open(new, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as stream,
        ):
            yield stream
            stream.flush()
            os.fsync(stream.fileno())  # a site must not forget whom a model was trained on

    @staticmethod
    def _read(file: Path, kind: np.dtype[Any]) -> NDArray[Any]:
        try:
            records: NDArray[Any] = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{file} cannot be read; delete it: the next job makes another one.") from error
        if records.dtype != kind or records.ndim != 1:
            raise DataError(f"{file} holds something else than it must; delete it.")
        return records


def _answers_of(chosen: ReferenceSet) -> np.dtype[Any]:
    return np.dtype([("key", "u1", (_DIGEST_BYTES,)), ("trained", "?"), ("logits", "<f4", (len(chosen.classes),))])


def _bytes_of(digests: Sequence[str]) -> NDArray[np.uint8]:
    return np.frombuffer(bytes.fromhex("".join(digests)), np.uint8).reshape(len(digests), _DIGEST_BYTES)


def _keys_of(records: NDArray[Any]) -> list[str]:
    """Return the digest of each record; empty where it was overwritten."""
    return [key.hex() if any(key) else "" for key in map(bytes, np.ascontiguousarray(records["key"]))]


def _overwrite(file: Path, records: NDArray[Any], keys: Container[str]) -> None:
    """Overwrite the records of some keys on the disk, by plain writes: a full disk ends a process that writes a map."""
    size, places = records.dtype.itemsize, [place for place, key in enumerate(_keys_of(records)) if key and key in keys]
    if not places:
        return
    start = file.stat().st_size - len(records) * size
    try:
        with file.open("r+b") as stream:
            for place in places:
                stream.seek(start + place * size)
                stream.write(bytes(size))
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise DataError(f"Cannot overwrite answers in {file}: {error.strerror}; check the disk.") from error
