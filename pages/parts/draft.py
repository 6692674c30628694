"""The plan in the making: the one source of truth of the Plan page. Widgets show it and write into it.

Nothing here draws. A `Draft` is never changed, only replaced, so undo and redo are a list of them.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from karipap_core import schemas
from karipap_core.errors import InputError
from karipap_core.plan.budget import SCOPES
from karipap_core.plan.document import DENSE, Plan, model_entry, rounding_of
from karipap_core.plan.kind import PREFIXES, ROUNDINGS, packs_unasked, prefix_of
from karipap_core.plan.predict import sizes_of
from karipap_core.profiles import apart
from karipap_core.workspace import Workspace, new_id
from karipap_core.workspace.files import write_json
from pages.parts.tables import What

MOST_STEPS = 100  # of undo
MOST_DRAFTS = 50  # on disk
DRAFT_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{6}")


@dataclass(frozen=True)
class Draft:
    """chi: weight → χ (or the number of its option, see chi_board.py), 0 for dense. locked and hand: names. budget:
    kept fraction of what unit and scope say. quantize, embedding and prefix: as the options of the verb `plan`.

    special: entries of an imported plan that are none of the network's options: {name: {"entry", "chi", "parameters",
    "bytes", "multiply_adds"}}; such a weight stays as it is or becomes dense. origin: the plan that was opened, as
    long as no χ differs from it: {"name", "rule", "chosen_rule", "predicted", "tried"}.
    """

    network: str
    metric: str
    rule: str
    chi: Mapping[str, int]
    unit: str = "parameters"
    scope: str = "model"
    budget: float | None = None
    locked: tuple[str, ...] = ()
    hand: tuple[str, ...] = ()
    special: Mapping[str, dict] = field(default_factory=dict)
    origin: dict | None = None
    quantize: str | None = None
    embedding: str = "dense"
    prefix: str = PREFIXES[0]

    @property
    def what(self) -> What:
        return What(self.network, self.metric, self.quantize, self.embedding)

    @property
    def held(self) -> tuple[str, ...]:
        """What the budget leaves as it is: locked, or set by hand."""
        return (*self.locked, *(name for name in self.hand if name not in self.locked))

    def with_chi(self, chi: Mapping[str, int], **changes) -> "Draft":
        """This draft at other χ: an opened plan is no longer what it was, unless nothing differs."""
        origin = self.origin if dict(chi) == dict(self.chi) else None
        return replace(self, chi=dict(chi), origin=origin, **changes)


@dataclass
class History:
    """Drafts in the order they were made; `at` is the one in view. revision counts every change of view."""

    drafts: list[Draft]
    at: int = 0
    revision: int = 0
    seq: int = 0  # the board's last release that was taken in
    editor: int = 0  # generation of the table: a change from elsewhere makes it forget its edits

    @property
    def now(self) -> Draft:
        return self.drafts[self.at]

    def push(self, draft: Draft, from_editor: bool = False) -> None:
        if draft == self.now:
            return
        self.drafts = [*self.drafts[: self.at + 1], draft][-MOST_STEPS:]
        self.at = len(self.drafts) - 1
        self._changed(from_editor)

    def undo(self) -> None:
        if self.at > 0:
            self.at -= 1
            self._changed()

    def redo(self) -> None:
        if self.at + 1 < len(self.drafts):
            self.at += 1
            self._changed()

    def _changed(self, from_editor: bool = False) -> None:
        self.revision += 1
        self.editor += not from_editor


# ---- edits -------------------------------------------------------------------------------------------------------


def released(draft: Draft, release) -> Draft:
    """The draft after a release of the board (chi_board.Release)."""
    budget = draft.budget if release.budget is None else release.budget
    return draft.with_chi(release.chi, locked=tuple(release.locked), hand=tuple(release.hand), budget=budget)


def edited_rows(
    draft: Draft, names: Sequence[str], edits: Mapping, largest: Mapping[str, int], mates: Mapping[str, Sequence] = {}
) -> Draft:
    """The draft after edits in the table: {row number: {column: value}} with the columns `chi` and `locked`.

    `names` are the weights in the order of the rows; χ is held to 0 (dense) … `largest`, and None is dense. `mates`:
    for a weight that shares cores all those that move with it. Rows and columns that are unknown, and values that are
    no numbers, change nothing.
    """
    chi, locked, hand = dict(draft.chi), set(draft.locked), set(draft.hand)
    for row, changes in edits.items():
        try:
            name = names[int(row)]
        except (ValueError, IndexError):
            continue
        if isinstance(changes.get("locked"), bool):
            for mate in mates.get(name, (name,)):
                (locked.add if changes["locked"] else locked.discard)(mate)
        value = changes.get("chi")
        if "chi" in changes and value is None:  # the cell was emptied, and says "dense" then
            value = 0
        if isinstance(value, int | float) and not isinstance(value, bool) and value == value:
            value = int(max(0, min(largest[name], value)))
            if name in draft.special and value != 0:
                value = draft.special[name]["chi"]
            if value != chi.get(name, 0):
                for mate in mates.get(name, (name,)):
                    chi[mate] = value
                    hand.add(mate)
    ordered = {name: place for place, name in enumerate(names)}
    place = ordered.get
    return draft.with_chi(chi, locked=tuple(sorted(locked, key=place)), hand=tuple(sorted(hand, key=place)))


def carried(draft: Draft, new: Draft, before, after) -> tuple[Draft, int]:
    """`new` with as many of the weights that `draft` holds as can stand in the tables `after` as they stood in
    `before`, at their χ there; and how many others were dropped, whose options are other ones now.

    A weight keeps its place where what it is (its plan entry) is one of its options in `after`: dense always is.
    Weights that share cores do it together or not at all.
    """
    shapes = {row["name"]: row["shape"] for row in after.rows}
    same = new.what == draft.what and not after.choices

    def places(name: str) -> set[int]:
        chi = int(draft.chi.get(name, 0))
        plain = before.network == after.network and not before.choices and not after.choices
        if chi == 0 or same or name in new.special or plain and name not in draft.special:
            return {chi}
        own = draft.special[name]["entry"] if name in draft.special else None
        own = own or (before.choices.entry(name, chi) if before.choices else entry(before.network, shapes[name], chi))
        if after.choices:
            return after.choices.of_entry(name, own)
        own = {key: own.get(key) for key in ("network", "out", "in", "chi", "quantize")}
        chi = max(own["chi"] or [0])
        there = entry(after.network, shapes[name], chi) if chi and own["network"] == after.network else {}
        return {chi} if chi and own == {key: there.get(key) for key in own} else set()

    groups: dict[str, list[str]] = {}
    for row in after.rows:
        groups.setdefault(row.get("group") or row["name"], []).append(row["name"])
    held, chi = set(draft.held), {}
    for names in groups.values():
        mine = [name for name in names if name in held]
        if mine and (common := set.intersection(*map(places, mine))):
            chi |= dict.fromkeys(names, min(common))

    def still(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(name for name in names if name in chi)

    locked, hand = still(draft.locked), still(draft.hand)
    new = replace(new, chi=chi, locked=locked, hand=hand)
    return new, len(held) - len(new.held)


# ---- to and from the plan's file ---------------------------------------------------------------------------------


def entry(network: str, shape: tuple[int, int], chi: int) -> dict:
    """A plan's entry: χ in the network's default factorization, dense for 0. Only `lowrank` needs no torch."""
    if chi == 0:
        return dict(DENSE)
    if network == "lowrank":
        return {"network": network, "out": [shape[0]], "in": [shape[1]], "chi": [chi], "quantize": None}
    from karipap_core.networks import NETWORKS

    return NETWORKS[network].for_shape(*shape, chi).to_json() | {"quantize": None}


def to_plan(draft: Draft, checkpoint, found, totals: Mapping) -> Plan:
    """The draft as a plan. `found` are the tables it was made on, `totals` the figures of chi_board.totals."""
    weights = {}
    for row in found.rows:
        name, chi = row["name"], int(draft.chi.get(row["name"], 0))
        made = dict(draft.special[name]["entry"]) if name in draft.special and chi else None
        made = made or (found.choices.entry(name, chi) if found.choices else entry(draft.network, row["shape"], chi))
        made = {key: value for key, value in made.items() if key not in ("locked", "by")}
        if name in draft.locked:
            made["locked"] = True
        if name in draft.hand:
            made["by"] = "hand"
        weights[name] = made
    embedding = None
    if found.choices:
        found.choices.why(weights)
        if found.choices.candidates.tables:
            embedding = {"kind": draft.embedding, "tied": "contract"}
    blocks = sum(row["parameters_dense"] for row in found.rows) + (found.model.get("held_parameters") or 0)
    rest = checkpoint.block_parameters - blocks if draft.scope not in SCOPES else 0  # other towers, which stay dense
    after = totals["kept_blocks"] * blocks + rest
    predicted = {
        "parameters": round(totals["parameters"]),
        "bytes": round(totals["bytes"]),
        "kept": totals["kept"],
        "bytes_kept": totals["bytes_kept"],
        "block_parameters": round(after),
        "kept_blocks": after / (blocks + rest),
    }
    if found.choices:
        predicted = sizes_of(Plan(model_entry(checkpoint), draft.metric, weights, embedding=embedding), checkpoint)
    if totals["rise"] is not None:
        predicted |= found.model["fit"].predicted(totals["damage"], found.model["vocabulary"])
        predicted["error"] = None if draft.hand else found.model["error"]
    rule, more = draft.rule, {"rounding": rounding_of(draft.metric, weights, ROUNDINGS[0])}
    if draft.origin:
        predicted = draft.origin["predicted"] or predicted
        rule = draft.origin["rule"]
        more = {key: draft.origin.get(key) for key in ("chosen_rule", "tried", "rounding")}
    elif draft.hand:
        rule = "hand"
    return Plan(
        model=model_entry(checkpoint),
        metric=draft.metric,
        weights=weights,
        rule=rule,
        scope=draft.scope if draft.unit == "parameters" or draft.scope not in SCOPES else "model",
        budget=draft.budget if draft.unit == "parameters" else None,
        budget_bytes=draft.budget if draft.unit == "bytes" else None,
        calibration=found.calibration.text if found.calibration else None,
        predicted=predicted,
        embedding=embedding,
        prefix=prefix_of(draft.prefix, weights, lambda: apart.may_run(checkpoint)),
        notes=list(found.notes),
        **more,
    )


def check(plan: Plan, checkpoint) -> None:
    """Plan.check, without importing torch for plans that are dense and `lowrank` alone. Raises InputError."""
    known = {weight.name: weight for weight in checkpoint.weights}
    simple = plan.model["fingerprint"] == checkpoint.fingerprint
    for name, e in plan.weights.items():
        weight = known.get(name)
        dense = e["network"] == "dense" and not e.get("quantize")
        lowrank = e["network"] == "lowrank" and not e.get("quantize") and weight is not None and weight.compressible
        simple &= (
            dense
            and weight is not None
            or lowrank
            and (
                e["out"] == [weight.shape[0]]
                and e["in"] == [weight.shape[1]]
                and len(e["chi"]) == 1
                and e["chi"][0] <= min(weight.shape)
            )
        )
    if not simple:
        plan.check(checkpoint)


def made_of(plan: Plan, checkpoint) -> What:
    """What the board has to offer so that it can show a plan: the network that most of its weights have, or the mix
    where entries say why they were chosen; the format of the cores, or `auto` for several."""
    blocks = {weight.name for weight in checkpoint.weights if weight.compressible}
    entries = [e for name, e in plan.weights.items() if name in blocks]
    networks = [e["network"] for e in entries if e["network"] != "dense"]
    network = max(sorted(set(networks)), key=networks.count, default="lowrank")
    if any(e.get("why") for e in entries):
        network = "auto"
    # Some store their cores, and weights whole, in formats without being asked to.
    unasked = {name for name in set(networks) if packs_unasked(name)}
    unasked |= {"dense"} if network in unasked or network == "auto" else set()
    formats = {e.get("quantize") for e in entries if e["network"] not in unasked}
    formats.discard(None)
    quantize = None if not formats else formats.pop() if len(formats) == 1 else "auto"
    embedding = (plan.embedding or {}).get("kind", "dense")
    return What(network, plan.metric, quantize, embedding)


def one_of_its_own(plan: Plan, name: str, itemsize: int = 2) -> dict:
    """An entry that is none of the board's options, with its sizes (`parameters` in numbers of 16 bits)."""
    spec = plan.spec(name)
    return {
        "entry": dict(plan.weights[name]),
        "chi": 1,
        "parameters": spec.bytes(2) / 2,
        "bytes": spec.bytes(itemsize),
        "multiply_adds": spec.multiply_adds(1),
    }


