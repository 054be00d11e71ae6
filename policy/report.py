"""The report page: one HTML file that holds everything it shows and asks nothing of a network.

It follows the reader's light or dark setting. Every figure carries the command, the seeds and the
intervals behind it.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

STYLE = """
:root { color-scheme: light dark; --ink: #1d2330; --muted: #667085; --grid: #e3e6ec;
  --page: #fbfbfa; --card: #ffffff; --ground: #f1efe9; --series-1: #2a6fdb; --series-2: #d9622b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --muted: #98a2b3; --grid: #323845;
  --page: #14171d; --card: #1b1f27; --ground: #272c36; --series-1: #6ea8ff; --series-2: #ff9a62; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 3rem 1.25rem 4rem; max-width: 60rem; background: var(--page);
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; letter-spacing: -.02em; margin: 0 0 .4rem; }
h2 { font-size: 1.1rem; margin: 0 0 .2rem; }
p { margin: .3rem 0 1rem; max-width: 44rem; }
.lead { font-size: 1.08rem; color: var(--muted); margin-bottom: 2rem; }
section { background: var(--card); border: 1px solid var(--grid); border-radius: .7rem;
  padding: 1.3rem 1.5rem; margin: 1.3rem 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
td { padding: .42rem .9rem .42rem 0; border-top: 1px solid var(--grid); vertical-align: top; }
tr:first-child td { border-top: 0; }
td:nth-child(1) { white-space: nowrap; }
td:nth-child(2) { font-weight: 600; white-space: nowrap; }
td:nth-child(3) { color: var(--muted); font-size: .9rem; }
svg, video { max-width: 100%; height: auto; }
svg text { font-family: inherit !important; font-size: 13px; }
video { border-radius: .5rem; margin-right: .6rem; }
.source { color: var(--muted); font-size: .84rem; margin: .6rem 0 0; max-width: none; }
.source code { overflow-wrap: anywhere; }
.fans { display: flex; flex-wrap: wrap; gap: 1rem; }
.fan { width: 195px; }
.fan p { font-size: .84rem; margin: .1rem 0; color: var(--muted); }
code { font: .92em ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
"""


@dataclass(frozen=True)
class Row:
    """One line of the headline table.

    Args:
        name: of the quantity.
        value: with its unit and interval.
        note: where it comes from.
    """

    name: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Panel:
    """One figure with its explanation.

    Args:
        title: what it shows.
        text: what one sees in it.
        figure: HTML of our own making; not escaped.
        source: how it came about: seeds, number of samples, kind of interval.
        command: what repeats it.
    """

    title: str
    text: str
    figure: str
    source: str
    command: str


def html_page(*, title: str, lead: str, rows: Sequence[Row], panels: Sequence[Panel]) -> str:
    """A whole page.

    Args:
        title: heading.
        lead: what the page is about.
        rows: the headline table.
        panels: figures, in order.
    """
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>",
            f'<h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p>',
            f"<section><table>{''.join(_row(row) for row in rows)}</table></section>",
            *(_panel(panel) for panel in panels),
            "</body></html>\n",
        ]
    )


def video(path: Path) -> str:
    """An mp4 file as a `<video>` element that holds the film itself."""
    film = base64.b64encode(path.read_bytes()).decode("ascii")
    return (
        f'<video autoplay loop muted playsinline controls width="380" '
        f'src="data:video/mp4;base64,{film}"></video>'
    )


def table(rows: Sequence[Row]) -> str:
    """The headline table for a terminal."""
    names, values = (max(len(getattr(row, k)) for row in rows) for k in ("name", "value"))
    return "\n".join(
        f"{row.name:<{names}}  {row.value:<{values}}  {row.note}".rstrip() for row in rows
    )


def _row(row: Row) -> str:
    cells = (row.name, row.value, row.note)
    return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"


def _panel(panel: Panel) -> str:
    return (
        f"<section><h2>{escape(panel.title)}</h2><p>{escape(panel.text)}</p>{panel.figure}"
        f'<p class="source">{escape(panel.source)}<br><code>{escape(panel.command)}</code></p>'
        "</section>"
    )
