"""From the counts of stages to one fraction of the whole work, which never goes back, and the time that is left."""

import time
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

# Made once for a model and kept, whatever asks for it first: its time is no part of the stage that it falls into.
ONCE = {"activations", "sensitivity", "whole plans", "profile", "entropy of trees", "load", "dense", "waiting", "fetch"}
ONCE_LIKE = ("curves of ",)
RECENT = 0.25  # of what is done of a stage: the part whose pace counts again, so that changes of pace are followed
MEASURED = 0.2  # of a stage: from there on its own pace counts, before it partly what was expected
POINTS = 32  # of the shape of a stage that are kept
ANY = "*"  # in the place of the stage that another falls into: whichever asks first
MOMENT, FOUND = 0.02, 20.0  # an item that took less than such a moment and so many times less than the next was found
LEAST = 2.0  # seconds of evidence below which nothing is said
TRUST = 15.0  # seconds of work by which the paces of an earlier job weigh against this one's


@dataclass
class Expected:
    """A stage as it is expected: its seconds, or its share in any unit; the running share of these seconds after each
    of `len(shape) - 1` equal parts; and, for one that falls into another stage, which and how far into it."""

    stage: str
    seconds: float
    shape: Sequence[float] = ()
    during: str | None = None
    at: float = 0.0


@dataclass
class Stage:
    """One visit of a stage. `spent`: its seconds, without those of stages that are made once and fell into it."""

    name: str
    total: int | None
    first: int
    done: int
    costs: Sequence[float] = ()
    shape: Sequence[float] = ()
    spent: float = 0.0
    marks: list[tuple[int, float]] = field(default_factory=list)  # (done, spent) whenever `done` grew
    inner: "Stage | None" = None

    def __post_init__(self) -> None:
        self.marks.append((self.first, 0.0))

    @property
    def over(self) -> bool:
        return self.total is not None and self.done >= self.total

    def count(self, done: int, total: int | None) -> None:
        self.total = total
        if done > self.done:
            at, spent = self.marks[-1]
            usual = (spent - self.marks[0][1]) / max(at - self.first, 1)
            if at > self.first and usual < MOMENT and self.spent - spent > FOUND * usual * (done - at):
                self.first, self.marks = at, [(at, spent)]  # those before were there already: they are no pace
            self.done, self.inner = done, None
            self.marks.append((done, self.spent))

    def share(self, done: int) -> float:
        """The part of the stage's work that so many items are."""
        if not self.total:
            return 0.0
        done = min(done, self.total)
        parts = len(self.shape) - 1
        if parts > 0 and (parts == self.total or min(parts, self.total) >= POINTS):
            place = done / self.total * parts
            low = min(int(place), parts - 1)
            return self.shape[low] + (place - low) * (self.shape[low + 1] - self.shape[low])
        if len(self.costs) == self.total:
            return sum(self.costs[:done]) / (sum(self.costs) or 1.0)
        return done / self.total

    def pace(self) -> float | None:
        """Seconds for the whole stage by its items so far: the mean of the pace of all of them and of the last ones."""
        at, spent = self.marks[-1]
        here, start, spent = self.share(at), self.share(self.first), spent - self.marks[0][1]
        if here <= start or spent <= 0:
            return None
        shares = [self.share(done) for done, _ in self.marks]
        back = max(0, min(bisect_right(shares, here - RECENT * (here - start)) - 1, len(shares) - 2))
        recent = (self.marks[-1][1] - self.marks[back][1]) / max(here - shares[back], 1e-9)
        return (spent / (here - start) + recent) / 2

    def left(self, usual: float | None, trust: float = 0.5) -> float | None:
        """Seconds to its end, where `usual` is what the whole was expected to take, and `trust` says how much that
        counts beside what the present item consists of; None where nothing is known."""
        if self.over:
            return 0.0
        inner = self.inner.left(None) if self.inner is not None else None
        start, here, after = (self.share(done) for done in (self.first, self.done, self.done + 1))
        item = self.spent - self.marks[-1][1]  # seconds in the present item
        pace, sure = self.pace(), (here - start) / max(after - start, 1e-9)
        if usual is not None:
            weight = min(1.0, (here - start) / MEASURED, sure)
            pace = usual if pace is None else weight * pace + (1 - weight) * usual
            sure = max(sure, trust)
        if pace is None:
            if inner is None or not self.total:
                return inner
            return inner + (item + inner) / max(after - here, 1e-9) * (1 - after)
        whole = pace * (after - here)  # what the present item takes, by the pace and by what it consists of
        if inner is not None:
            whole = sure * max(whole, item) + (1 - sure) * (item + inner)
        if here == start:  # the very first item may take longer than was expected
            pace = max(pace, item / max(after - here, 1e-9))
        return max(whole - item, 0.0) + pace * (1 - after)


