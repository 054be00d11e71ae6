"""Success of the episodes that were played in training, without a preference for short ones.

Of the episodes that *end* in a stretch of time the short ones are over-represented, and where a
success ends an episode those are the successes. Here episodes are reported in the order in which
they *began*, each as soon as it and all before it have ended.

Where all episodes are broken off at once (a restart, see `policy.rl.slots`) those that began after
the first unfinished one are not reported. The last of each environment is then missing, and long
ones are missing more often, so restarts should be many episodes apart.
"""

from dataclasses import dataclass, field


@dataclass
class Played:
    """An episode.

    Args:
        reward: sum so far.
        length: executed steps so far.
        is_success: whether the task was ever done.
        has_ended: whether it is over.
    """

    reward: float = 0.0
    length: int = 0
    is_success: bool = False
    has_ended: bool = False


@dataclass
class Accounting:
    """Episodes in the order in which they began."""

    pending: list[Played] = field(default_factory=list)

    def begin(self) -> Played:
        """A new episode."""
        episode = Played()
        self.pending.append(episode)
        return episode

    def drop(self, episode: Played) -> None:
        """Forget an episode, because it was broken off by what is no end of it."""
        self.pending = [other for other in self.pending if other is not episode]

    def report(self) -> list[Played]:
        """The episodes that have ended, up to the first that has not; each once."""
        n = next((i for i, e in enumerate(self.pending) if not e.has_ended), len(self.pending))
        ended, self.pending = self.pending[:n], self.pending[n:]
        return ended
