"""Bind each site's id to its SuperNode's key: a node that uses the id must have the same key as before.

A site's id is public: reports and MLflow show it. Its key is secret: a SuperNode signs each call with it, and a
SuperLink with registered keys accepts nobody else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dlfd_fleet.exceptions import JobError
from dlfd_fleet.files import whole_file

SITE_KEYS_FILE = "site-keys.txt"
_NOTE = (
    "# Which SuperNode key each site has: its id and the SHA-256 of its public key (PEM), noted at its first answer.\n"
    "# A site that has a new key is refused. If the key was changed on purpose, delete the site's line.\n"
)


@dataclass
class SiteKeys:
    """The known sites and the fingerprints of their keys.

    Attributes
    ----------
    file
        File with one line for each site. Without a file they are kept in memory.
    bound
        Whether keys are registered. Otherwise Flower makes a new key at each start.
    """

    file: Path | None = None
    bound: bool = True
    _known: dict[str, str] = field(default_factory=dict)

    def refused(self, claimed: Mapping[int, str], keys: Mapping[int, str], before: Mapping[str, int]) -> dict[int, str]:
        """Return nodes that are not the sites that they claim to be, with the reason; note the keys of new sites.

        Parameters
        ----------
        claimed
            The site id that each node claims.
        keys
            Fingerprints of nodes' keys; simulated nodes have none.
        before
            The node that each site was earlier in this job.

        Raises
        ------
        JobError
            If the file cannot be read or written.
        """
        keys = keys if self.bound else {}
        known = self._read()
        owners = {key: site for site, key in known.items()}
        nodes_of: dict[str, list[int]] = {}
        for node, site in claimed.items():
            nodes_of.setdefault(site, []).append(node)
        refused, new = dict[int, str](), dict[str, str]()
        for site, nodes in sorted(nodes_of.items()):
            if self.bound and site in known:
                for node in nodes:
                    if keys.get(node) != known[site]:
                        refused[node] = self._other_key(site, known[site], keys.get(node))
                continue
            for node in nodes:
                if (owner := owners.get(keys.get(node, ""))) is not None:
                    refused[node] = (
                        f"says that it is {_name(site)}, and has the key of {_name(owner)}{self._way_out(owner)}"
                    )
            left = [node for node in nodes if node not in refused]
            if len(left) > 1 and before.get(site) in left:
                others = [node for node in left if node != before[site]]
                refused |= dict.fromkeys(others, f"says that it is {_name(site)}, which another node is in this job")
            elif len(left) > 1:
                refused |= {node: _claimed_twice(site, keys.get(node)) for node in left}
            elif left and left[0] in keys:
                new[site] = keys[left[0]]
        if new:
            self._write(known | new)
        return refused

    def site_of(self, key: str | None) -> str | None:
        """Return the site that a key is noted for; None if it is for none, or keys do not outlive a process.

        Raises
        ------
        JobError
            If the file cannot be read.
        """
        known = self._read() if self.bound and key is not None else {}
        return next((site for site, owned in known.items() if owned == key), None)

    def may_be(self, site: str, key: str | None) -> bool:
        """Tell whether a node with this key can be a site.

        Raises
        ------
        JobError
            If the file cannot be read.
        """
        return not self.bound or self._read().get(site, key) == key

    def _other_key(self, site: str, known: str, shown: str | None) -> str:
        has = f"has the key SHA256:{shown[:16]}" if shown else "has no key"
        return f"says that it is {_name(site)}, whose key is SHA256:{known[:16]}, and {has}{self._way_out(site)}"

    def _way_out(self, site: str) -> str:
        if self.file is None:
            return ""
        return (
            f"; if that is right, delete the line of {site} from {self.file.name} in the coordinator's folder, or set "
            "fleet.registered_keys to false if the fleet's SuperNodes have no registered keys"
        )

    def _read(self) -> dict[str, str]:
        if self.file is None or not self.file.exists():
            return self._known
        try:
            lines = self.file.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError) as error:
            raise JobError(f"{self.file} cannot be read: {error}. Put it right, or delete it.") from error
        known = dict[str, str]()
        for number, line in enumerate(lines, start=1):
            words = [] if line.startswith("#") else line.split()
            if len(words) not in {0, 2}:
                raise JobError(
                    f"{self.file} cannot be read: line {number} is not a site's id and the SHA-256 of its key. Correct "
                    "the line, or delete it: then the site's next key is noted."
                )
            if words:
                known[words[0]] = words[1]
        return known

    def _write(self, known: dict[str, str]) -> None:
        self._known = known
        if self.file is not None:
            text = _NOTE + "".join(f"{site} {key}\n" for site, key in sorted(known.items()))
            with whole_file(self.file, JobError) as new:
                new.write_text(text, encoding="utf-8")


def _claimed_twice(site: str, key: str | None) -> str:
    shown = f" with the key SHA256:{key[:16]}" if key else ""
    return (
        f"says that it is {_name(site)}{shown}, as another node does, and nobody can tell which one is; a copied site "
        "folder needs an 'id' of its own in its site.json"
    )


def _name(site: str) -> str:
    return f"site-{site}"
