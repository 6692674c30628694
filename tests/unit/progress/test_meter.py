"""The fraction done and the time left of whole jobs, on streams of counts that are made up and on recorded ones."""

import json
from pathlib import Path

import pytest

from karipap_core.progress import announce, costs, json_lines
from karipap_core.progress.meter import Expected, Meter

RECORDED = json.loads(Path(__file__).with_name("recorded.json").read_text())
Events = list[tuple[float, str, int, int]]  # (seconds since the start, stage, done, total)


class Watch:
    """A clock that tests set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Work:
    """Makes up a job: `step(seconds)` lets time pass, `say` counts."""

    def __init__(self) -> None:
        self.now, self.events = 0.0, []

    def step(self, seconds: float) -> "Work":
        self.now += seconds
        return self

    def say(self, stage: str, done: int, total: int) -> "Work":
        self.events.append((self.now, stage, done, total))
        return self


def replayed(events: Events, meter: Meter, watch: Watch) -> list[tuple[float, float | None, float | None]]:
    """(seconds, overall, left) after each event."""
    rows = []
    for seconds, stage, done, total in events:
        watch.now = seconds
        meter(stage, done, total)
        rows.append((seconds, meter.overall, meter.left))
    return rows


def left_at(rows, seconds: float) -> float | None:
    """The time left that people read then: what was said last, less the time since."""
    at, _, left = [row for row in rows if row[0] <= seconds][-1]
    return None if left is None else max(left - (seconds - at), 0.0)


def of_present_stage(events: Events, seconds: float) -> float | None:
    """What was shown before there was a meter: the pace of the last lines of the present stage."""
    seen = [event for event in events if event[0] <= seconds]
    stage = [event for event in seen[-20:] if event[1] == seen[-1][1]]
    if len(stage) < 2 or stage[-1][2] <= stage[0][2]:
        return None
    pace = (stage[-1][0] - stage[0][0]) / (stage[-1][2] - stage[0][2])
    return pace * (stage[-1][3] - stage[-1][2])


def off(told: float | None, true: float) -> float:
    """By which factor a time left is wrong; endless where nothing is told."""
    return float("inf") if not told else max(told / true, true / told)


def sweep(plans: int = 6) -> Events:
    """One-off work that falls into the first plan; then plans of three parts each, and baselines."""
    work = Work().step(5)
    for plan in range(plans):
        work.say("sweep", plan, plans)
        if not plan:
            for done in range(41):
                work.say("sensitivity", done, 40).step(2.0 if done < 40 else 0)
        for done in range(31):
            work.say("refining", done, 30).step(0.5 if done < 30 else 0)
        for done in range(11):
            work.say("evaluate", done, 10).step(1.0 if done < 10 else 0)
    work.say("sweep", plans, plans)
    for number in range(8):
        work.say("baselines", number, 8)
        for done in range(21):
            work.say("baseline", done, 20).step(0.3 if done < 20 else 0)
    return work.say("baselines", 8, 8).events


def uneven() -> Events:
    """Five quick items and one that takes twenty times as long and consists of rounds."""
    work = Work().step(5)
    for number in range(5):
        work.say("rules", number, 6).step(6)
    work.say("rules", 5, 6)
    for number in range(3):
        work.say("rounds", number, 3)
        for done in range(41):
            work.say("refining", done, 40).step(1.0 if done < 40 else 0)
    return work.say("rounds", 3, 3).say("rules", 6, 6).events


def resumed() -> Events:
    """The first 300 of 400 items are there already and pass in a moment."""
    work = Work().step(3)
    for done in range(300):
        work.say("compress", done, 400).step(0.001)
    for done in range(300, 401):
        work.say("compress", done, 400).step(1.0)
    return work.events


def check(events: Events, expected=(), sure=False, prepare=lambda meter: None, after=0.0) -> list[float]:
    """By which factors the time left is wrong at a quarter, the half and three quarters of the time."""
    watch = Watch()
    meter = Meter(expected, sure, watch)
    prepare(meter)
    rows, end = replayed(events, meter, watch), events[-1][0]
    overall = [row[1] for row in rows if row[1] is not None]
    assert overall == sorted(overall) and all(0 <= share < 1 for share in overall), "it never goes back"
    return [off(left_at(rows, part * end), (1 - part) * end) for part in (0.25, 0.5, 0.75) if part * end >= after]


def before(events: Events) -> list[float]:
    end = events[-1][0]
    return [off(of_present_stage(events, part * end), (1 - part) * end) for part in (0.25, 0.5, 0.75)]


def recorded_of(events: Events) -> list[Expected]:
    watch = Watch()
    meter = Meter(clock=watch)
    replayed(events, meter, watch)
    return meter.record()


def test_nested_stages_are_parts_of_their_parent_and_what_is_made_once_is_not_its_pace():
    def told(meter):
        meter.announce({"sensitivity": 40 * 4, "sweep": 6 * 48, "baselines": 8 * 12})

    assert max(check(sweep(), prepare=told)) < 1.6
    assert max(before(sweep())) > 4, "the stage's own pace is no time left of the job"


def test_items_of_unequal_cost_are_counted_by_what_they_cost():
    def told(meter):
        meter.costs["rules"] = [1, 1, 1, 1, 1, 20]

    assert max(check(uneven(), prepare=told)) < 1.6
    assert max(before(uneven())) > 3


def test_finished_items_that_pass_in_a_moment_are_no_pace():
    assert max(check(resumed())) < 2
    watch = Watch()
    meter = Meter(clock=watch)
    begun = [(seconds, stage, done, total) for seconds, stage, done, total in resumed() if done >= 300]
    rows = replayed(begun, meter, watch)  # the same where it tells of them alone
    assert off(left_at(rows, 53), 50.3) < 1.1


@pytest.mark.parametrize("events", [sweep(), uneven(), resumed()])
def test_an_earlier_job_of_the_same_kind_tells_what_is_to_come(events):
    known = recorded_of(events)
    assert max(check(events, known, sure=True)) < 1.3
    slower = [(2 * seconds, *rest) for seconds, *rest in events]  # a busy machine
    assert max(check(slower, known, sure=True)) < 1.9


def test_what_an_earlier_job_made_once_is_not_waited_for():
    """The second sweep finds the sensitivities: they are not in the time left as soon as the first plan goes on."""
    known = recorded_of(sweep())
    assert {stage.stage: stage.during for stage in known} == {"sweep": None, "sensitivity": "sweep", "baselines": None}
    again = [event for event in sweep() if event[1] != "sensitivity"]
    again = [(seconds - (80 if seconds > 80 else 0), *rest) for seconds, *rest in again]
    assert max(check(again, known, sure=True)) < 1.6


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_jobs_are_told_within_a_factor_of_two(name):
    stages = RECORDED[name]["stages"]
    events = [(seconds, stages[stage], done, total) for seconds, stage, done, total in RECORDED[name]["events"]]

    def told(meter):
        meter.costs["rounds"] = [1.0, 1.0, 0.7, 0.5, 0.3]

    assert max(check(events, recorded_of(events), sure=True, prepare=told)) < 2
    if name != "profile":
        assert max(before(events)) > 4
    else:  # a first job, of which nothing is known
        assert max(check(events)) < 2


def test_nothing_is_said_before_there_is_evidence():
    watch = Watch()
    meter = Meter(clock=watch)
    meter.announce({"sensitivity": 100, "rules": 50})
    assert (meter.overall, meter.left) == (None, None)
    for seconds, done in ((0.5, 0), (1.0, 1)):
        watch.now = seconds
        meter("sensitivity", done, 10)
        assert meter.left is None
    watch.now = 6.0
    meter("sensitivity", 2, 10)
    assert meter.left == pytest.approx(2.5 * 10 * 1.5, rel=0.5)
    meter("rules", 0, None)
    assert meter.left is not None, "a stage of unknown length that was announced"


def test_what_is_over_before_the_rest_is_known_is_no_part_of_it():
    """A look at the text comes before anybody can tell what is to come."""
    work = Work()
    for done in range(5):
        work.say("text", done, 4).step(1)
    watch = Watch()
    meter = Meter(clock=watch)
    replayed(work.events, meter, watch)
    assert meter.left == 0.0 and meter.overall < 0.9
    meter.announce({"sensitivity": 30, "whole plans": 10})
    rest = Work()
    rest.now = work.now
    for done in range(11):
        rest.say("sensitivity", done, 10).step(3)
    rows = replayed(rest.events, meter, watch)
    assert rows[2][1] < 0.2 and left_at(rows, rows[5][0]) == pytest.approx(25, rel=0.3)


def test_a_stage_without_an_end_says_nothing():
    watch = Watch()
    meter = Meter(clock=watch)
    for seconds in range(30):
        watch.now = float(seconds)
        meter("endless", seconds, None)
    assert meter.left is None


def test_lines_carry_both_and_code_below_tells_the_meter_what_is_to_come(capsys):
    progress = json_lines()
    announce(progress, {"work": 1.0})
    costs(progress, "work", [1, 3])
    progress("work", 1, 2, "item")
    line = json.loads(capsys.readouterr().err)
    assert line.keys() == {"stage", "done", "total", "item", "seconds", "message", "overall", "left"}
    assert progress.meter.tops["work"].share(1) == 0.25
    announce(print, {"work": 1.0})  # any callable will do as a progress
    costs(print, "work", [1])
