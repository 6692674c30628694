"""A point and its run.json: nothing of the file is lost or added."""

import json

import pytest

from karipap_core.reading import read_json
from karipap_core.tradeoffs.point import Point
from tests.helpers.paths import REPOSITORY

RUNS = sorted((REPOSITORY / "assets" / "demo_model" / "karipap" / "runs").glob("*/run.json"))


def test_the_shipped_runs_are_read_and_written_as_they_are():
    assert RUNS
    for file in RUNS:
        document = read_json(file)
        assert Point.from_json(document).to_json() == document


def test_a_field_that_is_not_known_stays_and_one_that_is_missing_is_not_made_up():
    document = {
        "format": "karipap-run",
        "version": 1,
        "id": "old",
        "created": 1.5,
        "kind": "baseline",
        "method": "rtn",
        "label": "int8, RTN",
        "settings": {"bits": 8, "group": None},
        "model": {"name": "m", "fingerprint": "f"},
        "plan": None,
        "predicted": None,
        "loss": 2.5,
        "of another version": {"deep": [1, 2]},
        "seconds": {"measure": 0.5},
    }
    point = Point.from_json(document | {"path": "/somewhere/run.json"})
    assert point.to_json() == document and list(point.to_json()) == list(document)
    assert point.figures == {"loss": 2.5, "of another version": {"deep": [1, 2]}}
    assert point.measurement is None and point.environment is None
    assert json.loads(json.dumps(point.to_json())) == document


@pytest.mark.parametrize("field", ["settings", "plan", "figures"])
def test_points_are_equal_where_every_field_is(field):
    document = read_json(RUNS[0])
    assert Point.from_json(document) == Point.from_json(json.loads(json.dumps(document)))
    other = Point.from_json(document | {"kept": 0.123, "plan": {}, "settings": {}})
    assert getattr(other, field) != getattr(Point.from_json(document), field)
