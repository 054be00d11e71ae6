"""The game of gym-pusht with a reward that does not depend on memory addresses.

The package unites the block's two shapes in the order of a Python set, so the last bit of the
covered area changes from one process to the next, and with it a score or, at the threshold, a
success. Importing this file needs the extra `pusht`.
"""

from gym_pusht.envs.pusht import PushTEnv, pymunk_to_shapely


class Game(PushTEnv):
    """Push-T whose course and rewards are functions of its start and actions alone."""

    def _get_coverage(self) -> float:
        """Covered fraction of the target, its shapes in the order in which they were made."""
        target = pymunk_to_shapely(self.get_goal_pose_body(self.goal_pose), self._block_shapes)
        block = pymunk_to_shapely(self.block, self._block_shapes)
        return target.intersection(block).area / target.area
