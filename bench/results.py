"""What was measured: `Results` is the content of bench/results.json, with every round, and the medians over rounds."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from msgspec import Struct, field

from bench.load import Latency, Mix

SCHEMA = 1

STANDARD = "standard"
OPEN = "open loop, 70 %"
OURS = ("chatstate, PostgreSQL", "chatstate, SQLite")
MIXES: tuple[Mix, ...] = ("save", "load", "half")
MEASURES = (
    *("rate", "p50", "p99", "cpu_us", "server_cpu_us", "database_cpu_us", "generator_cpu_us", "memory_mb"),
    "wire_bytes",
)


class Figures(Struct, frozen=True, kw_only=True):
    """One run.

    round                         from 0; ratios are taken between runs of one round
    rate                          requests a second that were answered as they should be
    errors, example               see `bench.load.Result`
    saves, loads                  latencies in milliseconds; None where that was not measured
    server_cpu_us                 CPU for one request of the server's processes, user and system, in microseconds
    database_cpu_us               the same of PostgreSQL's processes; None without PostgreSQL
    generator_cpu_us              the same of the load generator
    memory_mb                     the most resident memory of the server's processes, summed up, in MB (10^6 bytes)
    wire_bytes                    of one request and its answer together, heads and bodies
    """

    round: int
    rate: float
    requests: int
    errors: int = 0
    example: str = ""
    saves: Latency | None = None
    loads: Latency | None = None
    server_cpu_us: float | None = None
    database_cpu_us: float | None = None
    generator_cpu_us: float | None = None
    memory_mb: float | None = None
    wire_bytes: float | None = None

    @property
    def cpu_us(self) -> float | None:
        """CPU for one request of the server and its database together."""
        return None if self.server_cpu_us is None else self.server_cpu_us + (self.database_cpu_us or 0)

    @property
    def p50(self) -> float | None:
        """The median latency of the kind that was slower."""
        return max((latency.p50 for latency in (self.saves, self.loads) if latency), default=None)

    @property
    def p99(self) -> float | None:
        """The 99th percentile of the kind that was slower."""
        return max((latency.p99 for latency in (self.saves, self.loads) if latency), default=None)


class Spread(Struct, frozen=True):
    """The median over the rounds, and between which values it lies."""

    median: float
    min: float
    max: float


class Row(Struct, frozen=True):
    """All runs of one system under one load.

    part    `comparison` (with peers and limits), or another one of the bench
    case    which load, in words
    system  who
    mix     see `bench.load.Spec`
    rounds  every run
    """

    part: str
    case: str
    system: str
    mix: Mix
    rounds: list[Figures]

    def spread(self, measure: str) -> Spread | None:
        """Of one of `MEASURES`, over the rounds that have it; None when none has."""
        values = [found for figures in self.rounds if (found := getattr(figures, measure)) is not None]
        return Spread(median(values), min(values), max(values)) if values else None

    def median(self, measure: str) -> float | None:
        """Its median."""
        spread = self.spread(measure)
        return spread.median if spread else None

    @property
    def errors(self) -> int:
        """Of all rounds."""
        return sum(figures.errors for figures in self.rounds)


class Summary(Struct, frozen=True):
    """A row in short: `values` has the spread of each of `MEASURES` that was measured."""

    part: str
    case: str
    system: str
    mix: Mix
    errors: int
    values: dict[str, Spread]


class Ratio(Struct, frozen=True):
    """Of one of ours to another system, under the standard load, or of a `Comparison`; see `ratio`."""

    ours: str
    theirs: str
    mix: Mix
    measure: str
    median: float


RowName = tuple[str, str, Mix]
"""The case, the system and the mix of a row."""


class Comparison(Struct, frozen=True, kw_only=True):
    """Two rows whose ratio is of interest.

    what      the two, in words
    measures  in which they are compared
    floors    for some of the measures, how much dearer the first may be: of `rate` the second's to the first's, of all
              others the first's to the second's
    """

    what: str
    ours: RowName
    theirs: RowName
    measures: tuple[str, ...]
    floors: dict[str, float] = field(default_factory=dict)


class Fact(Struct, frozen=True):
    """Something else that was measured, once or several times."""

    part: str
    name: str
    unit: str
    values: list[float]


class Failure(Struct, frozen=True):
    """Who could not be measured, where, and why."""

    system: str
    case: str
    reason: str


class Results(Struct):
    """Everything.

    schema      rises when members change their meaning
    date        when it began, RFC 3339 in UTC
    conditions  what was sent and how often, by name
    machine     what it ran on, by name
    summary     the medians of the rows
    ratios      ours to others, and those of the comparisons
    comparisons which rows are compared beside those of ours with others
    not_run     systems that this machine cannot run
    failed      runs that did not come to their end
    """

    date: str
    schema: int = SCHEMA
    conditions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, str] = field(default_factory=dict)
    ratios: list[Ratio] = field(default_factory=list)
    summary: list[Summary] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    not_run: list[Failure] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)

    def add(self, part: str, case: str, system: str, mix: Mix, figures: Figures) -> None:
        """One more run."""
        row = self.find(case, system, mix)
        if row is None:
            row = Row(part, case, system, mix, [])
            self.rows.append(row)
        row.rounds.append(figures)

    def find(self, case: str, system: str, mix: Mix) -> Row | None:
        """The row, if there is one."""
        return next((row for row in self.rows if (row.case, row.system, row.mix) == (case, system, mix)), None)

    def systems(self, case: str) -> list[str]:
        """Who was measured under this load, in the order of the first turns."""
        return list(dict.fromkeys(row.system for row in self.rows if row.case == case))

    def summarise(self) -> None:
        """Fill in `summary` and `ratios`."""
        self.summary = [
            Summary(row.part, row.case, row.system, row.mix, row.errors, dict(_spreads(row))) for row in self.rows
        ]
        others = [name for name in self.systems(STANDARD) if name not in OURS]
        self.ratios = [
            Ratio(ours, theirs, mix, measure, value)
            for ours in OURS
            for theirs in others
            for mix in MIXES
            for measure in ("rate", "p99")
            if (value := ratio(self.find(STANDARD, ours, mix), self.find(STANDARD, theirs, mix), measure))
        ]
        self.ratios += [
            Ratio(", ".join(compared.ours[:2]), ", ".join(compared.theirs[:2]), compared.ours[2], measure, value)
            for compared in self.comparisons
            for measure in compared.measures
            if (value := self.ratio(compared, measure))
        ]

    def ratio(self, compared: Comparison, measure: str) -> float | None:
        """The ratio of the two rows."""
        return ratio(self.find(*compared.ours), self.find(*compared.theirs), measure)

    def fact(self, part: str, name: str, unit: str, value: float) -> None:
        """One more value of the fact with this name."""
        found = next((fact for fact in self.facts if (fact.part, fact.name) == (part, name)), None)
        if found is None:
            found = Fact(part, name, unit, [])
            self.facts.append(found)
        found.values.append(value)


def _spreads(row: Row) -> Iterator[tuple[str, Spread]]:
    for measure in MEASURES:
        spread = row.spread(measure)
        if spread:
            yield measure, spread


def ratio(ours: Row | None, theirs: Row | None, measure: str) -> float | None:
    """The median of the ratios of ours to theirs, each within one round; None where there is nothing to compare.

    Rounds with errors on either side don't count.
    """
    if ours is None or theirs is None:
        return None
    by_round = {figures.round: getattr(figures, measure) for figures in theirs.rounds if not figures.errors}
    ratios = [
        mine / other
        for figures in ours.rounds
        if not figures.errors
        and (mine := getattr(figures, measure)) is not None
        and (other := by_round.get(figures.round))
    ]
    return median(ratios) if ratios else None
