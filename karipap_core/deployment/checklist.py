"""The production checklist: green or red from what is on disk, never from a tick box; for what is red, what to run."""

import shlex
from dataclasses import dataclass, fields
from pathlib import Path

from karipap_core.checkpoint.open import open_checkpoint
from karipap_core.compressed import records
from karipap_core.compressed.checks import unsafe_files
from karipap_core.compressed.verify import summary
from karipap_core.errors import InputError
from karipap_core.plan.document import RULES, Plan
from karipap_core.progress import Progress, silent
from karipap_core.terminal import argument

ITEMS = (
    "fingerprint pinned",
    "verify passed",
    "evaluation on file",
    "shadow run on file",
    "fallback tested",
    "safetensors only",
    "plan valid",
    "all run since the last change",
)
OF_ITEM = dict(zip(ITEMS[1:5], records.KINDS, strict=True))
PROMPTS = ("def main():", "Once upon a time")  # to begin with; prompts of one's own say more (docs/serving.md)
MOST_PROMPTS, MOST_LETTERS = 8, 200  # of an earlier shadow run that fit into a command


@dataclass(frozen=True)
class _Facts:
    """What the items are decided on.

    settings: the folder's quantization_config. wanted: the fingerprint of the dense model that the plan pins. state:
    fingerprints of the folder as it is now, None where its tensors cannot be read. encoder: the model writes no text.
    """

    folder: Path
    settings: dict
    source: records.Source
    wanted: str
    state: dict | None
    encoder: bool

    @property
    def model(self) -> str:
        return argument(self.source.name)

    def command(self, verb: str) -> str:
        """The command that makes the evidence of a verb anew."""
        folder = shlex.quote(str(self.folder))
        if verb == "fallback":
            return f"karipap checklist {folder} --against {self.model} --test-fallback"
        verb = {"evaluation": "evaluate"}.get(verb, verb)
        more = "".join(f" --prompt {shlex.quote(each)}" for each in self.prompts()) if verb == "shadow" else ""
        return f"karipap {verb} {folder} --against {self.model}{more}"

    def prompts(self) -> tuple[str, ...]:
        """Those of the last shadow run where they are few and short, else `PROMPTS`."""
        document = records.read(self.folder, "shadow")
        rows = (document or {"result": {}})["result"].get("prompts") or []
        prompts = [row.get("prompt") for row in rows if isinstance(row, dict)]
        known = tuple(each for each in prompts if isinstance(each, str) and 0 < len(each) <= MOST_LETTERS)
        return known if len(known) == len(prompts) and 0 < len(known) <= MOST_PROMPTS else PROMPTS

    def written_again(self) -> str:
        """Commands that write the folder anew from its own plan, and heal it again where it was healed."""
        config = shlex.quote(str(self.folder / "config.json"))
        code = "import json, sys; json.dump(json.load(open(sys.argv[1]))['quantization_config']['plan'], "
        code += "open('plan.json', 'w'))"
        healing = records.report_of(self.folder).get("healing")
        out, again = (shlex.quote(f"{self.folder}-{word}") for word in ("before-healing", "again"))
        first = out if healing else again
        commands = [f'python -c "{code}" {config}']
        commands += [f"karipap compress {self.model} --plan plan.json --out {first}"]
        if healing:
            commands += [f"karipap heal {out} --distill {self.model}{_typed(healing)} --out {again}"]
        return " && ".join(commands)

    def planned_again(self) -> str:
        """Commands that make a new plan of the same kind for the dense model as it is, and the folder by it."""
        plan, out = self.settings["plan"], shlex.quote(f"{self.folder}-again")
        words = f"--budget {_fraction(plan.get('budget')) or 0.7:g}"
        if kept := _fraction(plan.get("budget_bytes")):
            words = f"--budget-bytes {kept:g}"
        for key, allowed in (("scope", ("blocks",)), ("rule", RULES), ("metric", ("weight", "functional"))):
            words += f" --{key} {plan[key]}" if plan.get(key) in allowed else ""
        weights = plan.get("weights")
        entries = [entry for entry in weights.values() if isinstance(entry, dict)] if isinstance(weights, dict) else []
        networks = {str(entry.get("network")) for entry in entries} - {"dense"}
        formats = {str(entry["quantize"]) for entry in entries if entry.get("quantize")} if networks != {"qlr"} else {}
        for key, found in (("network", networks), ("quantize", formats)):
            words += f" --{key} {shlex.quote(min(found)) if len(found) == 1 else 'auto'}" if found else ""
        return (
            f"karipap plan {self.model} {words} --out plan.json && "
            f"karipap compress {self.model} --plan plan.json --out {out}"
        )


