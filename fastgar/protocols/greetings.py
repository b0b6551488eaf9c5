"""What peers say when they greet: how far they are, and what they have heard from this node."""

from __future__ import annotations

from .cluster import Cluster
from .mailbox import WINDOW

__all__ = ["Greetings", "is_own_word"]


def is_own_word(kind: str) -> bool:
    """Return whether a message of a kind binds its sender: a proof is what another has signed."""
    return kind.partition("/")[0] != "proof"


class Greetings:
    """The last greeting of each peer.

    Parameters
    ----------
    name : str
        Of the node that is greeted.
    cluster : Cluster
    """

    def __init__(self, name: str, cluster: Cluster) -> None:
        self.name, self.cluster = name, cluster
        self._claims: dict[str, tuple[int, dict[str, int]]] = {}

    def take(self, peer: str, at: int, heard: dict[str, int]) -> None:
        """Take note of the step that a peer is in, and of what it has heard."""
        self._claims[peer] = at, {kind: step for kind, step in heard.items() if is_own_word(kind)}

    def are_enough(self) -> bool:
        """Return whether the node may start."""
        role = self.cluster.role(self.name)
        for other in self.cluster.groups:
            others = [name for name in self.cluster.of_role(other) if name != self.name]
            needed = self.cluster.enough(role, other) - (other == role)
            if sum(name in self._claims for name in others) < needed:
                return False
        return True

    def silent_until(self, known: int) -> int:
        """Return the last step that a node must not speak of, or -1.

        That is if it has sent something for a step that its disk, which knows `known`, does not
        know. No single peer decides: of a role, one more than may lie must have heard it, or have
        come so far.
        """
        ahead, said = 0, -1
        for role, group in self.cluster.groups.items():
            claims = [
                self._claims[name] for name in self.cluster.of_role(role) if name in self._claims
            ]
            if len(claims) > group.f:
                steps = sorted((at for at, _ in claims), reverse=True)
                heard = sorted((max(of.values(), default=-1) for _, of in claims), reverse=True)
                ahead, said = max(ahead, steps[group.f]), max(said, heard[group.f])
        return max(ahead, said) + WINDOW if said > known else -1

    def are_ahead(self, at: int) -> bool:
        """Return whether more nodes of a role than may lie say that they are past a step."""
        for role, group in self.cluster.groups.items():
            claims = [
                self._claims[name] for name in self.cluster.of_role(role) if name in self._claims
            ]
            if sum(step > at for step, _ in claims) > group.f:
                return True
        return False
