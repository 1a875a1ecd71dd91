"""The registry of unlearning methods: DLFD, its peers, and methods of other packages.

A method is a frozen dataclass of its hyper-parameters. It is called with an
:class:`~dlfd_fleet.unlearning.UnlearningProblem`. One :class:`Method` registers it for the benchmark, for ``dlfd-fleet
unlearn --method`` and for ``erasure.method`` in a fleet. Another package registers one by an entry point of the group
``dlfd_fleet.methods`` that names a :class:`Method`, or by ``METHODS.register``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import ValidationError

from dlfd_fleet.exceptions import ConfigurationError, FleetError, UnlearningError, place_of
from dlfd_fleet.registry import Registry
from dlfd_fleet.settings import UnlearningSettings
from dlfd_fleet.unlearning.contract import Unlearner, UnlearningProblem, UnlearnOutcome
from dlfd_fleet.unlearning.distancing import dlfd, unlearn_at_site
from dlfd_fleet.unlearning.peers import (
    BadTeacher,
    CatastrophicForgetting,
    ExactUnlearning,
    FineTune,
    MaskedSmallGradients,
    NegateLayers,
    NegGrad,
    NegGradPlus,
    ProjectedGradientAscent,
    ReleasedDlfd,
    SalUn,
    Scrub,
    SelectiveSynapticDampening,
    Unsir,
)

_DRAWS = 3
_Settings = TypeVar("_Settings", bound=UnlearningSettings)


@dataclass(frozen=True)
class Candidate:
    """A method with its hyper-parameters and its changes to the shared :class:`UnlearningSettings`.

    Attributes
    ----------
    changes
        Values by the names of ``unlearning.*``.
    time
        Its time limit, as a multiple of the common one.

    Raises
    ------
    ConfigurationError
        If a setting does not exist or does not accept the value.
    """

    unlearner: Unlearner
    changes: Mapping[str, Any] = field(default_factory=dict)
    time: float = 1.0

    def __post_init__(self) -> None:
        """Refuse an unlearner that cannot be called, and changes of unknown settings."""
        if not callable(self.unlearner):
            raise ConfigurationError(
                f"A candidate's unlearner is {self.unlearner!r}, which cannot be called; give an object of the class."
            )
        for name in self.changes:
            if name not in UnlearningSettings.model_fields:
                close = get_close_matches(name, UnlearningSettings.model_fields, n=1)
                hint = f"did you mean '{close[0]}'" if close else "`dlfd-fleet config show` lists them"
                raise ConfigurationError(f"A candidate changes '{name}', which is no setting of unlearning.*: {hint}.")
        try:
            UnlearningSettings.model_validate(dict(self.changes), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            changed, given = first["loc"][0], first["input"]
            raise ConfigurationError(
                f"A candidate changes '{changed}' (unlearning.{changed}) to {given!r}: {first['msg']}."
            ) from None

    def unlearn(self, method: str, problem: UnlearningProblem) -> UnlearnOutcome:
        """Run the unlearner, and report an error in one sentence.

        Parameters
        ----------
        method
            Name of the method in that sentence.

        Raises
        ------
        UnlearningError
            If the unlearner raises anything, or returns no :class:`UnlearnOutcome`.
        """
        try:
            outcome = self.unlearner(problem)
        except FleetError:
            raise
        except Exception as error:  # whatever a method of another package raises
            raise UnlearningError(
                f"The method '{method}' failed: {type(error).__name__}: {error} ({place_of(error)})."
            ) from error
        if not isinstance(outcome, UnlearnOutcome):
            raise UnlearningError(
                f"The method '{method}' gives a {type(outcome).__name__}, and no UnlearnOutcome; return "
                "session.outcome()."
            )
        return outcome

    def settings(self, given: _Settings) -> _Settings:
        """Return the settings with this candidate's changes, except where somebody has set a value."""
        changes = {name: value for name, value in self.changes.items() if name not in given.model_fields_set}
        return given.model_copy(update=changes)