def _fraction(value) -> float | None:
    return value if isinstance(value, int | float) and 0 < value <= 1 else None


def _typed(healing: dict) -> str:
    """The options of `heal` that a healing was made with."""
    from karipap_core.healing.settings import ScaleSettings, Settings

    kind = ScaleSettings if healing["settings"].get("scales") is True else Settings
    usual = {"scales": False} | {field.name: field.default for field in fields(kind)}
    words = ""
    for name, value in healing["settings"].items():
        if name in usual and value != usual[name]:
            words += f" --{name.replace('_', '-')}" + ("" if value is True else f" {argument(str(value))}")
    path = healing["result"]["text"].get("path")
    return words + (f" --text {argument(path)}" if path else "")


def checklist(folder: str | Path, against: str | Path | None = None, progress: Progress = silent) -> dict:
    """{"ok", "items": [{"name", "ok", "evidence", "fix"}], "folder"}: whether a compressed folder is fit to be served.

    Each item rests on the folder's files, on the dense model's (default: where the folder says that it was), and on the
    records of `verify`, `evaluate`, `shadow` and the fallback's rehearsal in the folder (records.py). A record that was
    made before the folder or the dense model changed is red. `fix` is the command that makes a red item green, None for
    a green one. Raises InputError where `folder` is no compressed folder.
    """
    folder = Path(folder)
    settings = records.settings_of(folder)
    progress("checklist", 0, 1, "hashing")
    source = records.source_of(folder, against)
    try:
        state = records.state_of(folder)
    except InputError:
        state = None
    encoder = state is not None and not open_checkpoint(folder, compressed=True).predicts
    facts = _Facts(folder, settings, source, records.pinned(settings), state, encoder)
    found = {
        "fingerprint pinned": _fingerprint(facts),
        "safetensors only": _safe(facts),
        "plan valid": _plan(facts),
    }
    for item, kind in OF_ITEM.items():
        found[item] = _record(facts, kind)
    found[ITEMS[-1]] = _flow(facts, found)
    items = [dict(zip(("name", "ok", "evidence", "fix"), (name, *found[name]), strict=True)) for name in ITEMS]
    progress("checklist", 1, 1)
    return {"ok": all(item["ok"] for item in items), "items": items, "folder": str(folder)}


# The items. Each gives (ok, evidence, fix).


def _fingerprint(facts: _Facts) -> tuple[bool, str, str | None]:
    wanted, source = facts.wanted, facts.source
    if len(wanted) != 64:
        return False, "the plan in config.json pins no fingerprint", facts.planned_again()
    if source.checkpoint is not None:
        found = source.checkpoint.fingerprint
        if found == wanted:
            return True, f"config.json pins {wanted[:12]}…, the fingerprint of {source.name}", None
        said = f"config.json pins {wanted[:12]}…, {source.name} is {found[:12]}…: it has changed, or is another model"
        return False, said, facts.planned_again()
    for kind in records.KINDS:
        document = records.read(facts.folder, kind)
        if document and document["of"].get("dense") == wanted:
            seen = f"config.json pins {wanted[:12]}…, beside which {kind}.json was made"
            return True, f"{seen}; the dense model itself is not here", None
    said = f"config.json pins {wanted[:12]}…, but {source.why}, and no record was made beside it"
    return False, said, facts.command("verify")


def _safe(facts: _Facts) -> tuple[bool, str, str | None]:
    bad = unsafe_files(facts.folder)
    if not bad:
        return True, "no file in the folder can execute code", None
    fix = "rm -- " + " ".join(shlex.quote(str(facts.folder / name)) for name in bad)
    return False, f"{', '.join(bad[:3])} could execute code", f"{fix} && {facts.command('verify')}"


