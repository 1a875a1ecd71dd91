"""Assign people to splits and sites, with a seed and stratified by their classes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import numpy as np

from dlfd_fleet.data.identity import told_apart
from dlfd_fleet.data.manifest import Manifest, Row
from dlfd_fleet.exceptions import DataError


def assign_people(manifest: Manifest, *, validation_people: int, test_people: int, sites: int, seed: int) -> Manifest:
    """Give every person a split, and every training person a site.

    People with a split or site in the manifest keep it for all of their rows. Among the others,
    :func:`systematic_sample` draws test and validation people, whom every site holds. The rest are assigned to
    ``site-1`` ... ``site-n``.

    Raises
    ------
    DataError
        If a person has two splits, or there are too few people.
    """
    people = manifest.by_person()
    generator = np.random.default_rng(seed)
    splits = {identity: _only_split(identity, rows) for identity, rows in people.items()}
    free = order_by_appearance({person: rows for person, rows in people.items() if not splits[person]}, generator)
    for split, wanted in (("test", test_people), ("validation", validation_people)):
        missing = max(0, wanted - sum(known == split for known in splits.values()))
        if missing and missing >= len(free) + ("train" in splits.values()):  # somebody must be left to train on
            known = len(people) - len(free)
            raise DataError(
                f"{len(people)} people{f', of whom {known} have a split,' if known else ''} are too few for "
                f"{test_people} test and {validation_people} validation people; lower data.test_people or "
                "data.validation_people."
            )
        chosen = systematic_sample(free, missing, generator)
        free = [person for person in free if person not in chosen]
        splits |= dict.fromkeys(chosen, split)
    splits = {identity: split or "train" for identity, split in splits.items()}
    homes = _deal(manifest, people, splits, sites, generator)
    rows = tuple(
        replace(row, split=splits[row.identity], site=row.site or homes.get(row.identity, "")) for row in manifest.rows
    )
    return replace(manifest, rows=rows)


def choose_people_to_forget(manifest: Manifest, sites: list[str], count: int) -> dict[str, list[str]]:
    """Return ``count`` people of each site who together represent the population: even quantiles, sites in turn.

    Raises
    ------
    DataError
        If a site has too few people.
    """
    chosen: dict[str, list[str]] = {site: [] for site in sites}
    total = count * len(sites)
    for turn in range(total):
        site = sites[turn % len(sites)]
        rows = tuple(row for row in manifest.rows if row.split == "train" and row.site == site)
        order = order_by_appearance(replace(manifest, rows=rows).by_person(), None)
        if len(order) <= count:
            raise DataError(f"{site} holds {len(order)} people, too few to forget {count} and keep one.")
        left = [person for person in order if person not in chosen[site]]
        place = order[int((turn + 0.5) / total * len(order))]
        chosen[site].append(place if place in left else left[0])
    return chosen


def order_by_appearance(people: dict[str, list[Row]], generator: np.random.Generator | None) -> list[str]:
    """Sort people by their most frequent class and its share, so that neighbours are similar.

    People with only the first class come first. With two classes the order is that of their mean label. Ties are broken
    at random, or by name without a generator.
    """
    names = sorted(people)
    if generator is not None:
        names = [names[index] for index in generator.permutation(len(names))]
    first = min((row.label for rows in people.values() for row in rows), default="")

    def appearance(identity: str) -> tuple[str, float]:
        counts = Counter(row.label for row in people[identity])
        label, most = min(counts.items(), key=lambda item: (-item[1], item[0]))
        share = most / sum(counts.values())
        return label, -share if label == first else share

    return sorted(names, key=appearance)


def systematic_sample(order: list[str], count: int, generator: np.random.Generator) -> list[str]:
    """Return ``count`` of ordered people: a random one from each of ``count`` consecutive blocks of equal size."""
    bounds = np.ceil(np.linspace(0, len(order), count + 1)).astype(int)
    return [order[generator.integers(low, high)] for low, high in pairwise(bounds)]


def _deal(
    manifest: Manifest,
    people: dict[str, list[Row]],
    splits: dict[str, str],
    sites: int,
    generator: np.random.Generator,
) -> dict[str, str]:
    """Return a site for each training person: one of their own, or a random one within each block of neighbours."""
    trained = {person: rows for person, rows in people.items() if splits[person] == "train"}
    homes = {person: next((row.site for row in rows if row.site), "") for person, rows in trained.items()}
    homeless = {person: rows for person, rows in trained.items() if not homes[person]}
    known = sorted({row.site for row in manifest.rows if row.site})
    if not known and len(homeless) < sites and (homeless or sites > 1):
        raise DataError(f"{len(homeless)} people to train on are too few for {sites} sites; lower data.sites.")
    names = known or [f"site-{number}" for number in range(1, sites + 1)]
    order = order_by_appearance(homeless, generator)
    for start in range(0, len(order), len(names)):
        block = order[start : start + len(names)]
        homes |= dict(zip(block, [names[index] for index in generator.permutation(len(names))], strict=False))
    return homes


def _only_split(identity: str, rows: list[Row]) -> str:
    """Return the split of a person's rows; empty if none has one."""
    splits = {row.split for row in rows if row.split}
    if len(splits) > 1:
        names = ", ".join(told_apart(list(dict.fromkeys([identity, *(row.written_identity for row in rows)]))))
        raise DataError(f"A person is in two splits ({', '.join(sorted(splits))}): {names}; use one.")
    return splits.pop() if splits else ""
