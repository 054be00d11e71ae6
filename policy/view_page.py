"""A page of `cadence view` that holds what it shows: one file, for a browser without this program.

It opens from a disk, asks nobody for anything, and can be sent to somebody.
"""

import base64
import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from policy.serving.endpoints import Page
from policy.view_server import VIEW_PAGE
from policy.view_source import Source


def page_of(
    source: Source,
    about: Mapping,
    findings: Mapping,
    *,
    episodes: Sequence[int],
    most_pictures: int,
    progress: Callable[[], object] = lambda: None,
) -> str:
    """The page, with some episodes.

    Args:
        source: of the episodes.
        about: what there is, as JSON.
        findings: what the doctor says, as JSON.
        episodes: their numbers, at least one.
        most_pictures: of a camera and episode; of longer ones every second, third, ... is kept.
        progress: called after every episode.

    Raises:
        IndexError: there is no such episode.
        StoreError: it cannot be read.
    """
    kept: dict[str, object] = {
        "about.json": {**about, "first_episode": episodes[0]},
        "findings.json": findings,
        "episodes.json": [source.episodes(episode, 1)[0] for episode in episodes],
    }
    n_cameras = len(about["cameras"])
    for episode in episodes:
        numbers = np.ascontiguousarray(source.numbers(episode), "<f4")
        kept[f"numbers/{episode}"] = _text(numbers.tobytes())
        kept[f"chunks/{episode}"] = source.chunks(episode).to_json()
        steps = list(range(0, len(numbers), -(-len(numbers) // max(1, most_pictures))))
        kept[f"steps/{episode}"] = steps
        for camera in range(n_cameras):
            kept[f"strip/{episode}/{camera}"] = _text(source.strip(episode, camera))
            for step in steps:
                picture = source.picture(episode, step, camera)
                kept[f"frame/{episode}/{step}/{camera}"] = _text(picture)
        progress()
    return _filled(kept)


def _filled(kept: Mapping[str, object]) -> str:
    page = Page.read(VIEW_PAGE)
    # In a script element the text ends at "</script", whatever it is within, so there is no "<".
    text = json.dumps(kept, allow_nan=False).replace("<", "\\u003c")
    head, script = page.body.decode().split('<script>\n"use strict"', 1)
    policy = page.policy.replace("; frame-ancestors 'none'", "")  # Not for a page to say itself.
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    head = head.replace('<meta charset="utf-8">', f'<meta charset="utf-8">\n{meta}', 1)
    data = f'<script type="application/json" id="embedded">{text}</script>\n'
    return f'{head}{data}<script>\n"use strict"{script}'


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()
