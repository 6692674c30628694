"""The Plan page's part of a session: the history of drafts, where the first comes from, and what changes it."""

from dataclasses import replace

import streamlit as st

from karipap_core.errors import InputError
from karipap_core.plan.budget import towers
from karipap_core.plan.document import Plan
from karipap_core.plan.kind import PREFIXES
from karipap_core.workspace import Workspace
from pages.parts import chi_board, draft, tables
from pages.parts.roots import showable

NETWORK_SAYS = {
    "lowrank": "low-rank",
    "mpo": "MPO",
    "qlr": "quantized + low-rank",
    "peps": "PEPS",
    "disentangled": "disentangled",
    "tree": "tree",
    "auto": "auto: what pays",
}
START_AT = (0.7, 0.8, 0.9, 0.95, 1.0)  # kept fractions to begin with: the first that this model can meet


def state() -> dict:
    """This session's part of the page: fingerprint, history, draft_id, opened (name of the plan), error."""
    return st.session_state.setdefault("plan_board", {})


def opened(view) -> draft.History | None:
    """The history of the model in view: this session's, else the plan or the draft that the URL names, else a new one
    by the best rule that can be looked up. None where nothing was measured yet."""
    mine = state()
    fingerprint = view.checkpoint.fingerprint
    if mine.get("fingerprint") != fingerprint:
        mine.clear()
        mine["fingerprint"] = fingerprint
    mine.pop("gone", None)
    asked = st.query_params.get("plan")
    if asked and asked != mine.get("opened"):
        try:
            plan = Plan.load(Workspace().find_plan(asked))
        except InputError as error:
            mine["gone"] = f"The plan {showable(asked)} cannot be had: {error}"
            return None
        mine["opened"] = asked
        try:
            open_plan(view, plan, asked)
        except InputError as error:
            mine["error"] = str(error)
    if "history" not in mine:
        asked = st.query_params.get("draft", "")
        begun = draft.kept(asked, fingerprint)
        if asked and begun is None:
            mine["gone"] = f"The draft {showable(asked)} is gone, or is of another model."
            return None
        if begun is None or tables.of(view, begun) is None:
            begun = begin(view)
        else:  # shown under its address until the first change: then it is this session's own
            mine["draft_id"], mine["kept"], mine["lent"] = asked, begun, True
        if begun is None:
            return None
        mine["history"] = draft.History([begun])
    return mine["history"]


def without() -> None:
    """Goes on without the plan or the draft that the URL asks for and that is not there."""
    state().pop("gone", None)
    for name in ("plan", "draft"):
        st.query_params.pop(name, None)


def begin(view) -> draft.Draft | None:
    """A draft by the URL's settings, as far as they make sense here, else by the best there is."""
    given = st.query_params
    network = given.get("network") if given.get("network") in tables.networks() else "lowrank"
    metrics = tables.metrics(view, network)
    if not metrics and network != "lowrank":
        network, metrics = "lowrank", tables.metrics(view, "lowrank")
    if not metrics:
        return None
    # The best one: whose damages were measured, since what was waited for should not be out of sight.
    best = [each for each in metrics if tables.sources(view, tables.What(network, each)).calibration] or metrics
    metric = given.get("metric") if given.get("metric") in metrics else best[-1]
    stored = given.get("quantize") if given.get("quantize") in tables.FORMATS[1:] else None
    what = tables.What(network, metric, stored, given.get("embedding", "dense"))
    if what.embedding not in tables.EMBEDDINGS or not tables.available(view, what):
        what = tables.What(network, metric)
    unit = given.get("unit") if given.get("unit") in chi_board.UNITS else "parameters"
    scope = given.get("scope") if given.get("scope") in scopes(view) else "model"
    prefix = given.get("prefix") if given.get("prefix") in PREFIXES else PREFIXES[0]
    found = tables.tables(view, what, given.get("rule"), {}, unit, scope, prefix)
    if found is None:  # no weight of that tower can be cut by this rule
        scope, found = "model", tables.tables(view, what, given.get("rule"), {}, unit, prefix=prefix)
    try:
        asked = (float(given.get("budget", "nan")),)
    except ValueError:
        asked = ()
    for budget in (*(b for b in asked if 0 < b <= 1), *START_AT):
        try:
            chi = tables.choose(found, budget, unit, scope, {}, ())
        except InputError:
            continue
        more = {"quantize": what.quantize, "embedding": what.embedding, "prefix": prefix}
        return draft.Draft(network, metric, found.rule, chi, unit, scope, budget, **more)
    return None


