"""Read and change versions of the model in MLflow's registry, and decide which may run.

MLflow has no stages any more. The alias ``champion`` marks the fleet's version, and ``candidate`` one that waits for a
decision. Tags hold the rest.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException, RestException
from sqlalchemy.exc import SADeprecationWarning

from dlfd_fleet.exceptions import FleetError, TrackingError
from dlfd_fleet.plain_text import visible
from dlfd_fleet.settings import TrackingSettings
from dlfd_fleet.tracking.local_store import prepare_store

JOB_TAG, SITE_TAG, EPOCH_TAG, REVOKED_TAG = "dlfd.job", "dlfd.site", "dlfd.epoch", "dlfd.revoked"
ATTEMPT_TAG = "dlfd.attempt"
REFUSED_TAG = "dlfd.refused."
"""Tag of a job's run, followed by a site that was left out: the reason."""
KIND_TAG, VERDICT_TAG, PROMOTED_TAG = "dlfd.kind", "dlfd.verdict", "dlfd.promoted"
CHAMPION, CANDIDATE = "champion", "candidate"
ORIGINAL = "original"
"""Kind of a model that was trained and not unlearned."""
_REFUSALS = frozenset({"INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"})
_LONGEST_REASON = 300


@dataclass(frozen=True)
class RegisteredVersion:
    """One version of the registered model."""

    version: str
    tags: Mapping[str, str]
    run_id: str
    model_id: str = ""
    """Id of the logged model that it was registered from."""
    aliases: tuple[str, ...] = ()

    @property
    def job(self) -> str:
        """The job that made it; empty if none of ours did."""
        return self.tags.get(JOB_TAG, "")

    @property
    def epoch(self) -> int:
        """Its erasure epoch."""
        text = self.tags.get(EPOCH_TAG, "0")
        return int(text) if text.isdecimal() else 0

    @property
    def revoked(self) -> str:
        """Why it was revoked; empty if it was not."""
        return self.tags.get(REVOKED_TAG, "")

    def remembers(self, epoch: int, job: str) -> bool:
        """Tell whether it may remember people whom the model of this job and erasure epoch has forgotten.

        A held candidate can have the same epoch as the next release and have forgotten other people.
        """
        erased = self.tags.get(KIND_TAG, ORIGINAL) != ORIGINAL
        return self.epoch < epoch or (self.epoch == epoch and erased and self.job != job)


def why_not_promoted(version: RegisteredVersion, epoch: int) -> str | None:
    """Return a sentence why a version may not become the champion; None if it may.

    Parameters
    ----------
    epoch
        Epoch of the fleet: that of its champion, or the greatest that devices were given.
    """
    name = f"Version {version.version}"
    if not version.job:
        return f"{name} was not made by a job of dlfd-fleet, so it is not known whom it remembers."
    if version.revoked:
        return f"{name} is revoked ({version.revoked}); it never runs again."
    if version.epoch < epoch:
        return (
            f"{name} has the erasure epoch {version.epoch}, under the fleet's {epoch}: it remembers forgotten people."
        )
    if version.tags.get(VERDICT_TAG) == "FAIL":
        return f"The verdict on version {version.version} is FAIL; start another erasure job."
    return None


def why_not_published(version: RegisteredVersion, epoch: int) -> str | None:
    """Return a sentence why a version may not be published or deployed; None if it may.

    All code that publishes a model calls this first.

    Parameters
    ----------
    epoch
        As in :func:`why_not_promoted`.
    """
    reason = why_not_promoted(version, epoch)
    if reason is None and PROMOTED_TAG not in version.tags:
        number = version.version
        return f"Version {number} was never promoted; check it, and then `dlfd-fleet registry promote {number}`."
    return reason


