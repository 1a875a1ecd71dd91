"""Every method that can be compared, with the few settings that it is tried with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dlfd_fleet.unlearning.contract import Unlearner
from dlfd_fleet.unlearning.distancing import dlfd
from dlfd_fleet.unlearning.peers import (
    BadTeacher,
    CatastrophicForgetting,
    ExactUnlearning,
    FineTune,
    MaskedSmallGradients,
    NegateLayers,
    NegGrad,
    NegGradPlus,
    ReleasedDlfd,
    SalUn,
    Scrub,
    SelectiveSynapticDampening,
    Unsir,
)


@dataclass(frozen=True)
class Candidate:
    """A method with its hyper-parameters, and what it changes of the shared settings."""

    unlearner: Unlearner
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """A method of the comparison.

    Attributes
    ----------
    candidates
        What is tried on validation people. Peers have three; DLFD has its defaults, and finds the rest by itself.
    """

    title: str
    citation: str
    candidates: tuple[Candidate, ...]


def _rates(unlearner: Unlearner, epochs: float, *rates: float) -> tuple[Candidate, ...]:
    return tuple(Candidate(unlearner, {"epochs": epochs, "learning_rate": rate}) for rate in rates)


METHODS: dict[str, Method] = {
    "dlfd": Method("DLFD", "arXiv 2409.14747", (Candidate(dlfd),)),
    "fine-tune": Method("fine-tune", "arXiv 1911.04933", _rates(FineTune(), 5.0, 0.005, 0.01, 0.02)),
    "neggrad": Method("NegGrad", "arXiv 1911.04933", _rates(NegGrad(), 1.0, 0.0005, 0.002, 0.005)),
    "cf-k": Method(
        "CF-k",
        "arXiv 2201.06640",
        tuple(Candidate(CatastrophicForgetting(k), {"epochs": 5.0, "learning_rate": 0.01}) for k in (5, 9, 13)),
    ),
    "eu-k": Method(
        "EU-k",
        "arXiv 2201.06640",
        tuple(Candidate(ExactUnlearning(k), {"epochs": 5.0, "learning_rate": 0.01}) for k in (5, 9, 13)),
    ),
    "unsir": Method(
        "UNSIR",
        "arXiv 2111.08947",
        tuple(
            Candidate(Unsir(impairing_rate=rate), {"epochs": 4.0, "learning_rate": 0.01})
            for rate in (0.005, 0.02, 0.05)
        ),
    ),
    "bad-teacher": Method("Bad Teacher", "arXiv 2205.08096", _rates(BadTeacher(), 2.0, 0.002, 0.005, 0.01)),
    "scrub": Method("SCRUB", "arXiv 2302.09880", _rates(Scrub(), 4.0, 0.002, 0.005, 0.01)),
    "neggrad-plus": Method(
        "NegGrad+",
        "arXiv 2302.09880",
        tuple(Candidate(NegGradPlus(alpha), {"epochs": 3.0, "learning_rate": 0.005}) for alpha in (0.99, 0.95, 0.9)),
    ),
    "salun": Method("SalUn", "arXiv 2310.12508", _rates(SalUn(), 3.0, 0.002, 0.005, 0.01)),
    "msg": Method("MSG", "arXiv 2410.01276", _rates(MaskedSmallGradients(), 4.0, 0.005, 0.01, 0.02)),
    "not": Method("NoT", "arXiv 2503.05657", _rates(NegateLayers(), 5.0, 0.005, 0.01, 0.02)),
    "ssd": Method(
        "SSD",
        "arXiv 2308.07707",
        tuple(Candidate(SelectiveSynapticDampening(selection)) for selection in (2.0, 10.0, 50.0)),
    ),
    "dlfd-released": Method(
        "DLFD as released",
        "github.com/Dasol-Choi/DLFD",
        (Candidate(ReleasedDlfd(), {"learning_rate": 0.008}),),
    ),
}
