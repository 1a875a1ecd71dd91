"""How often something happens, of so many independent tries, with exact bounds."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, computed_field


class Rate(BaseModel):
    """A share of independent tries, and its exact bounds (Clopper and Pearson 1934).

    Attributes
    ----------
    happened, tries
        How often, of how many.
    confidence
        Of both bounds together: each is missed in at most half of the rest of cases, however few tries there are.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    happened: Annotated[int, Field(ge=0)]
    tries: Annotated[int, Field(ge=0)]
    confidence: Annotated[float, Field(gt=0.0, lt=1.0)]

    @property
    def value(self) -> float | None:
        """The share; None of no tries."""
        return self.happened / self.tries if self.tries else None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def low(self) -> float:
        """Lower bound."""
        from scipy.stats import beta

        missed = (1.0 - self.confidence) / 2.0
        return float(beta.ppf(missed, self.happened, self.tries - self.happened + 1)) if self.happened else 0.0

    @computed_field  # type: ignore[prop-decorator]
    @property
    def high(self) -> float:
        """Upper bound."""
        from scipy.stats import beta

        missed = (1.0 - self.confidence) / 2.0
        if self.happened == self.tries:
            return 1.0
        return float(beta.ppf(1.0 - missed, self.happened + 1, self.tries - self.happened))

    def __str__(self) -> str:
        if not self.tries:
            return "not known"
        return f"{self.value:.0%} [{self.low:.0%}, {self.high:.0%}] ({self.happened} of {self.tries})"
