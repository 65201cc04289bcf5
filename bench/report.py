"""The results as text: the ratios first, then the figures behind them, in columns of at most 110 characters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median

from bench.load import Mix
from bench.results import MIXES, OPEN, OURS, STANDARD, Comparison, Results, Row, RowName, ratio

WIDTH = 110


def report(results: Results) -> str:
    """Everything that a person wants to read."""
    parts = [_head, _ratios, _peers, _costs, _limits, _growth, _scale, _tuning]
    parts += [_turns, _access, _lists, _half_open, _moving, _left_out]
    return "\n".join(line.rstrip() for part in parts for line in part(results)) + "\n"


def _head(results: Results) -> Iterator[str]:
    yield f"chatstate bench, {results.date}"
    yield ""
    for name, value in (*results.machine.items(), *results.conditions.items()):
        yield f"  {name:<14}{value}"[:WIDTH]


def _ratios(results: Results) -> Iterator[str]:
    headers = ("", "saves/s", "loads/s", "half/s", "p99 save", "p99 load")
    for ours in OURS:
        lines = []
        for theirs in results.systems(STANDARD):
            cells = [_times(_ratio(results, ours, theirs, mix, "rate")) for mix in MIXES]
            cells += [_times(_ratio(results, ours, theirs, mix, "p99")) for mix in MIXES[:2]]
            same_database = ours == OURS[0] or not theirs.startswith("pgbench")
            if theirs not in OURS and same_database and any(cells):
                lines.append((f"to {theirs}", *cells))
        yield from _table(f"Ratios of {ours}", headers, lines)


def _ratio(results: Results, ours: str, theirs: str, mix: Mix, measure: str) -> float | None:
    return ratio(results.find(STANDARD, ours, mix), results.find(STANDARD, theirs, mix), measure)


def _peers(results: Results) -> Iterator[str]:
    names = results.systems(STANDARD)
    headers = ("", "saves/s", "p50 ms", "p99 ms", "loads/s", "p50 ms", "p99 ms", "half/s", "p99 ms")
    yield from _table("Closed loop", headers, [(name, *_closed(results, name)) for name in names])


def _closed(results: Results, system: str) -> Iterator[str]:
    for mix in MIXES:
        row = results.find(STANDARD, system, mix)
        yield _rate(row)
        if mix != "half":
            yield _number(row, "p50")
        yield _number(row, "p99")


def _costs(results: Results) -> Iterator[str]:
    title = "CPU µs of server and database a request; memory; time to the first answer"
    if any(row.case == OPEN for row in results.rows):
        title += "; p99 ms in an open loop at 70 %"
    headers = ("", "a save", "database", "a load", "database", "MB", "start s", "p99 save", "p99 load")
    lines = [(name, *_cost(results, name)) for name in results.systems(STANDARD)]
    yield from _table(title, headers, lines)


def _cost(results: Results, system: str) -> Iterator[str]:
    for mix in MIXES[:2]:
        row = results.find(STANDARD, system, mix)
        yield _number(row, "server_cpu_us")
        yield _number(row, "database_cpu_us")
    yield _number(results.find(STANDARD, system, "save"), "memory_mb")
    starts = next((fact.values for fact in results.facts if fact.name == f"start, {system}"), [])
    yield f"{median(starts):.2f}" if starts else ""
    for mix in MIXES[:2]:
        yield _number(results.find(OPEN, system, mix), "p99")


def _limits(results: Results) -> Iterator[str]:
    facts = [
        (fact.name, _rounded(median(fact.values)), fact.unit)
        for fact in results.facts
        if not fact.name.startswith("start, ")
    ]
    yield from _table("Also measured", ("", "", ""), facts)


def _rounded(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def _growth(results: Results) -> Iterator[str]:
    yield from _by_case(results, "growth", "Growth")


def _scale(results: Results) -> Iterator[str]:
    yield from _by_case(results, "scale", "More servers, more shards")
    yield from _comparisons(results, "scale", f"The same: {_SHARES}", _COMPARED, ("p99 ms", "p99"))


def _by_case(results: Results, part: str, title: str) -> Iterator[str]:
    cases = list(dict.fromkeys(row.case for row in results.rows if row.part == part))
    lines = []
    for case in cases:
        for index, system in enumerate(results.systems(case)):
            cells = []
            for mix in MIXES[:2]:
                row = results.find(case, system, mix)
                cells += [_rate(row), _number(row, "p99")]
            lines.append((case if not index else "", system, *cells))
    yield from _table(title, ("", "", "saves/s", "p99 ms", "loads/s", "p99 ms"), lines, left=2)


def _tuning(results: Results) -> Iterator[str]:
    names = results.systems("table")
    lines = []
    for name in names:
        saves, loads = results.find("table", name, "save"), results.find("table", name, "load")
        first = results.find("table", names[0], "save"), results.find("table", names[0], "load")
        lines.append(
            (
                name,
                _rate(saves),
                _times(ratio(saves, first[0], "rate")),
                _rate(loads),
                _times(ratio(loads, first[1], "rate")),
                _number(saves, "database_cpu_us"),
            )
        )
    yield from _table("The table, tuned", ("", "saves/s", "", "loads/s", "", "database CPU µs a save"), lines)


_COMPARED = {"rate": "rate", "cpu_us": "CPU", "wire_bytes": "bytes", "p50": "p50"}
_CROWDED = {"rate": "rate", "cpu_us": "CPU", "p50": "p50", "p99": "p99"}
_MOVED = {"rate": "rate", "cpu_us": "CPU", "memory_mb": "memory"}

_SHARES = "ratios, and the first one's figures"


def _turns(results: Results) -> Iterator[str]:
    title = f"What it costs not to lose a turn: {_SHARES}"
    yield from _comparisons(results, "turns", title, _COMPARED, ("CPU µs", "cpu_us"))


def _access(results: Results) -> Iterator[str]:
    title = f"What it costs to know who is calling, and to encrypt: {_SHARES}"
    yield from _comparisons(results, "access", title, _COMPARED, ("CPU µs", "cpu_us"))


def _half_open(results: Results) -> Iterator[str]:
    case = next((row.case for row in results.rows if row.part == "half-open"), "")
    title = f"Beside {case} : without them, and the figures beside them"
    yield from _comparisons(results, "half-open", title, _CROWDED, ("p99 ms", "p99"))


def _moving(results: Results) -> Iterator[str]:
    title = f"All rows, copied, backed up and restored: {_SHARES}"
    yield from _comparisons(results, "moving", title, _MOVED, ("CPU µs", "cpu_us"), ("MB", "memory_mb"))


def _comparisons(
    results: Results, part: str, title: str, compared_by: Mapping[str, str], *last: tuple[str, str]
) -> Iterator[str]:
    """The ratios by these measures, whether they meet their floors, and of the first one the rate and last figures."""
    lines = []
    for compared in results.comparisons:
        row = results.find(*compared.ours)
        if row and row.part == part:
            ratios = [_share(results.ratio(compared, measure)) for measure in compared_by]
            figures = (_verdict(results, compared), _rate(row), *(_number(row, figure) for _, figure in last))
            lines.append((compared.what, _store(row), *ratios, *figures))
    yield from _table(title, ("", "", *compared_by.values(), "floors", "/s", *dict(last)), lines, left=2)


def _verdict(results: Results, compared: Comparison) -> str:
    missed = []
    for measure, floor in compared.floors.items():
        value = results.ratio(compared, measure)
        if value is not None and (1 / value if measure == "rate" else value) > floor:
            missed.append((_COMPARED | _CROWDED | _MOVED)[measure])
    return f"MISSED: {', '.join(missed)}" if missed else "met" if compared.floors else ""


def _lists(results: Results) -> Iterator[str]:
    pages = [row for row in results.rows if row.part == "lists" and row.mix == "page"]
    for number in dict.fromkeys(_of_how_many(row) for row in pages):
        lines = [_page(results, row) for row in pages if _of_how_many(row) == number]
        title = f"Pages of lists of {number} sessions, 100 on each, one client"
        yield from _table(title, ("", "", "page 1, ms", "far page, ms", "", ""), lines, left=2)


def _of_how_many(row: Row) -> str:
    return row.case.partition(" sessions, ")[0]


def _page(results: Results, row: Row) -> Sequence[str]:
    kind = row.case.partition(" sessions, ")[2]
    far: RowName = (row.case, row.system, "far page")
    names = (far, (row.case, row.system, row.mix))
    compared = next((compared for compared in results.comparisons if compared.ours in names), None)
    times = (compared.what, _share(results.ratio(compared, "p50"))) if compared else ("", "")
    store = row.system.partition(", ")[2]
    return (kind, store, _number(row, "p50", 2), _number(results.find(*far), "p50", 2), *times)


def _store(row: Row) -> str:
    return row.system.split(", ")[1]


def _left_out(results: Results) -> Iterator[str]:
    for title, failures in (("Not run", results.not_run), ("Failed", results.failed)):
        if failures:
            yield from ("", title, "")
        for failure in failures:
            where = f" ({failure.case})" if failure.case else ""
            first, *rest = failure.reason.strip().splitlines() or [""]
            yield f"  {failure.system}{where}: {first}"[:WIDTH]
            yield from (f"    {line}"[:WIDTH] for line in rest[-5:])
    flawed = [row for row in results.rows if row.errors]
    if flawed:
        yield from ("", "! Answered with errors, which are not counted as requests", "")
    for row in flawed:
        example = next(figures.example for figures in row.rounds if figures.errors)
        yield f"  {row.system}, {row.case}, {row.mix}: {row.errors}, such as {example!r}"[:WIDTH]


# --- Cells ------------------------------------------------------------------------------------------------------------


def _rate(row: Row | None) -> str:
    return f"{row.median('rate'):,.0f}{'!' * (row.errors > 0)}" if row else ""


def _number(row: Row | None, measure: str, digits: int = 1) -> str:
    number = row.median(measure) if row else None
    return "" if number is None else f"{number:.{digits}f}" if number < 100 else f"{number:,.0f}"


def _share(number: float | None) -> str:
    """`×1.07`, or `0.2 %` for less than a tenth: more exact than `_times`, for small differences."""
    return "" if number is None else f"{100 * number:.2g} %" if number < 0.1 else f"×{number:.2f}"


def _times(number: float | None) -> str:
    """`×3.1`, or `1/3.1` for less than one."""
    if not number:
        return ""
    return f"×{number:.2g}" if 1 <= number < 10 else f"×{number:.0f}" if number >= 10 else _fraction(number)


def _fraction(number: float) -> str:
    return f"×{number:.2f}" if number > 0.5 else f"1/{1 / number:.1f}"


def _table(title: str, headers: Sequence[str], lines: Sequence[Sequence[str]], left: int = 1) -> Iterator[str]:
    """Columns as wide as they need to be, the first `left` to the left, numbers to the right.

    Columns without any value are left out, and so is a table without lines.
    """
    columns = [column for column in zip(headers, *lines, strict=True) if any(column[1:])]
    if not columns:
        return
    widths = [max(map(len, column)) for column in columns]
    yield from ("", title, "")
    for line in zip(*columns, strict=True):
        cells = [
            cell.ljust(width) if index < left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        if any(line):
            yield ("  " + "  ".join(cells))[:WIDTH]
