"""Decide which model the fleet and its devices use: champion, promotion, revocation and publication.

It reads a state folder and MLflow's registry, and keeps both in agreement. A model that remembers a forgotten person
never becomes the champion again. Not stable: use ``dlfd-fleet registry`` and ``publish``.

Examples
--------
>>> from dlfd_fleet.audit import Outcome, Verdict
>>> from dlfd_fleet.federation.release import may_release
>>> from dlfd_fleet.settings import Settings
>>> verdict = Verdict(outcome=Outcome.FAIL, reasons=("the attack still finds them",), margin=0.1, power=0.9)
>>> may_release(verdict, Settings())
False
"""

from dlfd_fleet.federation.release.champion import agreed_champion
from dlfd_fleet.federation.release.publication import released_model
from dlfd_fleet.federation.release.purge import purge_remembering
from dlfd_fleet.federation.release.release_rule import may_release, retrain_instead

__all__ = ["agreed_champion", "may_release", "purge_remembering", "released_model", "retrain_instead"]
