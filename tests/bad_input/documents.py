"""Plans, runs and other documents of Karipap that somebody changed."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bad_input import Case
from tests.helpers.points import LEAST, ONE, Q

GONE = object()
RUN = LEAST | {
    "format": "karipap-run",
    "version": 1,
    "id": "r",
    "kept": 0.5,
    "plan": ONE.to_json(),
    "predicted": {"rise": 0.1},
}
PLAN = ONE.to_json()


def document(whole: dict, name: str, *way: str, value: Any) -> Callable[[Path], object]:
    """A good document but for the field at the end of the way: this value, or gone."""

    def make(folder: Path) -> None:
        changed = json.loads(json.dumps(whole))
        at = changed
        for part in way[:-1]:
            at = at[part]
        if value is GONE:
            del at[way[-1]]
        else:
            at[way[-1]] = value
        (folder / name).write_text(json.dumps(changed), "utf-8")

    return make


def plan(*way: str, value: Any) -> Callable[[Path], object]:
    return document(PLAN, "plan.json", *way, value=value)


def run(*way: str, value: Any) -> Callable[[Path], object]:
    return document(RUN, "run.json", *way, value=value)


def text(name: str, content: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(content, "utf-8")


CASES = [
    Case(
        "plan of another format",
        plan("format", value="other"),
        "show plan.json",
        "File plan.json is no profile, plan, run or report of Karipap (field 'format').",
    ),
    Case(
        "plan of a newer version",
        plan("version", value=2),
        "show plan.json",
        "File plan.json was written by a newer Karipap (version 2, this one reads up to 1): update Karipap.",
    ),
    Case(
        "plan of version 0",
        plan("version", value=0),
        "show plan.json",
        "File plan.json: field version is 0: it must be at least 1.",
    ),
    Case(
        "plan whose version is true",
        plan("version", value=True),
        "show plan.json",
        "File plan.json: field version is true: it must be a whole number.",
    ),
    Case(
        "plan without weights",
        plan("weights", value=GONE),
        "show plan.json",
        "File plan.json: field weights is missing.",
    ),
    Case(
        "weights are a list",
        plan("weights", value=[]),
        "show plan.json",
        "File plan.json: field weights is a list: it must be an object.",
    ),
    Case(
        "unknown field of a plan",
        plan("bugdet", value=0.5),
        "show plan.json",
        "File plan.json: there is no field bugdet; did you mean 'budget'?",
    ),
    Case(
        "unknown field of an entry",
        plan("weights", Q, "quantise", value="int8"),
        "show plan.json",
        "File plan.json: there is no field weights.model.layers.0.self_attn.q_proj.quantise; did you mean 'quantize'?",
    ),
    Case(
        "field of an entry that is like none",
        plan("weights", Q, "zzz", value=1),
        "show plan.json",
        "File plan.json: there is no field weights.model.layers.0.self_attn.q_proj.zzz: take it out.",
    ),
    Case(
        "entry is a word",
        plan("weights", Q, value="lowrank"),
        "show plan.json",
        "File plan.json: field weights.model.layers.0.self_attn.q_proj is 'lowrank': it must be an object.",
    ),
    Case(
        "network is a number",
        plan("weights", Q, "network", value=3),
        "show plan.json",
        "File plan.json: field weights.model.layers.0.self_attn.q_proj.network is 3: it must be a string.",
    ),
    Case(
        "chi is a word",
        plan("weights", Q, "chi", value="many"),
        "show plan.json",
        "File plan.json: field weights.model.layers.0.self_attn.q_proj.chi is 'many': it must be a list.",
    ),
    Case(
        "chi of 0",
        plan("weights", Q, "chi", value=[0]),
        "show plan.json",
        "File plan.json: field weights.model.layers.0.self_attn.q_proj.chi[0] is 0: it must be at least 1.",
    ),
    Case(
        "chi of a half",
        plan("weights", Q, "chi", value=[0.5]),
        "show plan.json",
        "File plan.json: field weights.model.layers.0.self_attn.q_proj.chi[0] is 0.5: it must be a whole number.",
    ),
    Case(
        "chi of true",
        plan("weights", Q, "chi", value=[True]),
        "show plan.json",
        "File plan.json: field weights.model.layers.0.self_attn.q_proj.chi[0] is true: it must be a whole number.",
    ),
    Case(
        "chi beyond all sizes",
        plan("weights", Q, "chi", value=[10**10]),
        "show plan.json",
        "File plan.json: field weights.model.layers.0.self_attn.q_proj.chi[0] is 10000000000: it "
        "must be at most 1,000,000,000.",
    ),
    Case(
        "out of nothing",
        plan("weights", Q, "out", value=[]),
        "show plan.json",
        "File plan.json: field weights.model.layers.0.self_attn.q_proj.out has 0 entries: at least 1.",
    ),
    Case(
        "seventeen factors",
        plan("weights", Q, "in", value=[1] * 17),
        "show plan.json",
        "File plan.json: field weights.model.layers.0.self_attn.q_proj.in has 17 entries: at most 16.",
    ),
    Case(
        "locked is a word",
        plan("weights", Q, "locked", value="yes"),
        "show plan.json",
        "File plan.json: field weights.model.layers.0.self_attn.q_proj.locked is 'yes': it must be true or false.",
    ),
    Case(
        "made by nobody",
        plan("weights", Q, "by", value="me"),
        "show plan.json",
        "File plan.json: field weights.model.layers.0.self_attn.q_proj.by is 'me', not one of rule, hand.",
    ),
    Case(
        "structure of unknown parts",
        plan("weights", Q, "structure", value={"heed": 1}),
        "show plan.json",
        "File plan.json: there is no field "
        "weights.model.layers.0.self_attn.q_proj.structure.heed; did you mean 'head'?",
    ),
    Case(
        "structure is a list",
        plan("weights", Q, "structure", value=[1]),
        "show plan.json",
        "File plan.json: field weights.model.layers.0.self_attn.q_proj.structure is a list: it "
        "must be an object or null.",
    ),
    Case(
        "quantize is a list",
        plan("weights", Q, "quantize", value=["int8"]),
        "show plan.json",
        "File plan.json: field weights.model.layers.0.self_attn.q_proj.quantize is a list: it "
        "must be a string or null.",
    ),
    Case(
        "grid of three",
        plan("weights", Q, "grid", value=[1, 2, 3]),
        "show plan.json",
        "File plan.json: field weights.model.layers.0.self_attn.q_proj.grid has 3 entries: at most 2.",
    ),
    Case(
        "metric that is none",
        plan("metric", value="los"),
        "show plan.json",
        "File plan.json: field metric is 'los', not one of weight, functional, loss. Did you mean 'loss'?",
    ),
    Case(
        "rule that is none",
        plan("rule", value="entropi"),
        "show plan.json",
        "File plan.json: field rule is 'entropi', not one of uniform, entropy, functional, loss, "
        "calibrated, refined, best, hand. Did you mean 'entropy'?",
    ),
    Case(
        "scope that is none",
        plan("scope", value="modle"),
        "show plan.json",
        "File plan.json: field scope is 'modle', not one of model, blocks, vision, audio, connector, encoder, decoder, "
        "language. Did you mean 'model'?",
    ),
    Case(
        "budget above 1",
        plan("budget", value=1.5),
        "show plan.json",
        "File plan.json: field budget is 1.5: it must be at most 1.",
    ),
    Case(
        "budget of 0",
        plan("budget", value=0),
        "show plan.json",
        "File plan.json: field budget is 0: it must be above 0.",
    ),
    Case(
        "budget is a word",
        plan("budget", value="half"),
        "show plan.json",
        "File plan.json: field budget is 'half': it must be a number or null.",
    ),
    Case(
        "fingerprint of few digits",
        plan("model", "fingerprint", value="ab"),
        "show plan.json",
        "File plan.json: field model.fingerprint is 'ab': it must be 64 hexadecimal digits.",
    ),
    Case(
        "fingerprint in capitals",
        plan("model", "fingerprint", value="AB" * 32),
        "show plan.json",
        "File plan.json: field model.fingerprint is "
        "'ABABABABABABABABABABABABABABABABABABABABABABABABABABABABABAB…': it must be 64 "
        "hexadecimal digits.",
    ),
    Case(
        "fingerprint with a line's end",
        plan("model", "fingerprint", value="ab" * 32 + "\n"),
        "show plan.json",
        "File plan.json: field model.fingerprint has 65 letters: at most 64.",
    ),
    Case(
        "model of no parameters",
        plan("model", "parameters", value=0),
        "show plan.json",
        "File plan.json: field model.parameters is 0: it must be at least 1.",
    ),
    Case(
        "model without a name",
        plan("model", "name", value=GONE),
        "show plan.json",
        "File plan.json: field model.name is missing.",
    ),
    Case(
        "predicted is a list",
        plan("predicted", value=[]),
        "show plan.json",
        "File plan.json: field predicted is a list: it must be an object or null.",
    ),
    Case(
        "predicted rise is a word",
        plan("predicted", "rise", value="low"),
        "show plan.json",
        "File plan.json: field predicted.rise is 'low': it must be a number or null.",
    ),
    Case(
        "predicted rise of an object",
        plan("predicted", "rise", value={"a": 1}),
        "show plan.json",
        "File plan.json: field predicted.rise is an object: it must be a number or null.",
    ),
    Case(
        "predicted rise beyond bounds",
        plan("predicted", "rise", value=1e300),
        "show plan.json",
        "File plan.json: field predicted.rise is 1e+300: it must be at most 1e+06.",
    ),
    Case(
        "predicted field that is none",
        plan("predicted", "rize", value=0.1),
        "show plan.json",
        "File plan.json: there is no field predicted.rize; did you mean 'rise'?",
    ),
    Case(
        "predicted share below 0",
        plan("predicted", "kept", value=-1),
        "show plan.json",
        "File plan.json: field predicted.kept is -1: it must be at least 0.",
    ),
    Case(
        "tried is a word",
        plan("tried", value="all"),
        "show plan.json",
        "File plan.json: field tried is 'all': it must be a list.",
    ),
    Case(
        "tried holds a number",
        plan("tried", value=[1]),
        "show plan.json",
        "File plan.json: field tried[0] is 1: it must be an object.",
    ),
    Case(
        "tried without a rule",
        plan("tried", value=[{"rise": 1}]),
        "show plan.json",
        "File plan.json: field tried[0].rule is missing.",
    ),
    Case(
        "calibration without a text",
        plan("calibration", value={}),
        "show plan.json",
        "File plan.json: field calibration.text is missing.",
    ),
    Case(
        "embedding of another kind",
        plan("embedding", value={"kind": "lowrnk"}),
        "show plan.json",
        "File plan.json: field embedding.kind is 'lowrnk', not one of dense, lowrank, tt. Did you mean 'lowrank'?",
    ),
    Case(
        "weights twice",
        text("plan.json", json.dumps(PLAN)[:-1] + ', "weights": {}}'),
        "show plan.json",
        "File plan.json has the field 'weights' twice: keep one of them.",
    ),
    Case(
        "plan with 1e400",
        text("plan.json", json.dumps(PLAN).replace("0.1", "1e400")),
        "show plan.json",
        "File plan.json holds the number 1e400, which is beyond what a number can be.",
    ),
    Case(
        "plan with NaN",
        text("plan.json", json.dumps(PLAN).replace("0.1", "NaN")),
        "show plan.json",
        "File plan.json holds the number NaN: JSON has only finite numbers.",
    ),
    Case(
        "plan of seventy lists",
        text("plan.json", "[" * 70 + "]" * 70),
        "show plan.json",
        "File plan.json nests values more than 64 deep: that is no file of this kind.",
    ),
    Case(
        "plan that is a list", text("plan.json", "[]"), "show plan.json", "File plan.json holds a list, not an object."
    ),
    Case(
        "plan that is empty",
        text("plan.json", ""),
        "show plan.json",
        "File plan.json is empty.",
    ),
    Case(
        "half a surrogate pair in a plan",
        text("plan.json", json.dumps(PLAN).replace("tiny", "\\ud800")),
        "show plan.json",
        "File plan.json holds half of a surrogate pair (\\ud800 to \\udfff alone).",
    ),
    Case(
        "compared: unknown network",
        plan("weights", Q, "network", value="lowrnk"),
        "compare plan.json plan.json",
        "plan.json: field weights.model.layers.0.self_attn.q_proj.network: 'lowrnk' is not one "
        "of lowrank, mpo, qlr, peps, disentangled, tree, tt_embedding. Did you mean 'lowrank'?",
    ),
    Case(
        "compared: an entry without chi",
        plan("weights", Q, "chi", value=GONE),
        "compare plan.json plan.json",
        "plan.json: field weights.model.layers.0.self_attn.q_proj.chi is missing.",
    ),
    Case(
        "compared: an entry without out",
        plan("weights", Q, "out", value=GONE),
        "compare plan.json plan.json",
        "plan.json: field weights.model.layers.0.self_attn.q_proj.out is missing.",
    ),
    Case(
        "reported: a plan",
        plan("metric", value="loss"),
        "report plan.json",
        "plan.json is a karipap-plan: a report is made of runs and sweeps.",
    ),
    Case(
        "run whose id leads out",
        run("id", value="../victim/settings"),
        "report run.json",
        "File run.json: field id is '../victim/settings', which is not a name: letters, digits, "
        "'.', '_', '+' and '-', at most 128.",
    ),
    Case(
        "run whose id is absolute",
        run("id", value="/etc/x"),
        "report run.json",
        "File run.json: field id is '/etc/x', which is not a name: letters, digits, '.', '_', "
        "'+' and '-', at most 128.",
    ),
    Case(
        "run whose id is an option",
        run("id", value="--out=x"),
        "report run.json",
        "File run.json: field id is '--out=x', which is not a name: letters, digits, '.', '_', "
        "'+' and '-', at most 128.",
    ),
    Case(
        "run whose id is a number",
        run("id", value=7),
        "report run.json",
        "File run.json: field id is 7: it must be a string.",
    ),
    Case(
        "run whose id has a line's end",
        run("id", value="a\n"),
        "report run.json",
        "File run.json: field id is 'a\\n', which is not a name: letters, digits, '.', '_', '+' and '-', at most 128.",
    ),
    Case("run without an id", run("id", value=GONE), "report run.json", "File run.json: field id is missing."),
    Case(
        "run with a plan of nothing",
        run("plan", value={}),
        "report run.json",
        "File run.json: field plan.format is missing.",
    ),
    Case(
        "run with a plan of words",
        run("plan", value="all"),
        "compare run.json run.json",
        "File run.json: field plan is 'all': it must be an object or null.",
    ),
    Case(
        "run with a bad entry",
        run("plan", "weights", Q, "chi", value=["4"]),
        "compare run.json run.json",
        "File run.json: field plan.weights.model.layers.0.self_attn.q_proj.chi[0] is '4': it must be a whole number.",
    ),
    Case(
        "run of another kind",
        run("kind", value="netwrk"),
        "show run.json",
        "File run.json: field kind is 'netwrk', not one of network, baseline. Did you mean 'network'?",
    ),
    Case(
        "run kept is a word",
        run("kept", value="half"),
        "show run.json",
        "File run.json: field kept is 'half': it must be a number.",
    ),
    Case(
        "run kept below 0",
        run("kept", value=-0.5),
        "show run.json",
        "File run.json: field kept is -0.5: it must be at least 0.",
    ),
    Case(
        "run from before time",
        run("created", value=-1),
        "show run.json",
        "File run.json: field created is -1: it must be seconds since 1970, before 2100.",
    ),
    Case(
        "run from the far future",
        run("created", value=1e12),
        "show run.json",
        "File run.json: field created is 1000000000000.0: it must be seconds since 1970, before 2100.",
    ),
    Case(
        "run with an unknown figure",
        run("perplexty", value=1.0),
        "show run.json",
        "File run.json: there is no field perplexty; did you mean 'perplexity'?",
    ),
    Case(
        "run whose rise is a list",
        run("rise", value=[0.1]),
        "show run.json",
        "File run.json: field rise is a list: it must be a number or null.",
    ),
    Case(
        "run whose dense is a number",
        run("dense", value=2.0),
        "show run.json",
        "File run.json: field dense is 2.0: it must be an object or null.",
    ),
    Case(
        "run whose notes are a word",
        run("notes", value="a note"),
        "show run.json",
        "File run.json: field notes is 'a note': it must be a list.",
    ),
    Case(
        "run whose units are not equally long",
        run("units", value={"over": "windows", "ids": [1], "tokens": [1, 2], "rise": [0.1]}),
        "show run.json",
        "File run.json: field units: ids, tokens and rise must be equally long.",
    ),
    Case(
        "run whose task is a number",
        run("tasks", value={"a": 1}),
        "show run.json",
        "File run.json: field tasks.a is 1: it must be an object.",
    ),
    Case(
        "run whose task has a word for a score",
        run("tasks", value={"a": {"chance": "half"}}),
        "show run.json",
        "File run.json: field tasks.a.chance is 'half': it must be a number or null.",
    ),
    Case(
        "run with a convention of nothing",
        run("conventions", value={"rolling": {}}),
        "show run.json",
        "File run.json: field conventions.rolling.perplexity is missing.",
    ),
    Case(
        "run with a predicted word",
        run("predicted", "rise", value="x"),
        "report run.json",
        "File run.json: field predicted.rise is 'x': it must be a number or null.",
    ),
    Case(
        "sweep with a run that is none",
        text("sweep.json", json.dumps({"format": "karipap-sweep", "version": 1, "runs": [1]})),
        "report sweep.json",
        "File sweep.json: field runs[0] is 1: it must be an object.",
    ),
    Case(
        "sweep without runs",
        text("sweep.json", json.dumps({"format": "karipap-sweep", "version": 1})),
        "show sweep.json",
        "File sweep.json: field runs is missing.",
    ),
    Case(
        "profile of a newer version",
        text("profile.json", json.dumps({"format": "karipap-profile", "version": 7})),
        "show profile.json",
        "File profile.json was written by a newer Karipap (version 7, this one reads up to 1): update Karipap.",
    ),
    Case(
        "profile of nothing",
        text("profile.json", json.dumps({"format": "karipap-profile", "version": 1})),
        "show profile.json",
        "File profile.json: field model is missing.",
    ),
    Case(
        "autopilot of nothing",
        text("autopilot.json", json.dumps({"format": "karipap-autopilot", "version": 1})),
        "show autopilot.json",
        "File autopilot.json: field key is missing.",
    ),
    Case(
        "sensitivity of nothing",
        text("s.json", json.dumps({"format": "karipap-sensitivity", "version": 1})),
        "show s.json",
        "File s.json: field created is missing.",
    ),
    Case(
        "document of no format",
        text("d.json", "{}"),
        "show d.json",
        "File d.json is no profile, plan, run or report of Karipap (field 'format').",
    ),
    Case(
        "document of a format that is a list",
        text("d.json", json.dumps({"format": []})),
        "show d.json",
        "File d.json is no profile, plan, run or report of Karipap (field 'format').",
    ),
    Case(
        "a pipe in a plan's place",
        lambda folder: os.mkfifo(folder / "plan.json"),
        "show plan.json",
        "plan.json is a named pipe, not a regular file: put a file in its place.",
    ),
    Case(
        "a folder in a plan's place",
        lambda folder: (folder / "plan.json").mkdir(),
        "show plan.json",
        "Folder plan.json holds no profile, run, sweep or compressed model of Karipap.",
    ),
    Case(
        "a link that leads nowhere",
        lambda folder: (folder / "plan.json").symlink_to("gone"),
        "show plan.json",
        "plan.json is a link to gone, which does not exist.",
    ),
    Case(
        "a link round in a circle",
        lambda folder: (folder / "plan.json").symlink_to("plan.json"),
        "show plan.json",
        "plan.json is a link that leads back to itself.",
    ),
    Case("no plan", lambda folder: None, "show plan.json", "File plan.json does not exist."),
    Case(
        "damaged: its seal is another's",
        text("plan.json", json.dumps(PLAN | {"seal": "0" * 64})),
        "show plan.json",
        "File plan.json is damaged (its SHA-256 differs): make it again.",
    ),
]
