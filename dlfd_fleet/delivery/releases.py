"""Change in memory which models a repository lists; a commit of the repository signs it."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import ValidationError
from tuf.api.metadata import TargetFile

from dlfd_fleet.delivery.contents import Contents
from dlfd_fleet.device.contract import CUSTOM_KEY, Release
from dlfd_fleet.exceptions import DeliveryError


def listed(contents: Contents) -> dict[str, Release]:
    """Return the signed data of each model target, by name, newest first."""
    found = {
        name: _release(name, target.custom[CUSTOM_KEY])
        for name, target in contents.targets.signed.targets.items()
        if target.custom and CUSTOM_KEY in target.custom
    }
    return dict(sorted(found.items(), key=lambda item: (-item[1].epoch, -item[1].sequence, item[0])))


def floor(contents: Contents) -> int:
    """Return the lowest epoch that devices may run."""
    return max((release.minimum_epoch for release in listed(contents).values()), default=0)


def add(contents: Contents, file: TargetFile, release: Release, *beside: TargetFile) -> None:
    """List a model file and its parts."""
    _sign_of(file, release)
    for target in (file, *beside):
        contents.targets.signed.targets[target.path] = target


def raise_floor(contents: Contents, epoch: int) -> None:
    """Forbid models under an epoch, and remove them from the list."""
    withdraw(contents, lambda release: release.epoch < epoch)
    for name, release in listed(contents).items():
        raised = release.model_copy(update={"minimum_epoch": max(epoch, release.minimum_epoch)})
        _sign_of(contents.targets.signed.targets[name], raised)


def withdraw(contents: Contents, wanted: Callable[[Release], bool]) -> None:
    """Remove some releases from the list, and parts that only they use."""
    targets = contents.targets.signed.targets
    for name, release in listed(contents).items():
        if wanted(release):
            for part in (name, release.self_test.target, release.data):
                if part:
                    targets.pop(part, None)


def _release(name: str, custom: object) -> Release:
    try:
        return Release.model_validate(custom)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DeliveryError(f"The signed data of {name} are not valid: {where}: {first['msg']}.") from error


def _sign_of(target: TargetFile, release: Release) -> None:
    target.unrecognized_fields["custom"] = {CUSTOM_KEY: release.model_dump(mode="json", exclude_none=True)}