def placed(draft: Draft, plan: Plan, found) -> Draft:
    """A draft of listed options (see measured.py) with every weight at the option that is its entry in the plan, or
    with an entry of its own. Weights that share cores and are not all at one option have each their own."""
    chi, special, groups = {}, {}, {}
    itemsize = {row["name"]: row["bytes_per_parameter"] for row in found.rows}
    for row in found.rows:
        groups.setdefault(row.get("group") or row["name"], []).append(row["name"])
    for names in groups.values():
        fitting = [found.choices.of_entry(name, plan.weights.get(name, DENSE)) for name in names]
        if common := set.intersection(*fitting):
            chi |= dict.fromkeys(names, min(common))
            continue
        for name in names:
            chi[name] = 0
            if plan.spec(name) is not None:
                special[name], chi[name] = one_of_its_own(plan, name, itemsize[name]), 1
    return replace(draft, chi=chi, special=special)


def from_plan(plan: Plan, checkpoint, name: str) -> Draft:
    """A plan of this checkpoint as a draft (`placed` puts listed options where they belong). Raises InputError where it
    is not this checkpoint's (see Plan.check)."""
    check(plan, checkpoint)
    what = made_of(plan, checkpoint)
    shapes = {weight.name: tuple(weight.shape) for weight in checkpoint.weights}
    chi = {weight: 0 for weight in plan.weights}
    special = {}
    for weight, e in () if what.listed else plan.weights.items():
        if e["network"] == "dense" and not e.get("quantize"):
            continue
        chi[weight] = max(e["chi"], default=1)
        own = {key: e.get(key) for key in ("network", "out", "in", "chi")}
        plain = e["network"] == what.network and not e.get("quantize")
        if not plain or own != {key: entry(what.network, shapes[weight], chi[weight]).get(key) for key in own}:
            special[weight] = one_of_its_own(plan, weight) | {"chi": chi[weight]}
    unit = "bytes" if plan.budget_bytes is not None else "parameters"
    return Draft(
        network=what.network,
        metric=plan.metric,
        quantize=what.quantize,
        embedding=what.embedding,
        rule=plan.chosen_rule or plan.rule,
        chi=chi,
        unit=unit,
        scope=plan.scope,
        budget=plan.budget if unit == "parameters" else plan.budget_bytes,
        locked=tuple(weight for weight, e in plan.weights.items() if e.get("locked")),
        hand=tuple(weight for weight, e in plan.weights.items() if e.get("by") == "hand"),
        special=special,
        prefix=plan.prefix or "dense",
        origin={
            "name": name,
            "rule": plan.rule,
            "chosen_rule": plan.chosen_rule,
            "predicted": plan.predicted,
            "tried": plan.tried,
            "rounding": plan.rounding,
        },
    )


# ---- kept on disk, so that a reload of the page loses nothing ---------------------------------------------------


def _folder():
    return Workspace().root / "drafts"


def keep(draft: Draft, fingerprint: str, draft_id: str | None) -> str:
    """Writes the draft to the workspace under its id (a new one for None) and returns the id."""
    draft_id = draft_id if draft_id and DRAFT_ID.fullmatch(draft_id) else new_id()
    write_json(_folder() / f"{draft_id}.json", {"fingerprint": fingerprint} | asdict(draft))
    files = sorted(_folder().glob("*.json"), key=lambda file: file.stat().st_mtime)
    for file in files[:-MOST_DRAFTS]:
        file.unlink(missing_ok=True)
    return draft_id


def kept(draft_id: str, fingerprint: str) -> Draft | None:
    """The draft of that id if it is of this model; None for anything else (ids come from URLs)."""
    if not DRAFT_ID.fullmatch(draft_id):
        return None
    try:
        document = schemas.read(_folder() / f"{draft_id}.json", "draft")
    except InputError:
        return None
    if document.pop("fingerprint") != fingerprint:
        return None
    return Draft(**document | {key: tuple(document[key]) for key in ("locked", "hand")})