def _plan(facts: _Facts) -> tuple[bool, str, str | None]:
    try:
        plan = Plan.from_json(facts.settings["plan"], "config.json")
        networks = sum(plan.spec(name) is not None for name in plan.weights)
        if facts.source.checkpoint is not None:
            plan.check(facts.source.checkpoint, force=True)  # the fingerprint is an item of its own
    except InputError as error:
        return False, str(error), facts.planned_again()
    return True, f"the plan in config.json is valid; {networks} weights changed", None


def _record(facts: _Facts, kind: str) -> tuple[bool, str, str | None]:
    if facts.state is None:
        return False, "the folder's tensors cannot be read", facts.written_again()
    if kind == "shadow" and facts.encoder:
        ok, said, fix = _record(facts, "evaluation")
        return ok, f"an encoder writes no text, its outputs are compared: {said}", fix
    document, fix = records.read(facts.folder, kind), facts.command(kind)
    if kind == "verify":  # what another item says comes first: without it, verify would say the same again
        fix = next((item(facts)[2] for item in (_fingerprint, _plan, _safe) if not item(facts)[0]), fix)
    if document is None:
        return False, f"no {kind}.json in the folder", fix
    if why := records.stale(document, facts.state, facts.wanted):
        return False, f"{kind}.json is stale: {why}", fix
    ok, said = _SAID[kind](document["result"])
    if ok and kind != "verify" and document["of"].get("dense") is None:
        ok, said = False, "it was made without the dense model beside it"
    if not ok and kind == "verify" and fix == facts.command(kind):
        wrong = {check["name"] for check in document["result"].get("checks", ()) if check["ok"] is False}
        fix = facts.written_again() if wrong - {"safetensors only", "fingerprint"} else fix
    return ok, f"{kind}.json: {said}", None if ok else fix


def _said_verify(result: dict) -> tuple[bool, str]:
    return result.get("ok") is True, summary(result)


def _said_evaluation(result: dict) -> tuple[bool, str]:
    text = result.get("text") or {}
    if not text.get("sha256") or not result.get("window"):
        return False, "it does not say which text and windows it was measured on"
    said = f"{result.get('tokens') or 0:,} tokens of {text.get('name')} (SHA-256 {text['sha256'][:12]}…), "
    said += f"windows of {result['window']}"
    if result.get("rise") is not None:
        return True, f"{said}; loss {result['rise']:+z.4f} nats a token"
    if result.get("fidelity"):
        return True, f"{said}; relative output error {result['fidelity']['relative_error']:.2g}"
    return False, f"{said}; it was not compared with the dense model"


def _said_shadow(result: dict) -> tuple[bool, str]:
    if not result.get("prompts") or not result.get("prompts_sha256"):
        return False, "it holds no prompts"
    count = len(result["prompts"])
    said = f"{count} prompt{'s' if count > 1 else ''} (SHA-256 {result['prompts_sha256'][:12]}…), "
    return True, f"{said}agreement {result['agreement']:.1%}, KL {result['kl']:.3g} nats a token"


def _said_fallback(result: dict) -> tuple[bool, str]:
    wrong = [check["name"] for check in result.get("checks", ()) if not check["ok"]]
    if result.get("ok") is not True:
        return False, f"the switch failed: {', '.join(wrong)}"
    return True, f"{len(result['checks'])} steps passed, the dense model answers in {result['seconds']:g} s"


_SAID = {
    "verify": _said_verify,
    "evaluation": _said_evaluation,
    "shadow": _said_shadow,
    "fallback": _said_fallback,
}


def _flow(facts: _Facts, found: dict) -> tuple[bool, str, str | None]:
    """Whether every record is of the folder and of the dense model as they are now."""
    if not found["fingerprint pinned"][0]:
        return False, "the dense model is not the one that the folder was made from", found["fingerprint pinned"][2]
    if facts.state is None:
        return False, "the folder's tensors cannot be read", facts.written_again()
    old = []
    for kind in records.KINDS:
        if kind == "shadow" and facts.encoder:
            continue
        document = records.read(facts.folder, kind)
        if document is None or records.stale(document, facts.state, facts.wanted):
            old.append(kind)
    if old:
        return False, f"not run on the folder as it is now: {', '.join(old)}", " && ".join(map(facts.command, old))
    return True, "every record is of the tensors, the config and the dense model as they are now", None