class Registry:
    """The versions of one registered model on one MLflow server, or in a local store."""

    def __init__(self, settings: TrackingSettings, uri: str) -> None:
        self.name, self.uri = settings.registered_model, uri
        self._client: MlflowClient | None = None

    @property
    def client(self) -> MlflowClient:
        """MLflow's client, made on first use, because a local store then creates its tables."""
        if self._client is None:
            # MLflow 3.17 uses a loader strategy that SQLAlchemy 2.1 has deprecated; nobody here can act on that.
            warnings.filterwarnings("ignore", category=SADeprecationWarning, module=r"mlflow\.")
            prepare_store(self.uri)
            self._client = MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)
        return self._client

    def versions(self) -> list[RegisteredVersion]:
        """Return every version, oldest first."""
        if not self.client.search_registered_models(f"name = '{self.name}'"):
            return []
        found = self.client.search_model_versions(f"name = '{self.name}'")
        aliases = self.client.get_registered_model(self.name).aliases
        return sorted((_described(version, aliases) for version in found), key=lambda version: int(version.version))

    def version(self, number: str) -> RegisteredVersion:
        """Return one version.

        Raises
        ------
        TrackingError
            If there is none of that number.
        """
        found = {version.version: version for version in self.versions()}
        if number not in found:
            known = ", ".join(found) or "none"
            raise TrackingError(f"The registered model '{self.name}' has no version {number}; it has: {known}.")
        return found[number]

    def version_of(self, job: str) -> RegisteredVersion | None:
        """Return the version that a job made, if it did."""
        return next((version for version in self.versions() if version.job == job), None)

    def champion(self) -> RegisteredVersion | None:
        """Return the version that the alias points at, if there is one."""
        return next((version for version in self.versions() if CHAMPION in version.aliases), None)

    def register(
        self, source: str, run_id: str, model_id: str, tags: Mapping[str, str], description: str = ""
    ) -> RegisteredVersion:
        """Make a version of a logged model, with a description in Markdown."""
        if not self.client.search_registered_models(f"name = '{self.name}'"):
            self.client.create_registered_model(self.name)
        made = self.client.create_model_version(
            self.name, source, run_id, tags=dict(tags), description=description or None, model_id=model_id
        )
        return _described(made, {})

    def promote(self, version: RegisteredVersion, by: str, why: str) -> None:
        """Make a version the champion, and remove its alias ``candidate``."""
        self.tag(version, PROMOTED_TAG, f"by {by}: {why}")
        self.point(CHAMPION, version)
        if CANDIDATE in version.aliases:
            self.client.delete_registered_model_alias(self.name, CANDIDATE)

    def point(self, alias: str, version: RegisteredVersion) -> None:
        """Move an alias to a version."""
        self.client.set_registered_model_alias(self.name, alias, version.version)

    def tag(self, version: RegisteredVersion, name: str, value: str) -> None:
        """Tag a version."""
        self.client.set_model_version_tag(self.name, version.version, name, value)

    def revoke(self, version: RegisteredVersion, reason: str) -> RegisteredVersion:
        """Tag a version as revoked and remove its aliases; the first reason stays."""
        reason = version.revoked or reason
        self.tag(version, REVOKED_TAG, reason)
        for alias in version.aliases:
            self.client.delete_registered_model_alias(self.name, alias)
        return replace(version, tags={**version.tags, REVOKED_TAG: reason}, aliases=())


@contextmanager
def answers(uri: str) -> Iterator[None]:
    """Turn MLflow's exceptions into a :class:`TrackingError` of one sentence.

    Raises
    ------
    TrackingError
        If the server does not answer, or refuses.
    """
    try:
        yield
    except FleetError:
        raise
    except MlflowException as error:
        if http_status(error) in (401, 403):
            raise TrackingError(
                f"MLflow at {uri} refuses the login; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
                "MLFLOW_TRACKING_TOKEN."
            ) from error
        raise TrackingError(f"MLflow at {uri} does not answer ({error.error_code}).") from error
    except Exception as error:
        raise TrackingError(f"MLflow at {uri} does not answer ({type(error).__name__}).") from error


def http_status(error: MlflowException) -> int:
    """Return the HTTP status of an error, or its equivalent."""
    return int(error.get_http_status_code())  # type: ignore[no-untyped-call]


def is_refusal(error: BaseException, codes: frozenset[str] = _REFUSALS) -> bool:
    """Tell whether MLflow itself refuses permanently.

    Only MLflow's own error codes count. Answers of a gateway (404, 400), a proxy that asks for a login, and a missing
    database are transient; MLflow's client uses other codes for them.
    """
    if isinstance(error, RestException):
        return error.json.get("error_code") in codes  # a number there is a gateway's status
    return isinstance(error, MlflowException) and error.error_code in codes


def is_unknown(error: BaseException) -> bool:
    """Tell whether MLflow itself reports that something does not exist."""
    return is_refusal(error, frozenset({"RESOURCE_DOES_NOT_EXIST"}))


def in_words(error: BaseException) -> str:
    """Return the first line of an error as plain text, without a gateway's HTML page."""
    text = str(error).strip().split("\n", 1)[0].split(". Response body:", 1)[0].strip()
    return visible(text or type(error).__name__, _LONGEST_REASON)


def _described(version: ModelVersion, aliases: Mapping[str, str]) -> RegisteredVersion:
    number = str(version.version)
    return RegisteredVersion(
        version=number,
        tags=dict(version.tags),
        run_id=str(version.run_id),
        model_id=version.model_id or str(version.source).removeprefix("models:/"),
        aliases=tuple(sorted(alias for alias, target in aliases.items() if str(target) == number)),
    )
