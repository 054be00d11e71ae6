"""Episodes whose action does not affect the state: a robot that was off, actions of another one.

Over all episodes, how the state changes is foretold by least squares, from the state alone and from
state and action. Where the action helps foretelling, each episode is asked whether it does there.
"""

from pathlib import Path

import numpy as np

from data.checks.episode import Episode, changes, sensed
from data.checks.finding import Finding, deletion, in_episodes, warning
from data.checks.scales import Scales
from data.types import Contract

MOST_ELEMENTS = 256  # of the state; more are not looked at
FEWEST = 5  # episodes from which something can be learned
HELPS = 0.1  # share of the changes' squares that the action explains on top of the state, at least
WORSE = 1.5  # times the squares that remain without the action: it tells nothing here, but misleads
MOVES = 0.02  # of its range by which an action has to vary in an episode


class Foretelling:
    """First pass: what is needed to foretell changes of the state, summed over the episodes."""

    def __init__(self, contract: Contract):
        self._contract = contract
        self.names = sensed(contract)
        n_state = sum(contract.fields[name].size for name in self.names)
        self.n_state, self.is_possible = n_state, 0 < n_state <= MOST_ELEMENTS
        n_all = n_state + contract.action.size + 1
        self._inputs = np.zeros((n_all, n_all))
        self._crossed = np.zeros((n_all, n_state))
        self._outputs = np.zeros(n_state)
        self._first: np.ndarray | None = None
        self._n_episodes = 0

    def see(self, episode: Episode) -> None:
        """Look at one more episode."""
        if not self.is_possible or episode.length < 3:
            return
        inputs, outputs = self.split(episode)
        with np.errstate(over="ignore", invalid="ignore"):
            self._inputs += inputs.T @ inputs
            self._crossed += inputs.T @ outputs
            self._outputs += (outputs**2).sum(axis=0)
        self._n_episodes += 1

    def split(self, episode: Episode) -> tuple[np.ndarray, np.ndarray]:
        """[L - 1, n] state, 1 and action, and [L - 1, n_state] the changes that follow."""
        state = np.concatenate([episode.fields[name] for name in self.names], axis=1)
        change = [changes(episode.fields[n], self._contract.fields[n]) for n in self.names]
        if self._first is None:
            self._first = np.concatenate([state, episode.fields["action"]], axis=1)[0]
        now = np.concatenate([state, episode.fields["action"]], axis=1)[:-1] - self._first
        ones = np.ones((len(now), 1))
        inputs = np.concatenate([now[:, : self.n_state], ones, now[:, self.n_state :]], axis=1)
        return inputs, np.concatenate(change, axis=1)

    def solve(self) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Weights without and with the action, and which elements it helps; None: it is no use."""
        if not self.is_possible or self._n_episodes < FEWEST:
            return None
        if not all(np.isfinite(sums).all() for sums in (self._inputs, self._crossed)):
            return None  # Numbers that large have no squares.
        n = self.n_state + 1
        without = np.zeros_like(self._crossed)
        without[:n] = _least_squares(self._inputs[:n, :n], self._crossed[:n])
        having = _least_squares(self._inputs, self._crossed)
        explained = (having * self._crossed).sum(axis=0) - (without * self._crossed).sum(axis=0)
        helps = explained > HELPS * np.maximum(self._outputs, 1e-300)
        return (without, having, helps) if helps.any() else None


def _least_squares(squares: np.ndarray, crossed: np.ndarray) -> np.ndarray:
    """Weights [n, m], of inputs that are scaled to size 1 first; unused ones get 0."""
    size = np.sqrt(np.maximum(np.diag(squares), 1e-300))
    scaled = squares / np.outer(size, size)
    solved = np.linalg.lstsq(scaled, crossed / size[:, None], rcond=1e-9)[0]
    return solved / size[:, None]


class Effect:
    """S029 episodes whose action does not affect the state; the second pass."""

    def __init__(
        self, path: Path | str, contract: Contract, scales: Scales, foretelling: Foretelling
    ):
        self._path, self._foretelling = path, foretelling
        self._solved = foretelling.solve()
        self._scales = scales
        self._frozen: list[int] = []
        self._misled: list[int] = []

    def see(self, episode: Episode) -> None:
        """Look at one more episode."""
        names = self._foretelling.names
        if episode.length < 3 or not self._foretelling.n_state or not self._acts(episode):
            return
        if all((episode.fields[n] == episode.fields[n][0]).all() for n in names):
            self._frozen.append(episode.index)
        elif self._solved is not None:
            without, having, helps = self._solved
            inputs, outputs = self._foretelling.split(episode)
            remain = [
                ((outputs - inputs @ weights)[:, helps] ** 2).sum(axis=0)
                for weights in (without, having)
            ]
            if (remain[1] > WORSE * remain[0]).all():
                self._misled.append(episode.index)

    def _acts(self, episode: Episode) -> bool:
        """Whether some continuous element of the action varies."""
        scale, values = self._scales.of["action"], episode.fields["action"]
        varies = np.ptp(values, axis=0) > MOVES * np.maximum(scale.range, 1e-12)
        return bool((varies & scale.is_continuous).any())

    def findings(self) -> list[Finding]:
        """Whose actions did nothing."""
        found = []
        for episodes, what in (
            (self._frozen, "the state stands still while the action moves"),
            (self._misled, "the action does not tell how the state moves, as it does elsewhere,"),
        ):
            if episodes:
                message = f"{what} {in_episodes(episodes)}"
                fix = "was the robot off, or are the actions another episode's? leave out: "
                fix += deletion(self._path, episodes)
                found.append(warning("S029", message, fix, episodes))
        return found