class Meter:
    """Hears the calls of a `Progress` and says, after each: `overall`, the fraction done, and `left`, seconds; None
    while there is no evidence.

    expected : the stages to come, in their order (of an earlier job, or the defaults of a verb).
    sure : these seconds are of this very model, so that they count before anything has been measured.
    """

    def __init__(
        self, expected: Sequence[Expected] = (), sure: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.expected, self.sure, self.clock = [*expected], sure, clock
        self.costs: dict[str, list[float]] = {}
        self.overall: float | None = None
        self.left: float | None = None
        self.began = self.then = self.told = clock()  # the start, the last call, the last estimate
        self.tops: dict[str, Stage] = {}  # the last visit of each stage that is a part of no other
        self.fell: dict[str, tuple[str | None, float]] = {}  # {stage: the one that it fell into, how far into it}
        self.open: list[Stage] = []  # the one under way last; those before it wait for it
        self.earlier: dict[str, float] = {}  # seconds of earlier visits

    @property
    def seconds(self) -> float:
        """Since the start, at the last call."""
        return self.then - self.began

    def announce(self, shares: Mapping[str, float]) -> None:
        """Expects these stages, unless an earlier job has told already what to expect. While a stage is under way only
        those that are made once are heeded: what else it is made of is its own affair."""
        if self.sure:
            return
        around = self.open[-1] if self.open and not self.open[-1].over else None
        known = {each.stage for each in self.expected}
        for stage, share in shares.items():
            if stage in known or (around is not None and not _once(stage)):
                continue
            if around is None:
                self.overall = None  # what was said of the work before knew nothing of this
            during, at = (ANY, 1.0) if _once(stage) else (None, 0.0)
            self.expected.append(Expected(stage, share, (), during, at))

    def __call__(self, stage: str, done: int, total: int | None) -> None:
        now = self.clock()
        passed, self.then = now - self.then, now
        for part in self._chain():
            part.spent += passed
        self._place(stage, done, total)
        self._estimate()

    def _chain(self) -> list[Stage]:
        """The stages under way, the outermost first."""
        found: list[Stage] = []
        part = self.open[-1] if self.open else None
        while part is not None:
            found.append(part)
            part = part.inner
        return found

    def _place(self, stage: str, done: int, total: int | None) -> None:
        """Finds the stage among those under way, or begins it."""
        for depth in range(len(self.open) - 1, -1, -1):  # among those that wait: what they waited for is over
            part: Stage | None = self.open[depth]
            outer = None
            while part is not None and part.name != stage:
                outer, part = part, part.inner
            if part is not None:
                del self.open[depth + 1 :]
                if done >= part.done and not (part.over and done < (total or 0)):
                    part.inner = part.inner if done == part.done else None
                    part.count(done, total)
                else:  # it begins again
                    self._begin(stage, done, total, outer)
                return
        if not _once(stage):
            while self.open and self._over(self.open[-1]):
                self.open.pop()
            if self.open and not any(each.stage == stage and each.during is None for each in self.expected):
                outer = [part for part in self._chain() if not part.over][-1]
                self._begin(stage, done, total, outer)
                return
            self.open.clear()
        self._begin(stage, done, total, None)

    def _over(self, top: Stage) -> bool:
        return top.over

    def _begin(self, name: str, done: int, total: int | None, outer: Stage | None) -> None:
        shape = next((each.shape for each in self.expected if each.stage == name), ())
        made = Stage(name, total, done, done, self.costs.get(name, ()), shape)
        if outer is not None:
            outer.inner = made
            return
        if (known := self.tops.get(name)) is not None:
            self.open = [top for top in self.open if top is not known]
            if known.total == total and known.done <= done and not known.over:  # it goes on
                made = known
                made.count(done, total)
            else:
                self.earlier[name] = self.earlier.get(name, 0.0) + known.spent
        while self.open and self.open[-1].over:
            self.open.pop()
        around = self.open[-1] if self.open else None
        self.fell.setdefault(name, (None, 0.0) if around is None else (around.name, around.share(around.done)))
        self.tops[name] = made
        self.open.append(made)

    # Estimating.

    def _estimate(self) -> None:
        scale = self._scale()
        usual = {each.stage: each.seconds * scale for each in self.expected} if scale is not None else {}
        under_way = [top for top in self.tops.values() if top in self.open or (_once(top.name) and not top.over)]
        parts = [top.left(usual.get(top.name), 0.9 if self.sure else 0.5) for top in under_way]
        parts += [usual.get(each.stage) for each in self._to_come()]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts) or self.seconds < LEAST or not parts:
            self.left = None
            return
        self.left = sum(known)
        if not self.left:
            return  # all that began is over: either this is the end, or what comes is not known yet
        # What is not done yet shrinks by the part of its time that has passed: so the fraction never goes back, and a
        # first estimate that was too short is made good by and by.
        passed, self.told = self.then - self.told, self.then
        if self.overall is None:
            self.overall = 0.0
        else:
            shrunk = 1 - (1 - self.overall) * self.left / max(self.left + passed, 1e-9)
            self.overall = max(self.overall, min(shrunk, 0.999))

    def _last(self, which: Callable[[Expected], bool]) -> int:
        """The place of the last expected stage that is so, -1 where none is."""
        return max((number for number, each in enumerate(self.expected) if which(each)), default=-1)

    def _to_come(self) -> list[Expected]:
        """Expected stages that have not begun, without those that were left out: what comes after them has begun."""
        last = self._last(lambda each: not each.during and each.stage in self.tops)
        last_fallen = self._last(lambda each: bool(each.during) and each.stage in self.tops)
        more = self._last(lambda each: not each.during) > last or not self.open or not self.open[0].over
        found: list[Expected] = []
        coming: set[str] = set()
        for number, each in enumerate(self.expected):
            if each.stage in self.tops:
                continue
            if each.during is None:
                wanted = number > last
            elif each.during == ANY:
                wanted = number > last_fallen and more
            elif (around := self.tops.get(each.during)) is not None:
                wanted = not around.over and around in self.open and around.share(around.done) <= each.at
            else:
                wanted = each.during in coming
            if wanted:
                found.append(each)
                coming.add(each.stage)
        return found

    def _scale(self) -> float | None:
        """Seconds of this job for each second (or unit of shares) that was expected; None where nothing says so."""
        measured = thought = 0.0
        for each in self.expected:
            top = self.tops.get(each.stage)
            if top is None or not top.total:
                continue
            part = 1.0 if top.over else top.share(top.done)
            part -= top.share(top.first)
            if part > 0 and each.seconds > 0:
                measured += top.marks[-1][1] - top.marks[0][1]
                thought += part * each.seconds
        if self.sure:
            return (measured + TRUST) / (thought + TRUST)
        return measured / thought if measured >= LEAST and thought > 0 else None

    # For jobs to come.

    def record(self) -> list[Expected]:
        """What each stage of this job took, for the `expected` of a later one. Without those that began with more than
        half of them done."""
        found = []
        for name, top in self.tops.items():
            start = top.share(top.first)
            if not top.total or not top.over or start > 0.5 or top.spent <= 0:
                continue
            during, at = self.fell[name]
            seconds = (top.spent + self.earlier.get(name, 0.0)) / (1 - start)
            found.append(Expected(name, seconds, _shape(top), during, at))
        return found


def _once(stage: str) -> bool:
    return stage in ONCE or stage.startswith(ONCE_LIKE)


def _shape(top: Stage) -> list[float]:
    """The running share of a stage's seconds after each of its items, or of `POINTS` equal parts of them."""
    if top.first or not top.total or not top.spent:
        return []
    steps = min(top.total, POINTS)
    places, found = [done for done, _ in top.marks], []
    for step in range(steps + 1):
        at = bisect_right(places, step * top.total / steps) - 1
        found.append(round(top.marks[at][1] / top.spent, 4))
    return found