@dataclass(frozen=True)
class Method:
    """A registered unlearning method.

    Attributes
    ----------
    name
        Its name on the command line and in files.
    candidates
        The candidates that ``bench methods`` tries on validation people. A peer has three. DLFD has its defaults, once
        with the time of one candidate and once with the time of three.
    gated
        Whether its unlearners have a gate, and so need validation people.
    at_site
        The unlearner that a site of a fleet runs, without validation people, because the coordinator has the gate.
        Default: the default candidate's unlearner, unless it is gated.
    aims_at_references
        Whether it trains with :meth:`~dlfd_fleet.unlearning.session.Session.train_on`, and so aims at targets, of
        reference models or given ones.
    """

    name: str
    title: str
    citation: str
    candidates: tuple[Candidate, ...]
    gated: bool = False
    at_site: Unlearner | None = None
    aims_at_references: bool = False

    def __post_init__(self) -> None:
        """Refuse a method without candidates, or with candidates of another type."""
        if not isinstance(self.candidates, tuple) or not all(isinstance(one, Candidate) for one in self.candidates):
            raise ConfigurationError(
                f"The candidates of the method '{self.name}' are no tuple of Candidate; of one, write (Candidate(…),)."
            )
        if not self.candidates:
            raise ConfigurationError(f"The method '{self.name}' has no candidate; give it at least one.")

    @property
    def default(self) -> Candidate:
        """The middle candidate, which is used without tuning."""
        return self.candidates[len(self.candidates) // 2]

    @property
    def unlearner_at_site(self) -> Unlearner:
        """The unlearner that a site of a fleet runs."""
        self.refuse_without_unlearner_at_site()
        return self.at_site or self.default.unlearner

    def described(self, unlearner: Unlearner) -> dict[str, Any]:
        """Return the description of this method and one of its unlearners for a report."""
        return {
            "method": self.name,
            "method_title": self.title,
            "method_package": METHODS.package_of(self.name),
            "method_settings": own_settings(unlearner),
        }

    @property
    def why_not_at_site(self) -> str | None:
        """Why a site cannot run this method; None if it can."""
        if self.at_site is None and self.gated:
            return (
                f"the method '{self.name}' has a gate of its own, for which a site has no validation people; choose "
                "another erasure.method"
            )
        return None

    def refuse_without_unlearner_at_site(self) -> None:
        """Raise a :class:`ConfigurationError` if a site cannot run this method."""
        if why := self.why_not_at_site:
            raise ConfigurationError(f"{why[0].upper()}{why[1:]}.")

    def refuse_labels(self) -> None:
        """Raise a :class:`ConfigurationError` if the method supports only one class an image, not labels."""
        if any(getattr(candidate.unlearner, "one_class_only", False) for candidate in self.candidates):
            raise ConfigurationError(
                f"The method '{self.name}' is defined for one class an image, and the model has labels; choose another "
                "one, such as dlfd."
            )

    @property
    def runs(self) -> int:
        """Number of runs on a seed, with different random numbers; tables show the mean.

        A peer also runs three times, once for each candidate, and validation people choose the best.
        """
        return _DRAWS if len(self.candidates) == 1 else 1


def _rates(unlearner: Unlearner, epochs: float, *rates: float) -> tuple[Candidate, ...]:
    return tuple(Candidate(unlearner, {"epochs": epochs, "learning_rate": rate}) for rate in rates)


def _variants(epochs: float, rate: float, *unlearners: Unlearner) -> tuple[Candidate, ...]:
    return tuple(Candidate(unlearner, {"epochs": epochs, "learning_rate": rate}) for unlearner in unlearners)


def own_settings(unlearner: Unlearner) -> dict[str, Any]:
    """Return a method's hyper-parameters: the fields of its dataclass, as JSON values or text."""
    if not is_dataclass(unlearner):
        return {}
    return {field.name: _as_json(getattr(unlearner, field.name)) for field in fields(unlearner)}


def _as_json(value: object) -> Any:
    if isinstance(value, tuple | list):
        return [_as_json(part) for part in value]
    # Without the address in memory, which no other process has.
    return value if isinstance(value, bool | int | float | str | None) else re.sub(" at 0x[0-9a-f]+", "", repr(value))


# Epochs are over the retain set where a method trains on it, so two to five of them cost all methods about the same.
_METHODS = (
    Method(
        "dlfd",
        "DLFD",
        "arXiv 2409.14747",
        (Candidate(dlfd),),
        gated=True,
        at_site=unlearn_at_site,
        aims_at_references=True,
    ),
    Method(
        "dlfd-longer",
        "DLFD, 3 x the time",
        "arXiv 2409.14747",
        (Candidate(dlfd, time=3.0),),
        gated=True,
        at_site=unlearn_at_site,
        aims_at_references=True,
    ),
    Method("ascent", "gradient ascent", "arXiv 2207.05521", _rates(ProjectedGradientAscent(), 1.0, 0.005, 0.01, 0.015)),
    Method(
        "fine-tune", "fine-tune", "arXiv 1911.04933", _rates(FineTune(), 5.0, 0.01, 0.02, 0.05), aims_at_references=True
    ),
    Method("neggrad", "NegGrad", "arXiv 1911.04933", _rates(NegGrad(), 5.0, 0.002, 0.003, 0.005)),
    Method(
        "cf-k",
        "CF-k",
        "arXiv 2201.06640",
        _variants(5.0, 0.05, CatastrophicForgetting(5), CatastrophicForgetting(9), CatastrophicForgetting(13)),
        aims_at_references=True,
    ),
    Method(
        "eu-k",
        "EU-k",
        "arXiv 2201.06640",
        _variants(5.0, 0.05, ExactUnlearning(5), ExactUnlearning(9), ExactUnlearning(13)),
        aims_at_references=True,
    ),
    Method(
        "unsir",
        "UNSIR",
        "arXiv 2111.08947",
        _variants(3.0, 0.05, Unsir(impairing_rate=0.02), Unsir(impairing_rate=0.05), Unsir(impairing_rate=0.1)),
        aims_at_references=True,
    ),
    Method("bad-teacher", "Bad Teacher", "arXiv 2205.08096", _rates(BadTeacher(), 4.0, 0.001, 0.002, 0.005)),
    Method("scrub", "SCRUB", "arXiv 2302.09880", _rates(Scrub(), 4.0, 0.005, 0.01, 0.02)),
    Method(
        "neggrad-plus",
        "NegGrad+",
        "arXiv 2302.09880",
        _variants(3.0, 0.005, NegGradPlus(0.99), NegGradPlus(0.95), NegGradPlus(0.9)),
    ),
    Method("salun", "SalUn", "arXiv 2310.12508", _rates(SalUn(), 3.0, 0.001, 0.002, 0.005)),
    Method(
        "msg", "MSG", "arXiv 2410.01276", _rates(MaskedSmallGradients(), 4.0, 0.01, 0.02, 0.05), aims_at_references=True
    ),
    Method("not", "NoT", "arXiv 2503.05657", _rates(NegateLayers(), 5.0, 0.005, 0.01, 0.02), aims_at_references=True),
    Method(
        "ssd",
        "SSD",
        "arXiv 2308.07707",
        tuple(Candidate(SelectiveSynapticDampening(selection)) for selection in (1.5, 2.5, 4.0)),
    ),
    Method(
        "dlfd-released",
        "DLFD as released",
        "github.com/Dasol-Choi/DLFD",
        (Candidate(ReleasedDlfd(), {"learning_rate": 0.008}),),
        gated=True,
    ),
)

METHODS = Registry("method", Method, "dlfd_fleet.methods", _METHODS)
"""Every registered method by name."""