def open_plan(view, plan: Plan, name: str, what: tables.What | None = None) -> None:
    """Puts a plan on the board, as one step that can be undone. Raises InputError where it does not fit. what: what the
    plan was made of, where that is known better than from its entries."""
    mine = state()
    new = draft.from_plan(plan, view.checkpoint, name)
    if what is not None and what.listed:
        new = replace(new, network=what.network, quantize=what.quantize, embedding=what.embedding, special={})
    elif new.quantize and not tables.available(view, new.what):  # a plan of `auto` may have come to one format
        new = replace(new, quantize="auto")
    found = tables.of(view, new)
    if found is not None and found.choices:
        new = draft.placed(new, plan, found)
        found = tables.of(view, new)
    if found is None:
        known = tables.metrics(view, new.network) or tables.metrics(view, "lowrank")
        raise InputError(
            f"This plan is {says(new.what)} under the metric {new.metric}, for which nothing was measured on this "
            f"machine yet (there is: {', '.join(known) or 'nothing'}). Measure it below, then open the plan again."
        )
    new = new.with_chi({name: new.chi.get(name, 0) for name in found.names})
    if new.budget is None:
        key = budget_key(new)
        new = replace(new, budget=chi_board.totals(found.rows, found.model, new.chi)[key])
    if "history" in mine:
        mine["history"].push(new)
    else:
        mine["history"] = draft.History([new])


def scopes(view) -> tuple[str, ...]:
    """What a budget may count: the whole model, its blocks, or one of its towers where it has several."""
    return (*chi_board.SCOPES, *towers(view.checkpoint))


def budget_key(now: draft.Draft) -> str:
    return ("bytes_kept" if now.unit == "bytes" else "kept") + ("" if now.scope == "model" else "_blocks")


def rework(view, **changes) -> None:
    """The draft with another network, metric, rule, unit, scope or prefix: allocated anew at the same size, around what
    is locked or was set by hand as far as that can be kept (`draft.carried`)."""
    mine = state()
    history = mine["history"]
    now = history.now
    new = replace(now, origin=None, **changes)
    if set(changes) == {"prefix"}:  # what every weight becomes stays as it is
        history.push(new)
        return
    if new.what != now.what and not tables.available(view, new.what):
        mine["missing"] = new.what
        return
    mine.pop("missing", None)
    before = tables.of(view, now)
    if new.what != now.what:
        new = replace(new, special={})
    if tables.of(view, new) is None:
        mine["error"] = f"No weight of {new.scope} can be cut by this rule: the calibration text reaches none."
        return
    new, dropped = draft.carried(now, new, before, tables.of(view, new))
    found = tables.of(view, new)
    budget = chi_board.totals(before.rows, before.model, now.chi)[budget_key(new)]
    try:
        chi = tables.choose(found, budget, new.unit, new.scope, new.chi, new.held)
    except InputError as error:
        mine["error"] = str(error)
        return
    history.push(replace(new, rule=found.rule, chi=chi, budget=budget))
    if dropped:
        kept = len(new.held)
        mine["said"] = (
            f"{dropped} of {dropped + kept} weights that were locked or set by hand went back to the rule: what they "
            f"were is none of the options now.{f' {kept} stay.' if kept else ''} Undo brings them back."
        )


def says(what: tables.What) -> str:
    """What plans are made of, in words."""
    words = NETWORK_SAYS.get(what.network, what.network)
    words += f", stored in {what.quantize}" if what.quantize else ""
    return words + (f", embedding {what.embedding}" if what.embedding != "dense" else "")


def reset(found: tables.Tables) -> None:
    mine = state()
    now = mine["history"].now
    budget = now.budget if now.budget is not None else 1.0
    try:
        chi = tables.choose(found, budget, now.unit, now.scope, {}, ())
    except InputError as error:
        mine["error"] = str(error)
        return
    mine["history"].push(replace(now, chi=chi, locked=(), hand=(), special={}, origin=None, rule=found.rule))


def lock_all(found: tables.Tables) -> None:
    history = state()["history"]
    history.push(replace(history.now, locked=() if history.now.locked else tuple(found.names)))


def remember(view, now: draft.Draft) -> None:
    """Keeps the draft on disk and its settings in the URL, so that the view can be reloaded and shared."""
    mine = state()
    wanted = {"network": now.network, "metric": now.metric, "rule": now.rule, "unit": now.unit, "scope": now.scope}
    wanted |= {"quantize": now.quantize} if now.quantize else {}
    wanted |= {"embedding": now.embedding} if now.embedding != "dense" else {}
    wanted |= {"prefix": now.prefix} if now.prefix != PREFIXES[0] else {}
    for key in {"quantize", "embedding", "prefix"} - wanted.keys():
        if key in st.query_params:
            del st.query_params[key]
    wanted |= {"budget": f"{now.budget:.4f}"} if now.budget is not None else {}
    wanted |= {"weight": st.session_state.weight}
    by_hand = now.hand or now.locked or now.special or now.origin
    if by_hand and mine.get("kept") is not now:
        own = None if mine.pop("lent", False) else mine.get("draft_id")
        mine["draft_id"] = draft.keep(now, view.checkpoint.fingerprint, own)
        mine["kept"] = now
    if by_hand:
        wanted["draft"] = mine["draft_id"]
    elif "draft" in st.query_params:
        del st.query_params["draft"]
    if "plan" in st.query_params and not now.origin:
        del st.query_params["plan"]
    changed = {key: value for key, value in wanted.items() if st.query_params.get(key) != value}
    if changed:
        st.query_params.update(changed)
