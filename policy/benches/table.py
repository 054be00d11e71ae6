"""The tables of `cadence bench`, for a terminal."""

from collections.abc import Mapping, Sequence

from policy.benches.baseline import Compared

NAME = 44  # characters of a row's name


def tables(results: Mapping) -> str:
    """All that was measured."""
    blocks = [
        *(_latency(group) for group in results.get("latency", {}).get("groups", [])),
        *(_SECTIONS[name](results[name]) for name in _SECTIONS if name in results),
    ]
    return "\n\n".join(blocks)


def _latency(group: Mapping) -> str:
    head = (
        f"{group['name']}: {group['weights'] / 1e6:.2f} M weights, {group['device']}, batch 1, "
        f"{group['threads']} thread(s), {group['rounds']} rounds"
    )
    columns = (
        f"{'milliseconds':<{NAME}}{'calls':>6}{'off, %':>8}{'timed':>7}"
        f"{'p50':>10}{'p95':>10}{'p99':>10}{'a call':>9}{'an action':>11}{'x floor':>9}"
        f"{'x peer, equal calls':>22}"
        f"{'x peer-16, an action':>24}"
    )
    lines = [head, columns, *(_latency_row(row) for row in group["rows"])]
    for kind, floor in group["floors"].items():
        lines.append(
            f"floor of a call, {kind}: {floor['ms']:.3f} ms, {floor['binds']} binds "
            f"({floor['weight_bytes'] / 1e6:.1f} MB at {floor['bandwidth'] / 1e9:.1f} GB/s, "
            f"{floor['multiply_adds'] / 1e6:.1f} M multiply-adds at "
            f"{floor['matrix_rate'] / 1e9:.0f} G/s)"
        )
    return "\n".join([*lines, *_failures(group)])


def _latency_row(row: Mapping) -> str:
    per_action = "" if row["per_action_ms"] is None else f"{row['per_action_ms']:.3f}"
    off = "" if row["error"] is None else f"{100 * row['error']:.2g}"
    return (
        f"{_name(row['name'])}{row['calls']:>6}{off:>8}{row['timed']:>7}{row['p50_ms']:>10.3f}"
        f"{row['p95_ms']:>10.3f}{row['p99_ms']:>10.3f}{row['per_call_ms']:>9.3f}{per_action:>11}"
        f"{row['over_floor']:>9.1f}{_ratio(row['equal_calls']):>22}{_ratio(row['per_action']):>24}"
    ).rstrip()


def _train(block: Mapping) -> str:
    lines = [
        f"training: {block['weights'] / 1e6:.2f} M weights, batch {block['batch_size']}, "
        f"{block['device']}, {block['threads']} thread(s), {block['rounds']} rounds",
        f"{'':<{NAME}}{'windows/s':>12}{'a step, ms':>12}{'overhead':>10}{'x peer':>22}",
    ]
    for row in block["rows"]:
        overhead = "" if row["profile"] is None else f"{row['profile']['overhead']:.1%}"
        lines.append(
            f"{_name(row['name'])}{row['windows_per_second']:>12,.0f}{row['step_p50_ms']:>12.2f}"
            f"{overhead:>10}{_ratio(row['over_peer']):>22}".rstrip()
        )
        if row["profile"]:
            parts = row["profile"]["parts_ms"].items()
            lines.append("    " + ", ".join(f"{part} {ms:.2f}" for part, ms in parts) + " ms")
    return "\n".join([*lines, *_failures(block)])


def _env(block: Mapping) -> str:
    head = f"{'environments':<{NAME}}{'steps/s':>12}{'x one':>22}"
    rows = [
        f"{_name(row['name'])}{row['steps_per_second']:>12,.0f}{_ratio(row['over_one']):>22}".rstrip()
        for row in block["rows"]
    ]
    return "\n".join([head, *rows, *_failures(block)])


def _data(block: Mapping) -> str:
    head = f"{'windows read, one core':<{NAME}}{'windows/s':>12}"
    rows = [
        f"{_name(row['name'])}{row['windows_per_second']:>12,.0f}{_over_other(row)}"
        for row in block["rows"]
    ]
    return "\n".join([head, *rows, *_failures(block)])


def _over_other(row: Mapping) -> str:
    ratio = _ratio(row["over_other"])
    return ratio and f"{ratio:>12} x {row['other']}"


_SECTIONS = {"train": _train, "env": _env, "data": _data}


def _failures(block: Mapping) -> list[str]:
    return [f"not measured: {name}: {why}" for name, why in block["failures"].items()]


def _name(name: str) -> str:
    """A long name on a line of its own."""
    return f"{name:<{NAME}}" if len(name) < NAME else f"{name}\n{'':<{NAME}}"


def _ratio(ratio: Mapping | None) -> str:
    if ratio is None:
        return ""
    if ratio["low"] is None:
        return f"{ratio['value']:.2f}"
    return f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def comparison(compared: Sequence[Compared], *, margin: float) -> str:
    """What fell since the kept ratios, or that nothing did."""
    counts = {state: 0 for state in ("held", "fell", "failed", "not measured")}
    for each in compared:
        counts[each.state] += 1
    summary = ", ".join(f"{n} {state}" for state, n in counts.items() if n)
    bad = [each for each in compared if each.is_bad]
    if not bad:
        return f"against the kept ratios: {summary}"
    lines = [
        f"against the kept ratios: {summary}; a ratio may fall by {margin:.0%}",
        f"{'':<70}{'then':>8}{'now':>8}",
    ]
    for each in bad:
        now = f"  {each.state}: {each.why}" if each.now is None else f"{each.now:>8.2f}"
        lines.append(f"{each.name:<70}{each.before:>8.2f}{now}")
    return "\n".join(lines)
