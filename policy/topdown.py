"""Pictures of a scene from above, as SVG: sampled chunks over it, and a rollout that moves.

x points up the page and y to the left, as one sees a table with x ahead. Colours are those of the
page around (CSS variables), except for the scene's own.

Shape legend: `S` samples, `T` steps, `Tp` predicted steps, `Da` action size.
"""

import math
from collections.abc import Sequence
from html import escape

import numpy as np

from policy.scene import Fan, Rollout, Shape, split_by_widest_gap

SERIES = ("var(--series-1)", "var(--series-2)")


class View:
    """A window onto the scene from above, in page units.

    Args:
        shapes: of the scene; the window holds all of them ...
        points: [..., 2] ... and all of these (x, y).
        width: of the window on the page.
    """

    def __init__(self, shapes: Sequence[Shape], points: np.ndarray, *, width: float = 320.0):
        reach = [np.hypot(*s.half_size) if not s.is_round else s.half_size[0] for s in shapes]
        corners = [np.asarray(points, dtype=float).reshape(-1, 2)]
        for shape, r in zip(shapes, reach, strict=True):
            r = np.array(shape.half_size) if shape.angle == 0 else r
            corners += [np.add(shape.centre, r)[None], np.subtract(shape.centre, r)[None]]
        low, high = np.vstack(corners).min(axis=0), np.vstack(corners).max(axis=0)
        extent = np.maximum(high - low, 1e-9)
        self._high, self.scale, self.width = high, width / extent[1], width
        self.height = extent[0] * self.scale
        self._shapes = sorted(shapes, key=lambda shape: shape.top)

    def place(self, points: np.ndarray) -> np.ndarray:
        """Page coordinates (right, down) [..., 2] of points (x, y) [..., 2]."""
        return (self._high - points)[..., ::-1] * self.scale

    def picture(self, label: str, *drawn: str) -> str:
        """An `<svg>` element of the scene with something drawn over it."""
        scene = "".join(self._shape(shape) for shape in self._shapes)
        return (
            f'<svg role="img" aria-label="{escape(label)}" width="{self.width:.0f}" '
            f'height="{self.height:.0f}" viewBox="0 0 {self.width:.1f} {self.height:.1f}">'
            f"{scene}{''.join(drawn)}</svg>"
        )

    def path(self, points: np.ndarray, colour: str, *, opacity: float = 0.7) -> str:
        """A line through points (x, y) [T, 2]."""
        listed = " ".join(f"{right:.1f},{down:.1f}" for right, down in self.place(points))
        return f'<polyline points="{listed}" fill="none" stroke="{colour}" opacity="{opacity}"/>'

    def dot(self, point: np.ndarray, colour: str, *, radius: float, inside: str = "") -> str:
        """A disc at a point (x, y), with child elements."""
        right, down = self.place(point)
        at = f'cx="{right:.1f}" cy="{down:.1f}" r="{radius}"'
        return f'<circle {at} fill="{colour}">{inside}</circle>'

    def _shape(self, shape: Shape) -> str:
        right, down = self.place(np.array(shape.centre))
        up, across = (half * self.scale for half in shape.half_size)
        colour = "var(--ground)" if self._is_ground(shape) else shape.colour
        look = f'fill="{colour}"><title>{escape(shape.name)}</title>'
        if shape.is_round:
            return f'<circle cx="{right:.1f}" cy="{down:.1f}" r="{up:.1f}" {look}</circle>'
        # Counter-clockwise from above is counter-clockwise on the page, which SVG counts negative.
        turn = f"rotate({-math.degrees(shape.angle):.1f} {right:.1f} {down:.1f})"
        return (
            f'<rect x="{right - across:.1f}" y="{down - up:.1f}" width="{2 * across:.1f}" '
            f'height="{2 * up:.1f}" transform="{turn}" {look}</rect>'
        )

    def _is_ground(self, shape: Shape) -> bool:
        """Whether all else stands on it: the lowest and the largest of the shapes."""
        areas = [math.prod(other.half_size) for other in self._shapes]
        return shape is self._shapes[0] and math.prod(shape.half_size) == max(areas)


def draw_fans(fans: Sequence[Fan]) -> str:
    """Sampled chunks over the scene, one picture per moment, coloured by the groups they form."""
    return f'<div class="fans">{"".join(_draw_fan(fan) for fan in fans)}</div>'


def _draw_fan(fan: Fan) -> str:
    paths = fan.chunks[..., :2]
    group = split_by_widest_gap(paths)
    view = View(fan.shapes, paths, width=195.0)
    lines = [view.path(p, SERIES[int(g)]) for p, g in zip(paths, group, strict=True)]
    now = view.dot(paths[:, 0].mean(axis=0), "var(--ink)", radius=3.5)
    counts = " + ".join(
        f'<span style="color:{colour}">{n}</span>'
        for colour, n in zip(SERIES, ((~group).sum(), group.sum()), strict=True)
    )
    label = f"{len(paths)} sampled chunks, start {fan.seed}"
    return (
        f'<div class="fan">{view.picture(label, *lines, now)}'
        f"<p>start {fan.seed}, tick {fan.tick}: {counts} chunks</p></div>"
    )


def moving_picture(rollout: Rollout, shapes: Sequence[Shape], *, control_dt: float) -> str:
    """A rollout from above as an animated `<svg>`: each observed position is a dot with a trail.

    Positions are observation fields of at least two numbers, of which the first two are x and y.

    Args:
        rollout: what was seen.
        shapes: the scene at the start.
        control_dt: time between two steps [s].

    Raises:
        ValueError: no observation field holds a position.
    """
    tracks = {
        name: np.asarray(values, dtype=float)[:, :2]
        for name, values in rollout.observation.items()
        if values.ndim == 2 and values.shape[1] >= 2
    }
    if not tracks:
        raise ValueError(
            f"no observation field holds a position, there are {sorted(rollout.observation)}"
        )
    view = View(shapes, np.concatenate(list(tracks.values())), width=400.0)
    drawn = []
    for number, (name, track) in enumerate(tracks.items()):
        colour = SERIES[number] if number < len(SERIES) else "var(--muted)"
        right, down = view.place(track).T
        seconds = control_dt * len(track)
        move = _animate("cx", right, seconds) + _animate("cy", down, seconds)
        drawn.append(view.path(track, colour))
        drawn.append(
            view.dot(track[0], colour, radius=7, inside=f"<title>{escape(name)}</title>{move}")
        )
        drawn.append(f'<text x="8" y="{18 + 16 * number}" fill="{colour}">{escape(name)}</text>')
    return view.picture(f"rollout of start {rollout.seed} from above", *drawn)


def _animate(attribute: str, values: np.ndarray, seconds: float) -> str:
    listed = ";".join(f"{value:.1f}" for value in values)
    return (
        f'<animate attributeName="{attribute}" values="{listed}" dur="{seconds:.2f}s" '
        f'repeatCount="indefinite"/>'
    )
