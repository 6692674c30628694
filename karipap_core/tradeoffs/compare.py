"""Two plans, runs, compressed folders or models side by side: each weight, each figure, and what they write."""

import math
from dataclasses import replace
from pathlib import Path

from karipap_core.checkpoint.roles import listing_key, place, role_of
from karipap_core.evaluation import scores
from karipap_core.plan.calibration import Calibration
from karipap_core.plan.document import Plan
from karipap_core.statistics import bootstrap as uncertainty
from karipap_core.statistics.pareto import known
from karipap_core.tradeoffs.sides import Side, read
from karipap_core.workspace.kept import kept_json

FORMAT, VERSION = "karipap-comparison", 1

# (key, label, whether more is better; None: neither)
FIGURES = (
    ("kept", "parameters kept", None),
    ("bytes_kept", "bytes kept", None),
    ("predicted_rise", "predicted rise, nats a token", None),
    ("rise", "rise in loss, nats a token", False),
    ("loss", "loss, nats a token", False),
    ("perplexity", "perplexity", False),
    ("bits_per_byte", "bits per byte", False),
    ("kl", "KL to dense, nats a token", False),
    ("top1_agreement", "top-1 agreement", True),
    ("relative_error", "output error", False),
    ("decode_ms", "decode, ms a token", False),
    ("prefill", "prefill, tokens a second", True),
    ("disk_bytes", "on disk, bytes", False),
)


def compare(a: str | Path | Side, b: str | Path | Side) -> dict:
    """Both sides as one document:

    {"format", "version", "a" and "b": {"name", "kind", "model", "fingerprint"}, "same_model", "layers": [{"name",
    "layer", "role", "same", "a" and "b": {"network", "chi", "quantize", "parameters", "bytes", "damage",
    "weight_error", "functional_error"} | None}], "totals": {"a" and "b": the sums over the rows, "changed": how many
    differ}, "metrics": [{"key", "label", "a", "b", "difference" (b − a), "low", "high", "measurable", "a_low",
    "a_high", "b_low", "b_high", "better": "a" | "b" | None}], "prompts": [{"prompt", "dense", "a", "b", "kl_a",
    "kl_b"}], "notes"}.

    bytes: 2 for each number that is not quantized. damage: predicted divergence of that weight alone, nats a token,
    where the workspace holds the model's calibration. An interval of a difference is paired where both were measured
    on the same tokens (`bootstrap.difference`); one that holds 0 is no measurable difference, and then neither is
    better.
    """
    one, two = (side if isinstance(side, Side) else read(side) for side in (a, b))
    notes: list[str] = []
    same = bool(one.model.get("fingerprint")) and one.model.get("fingerprint") == two.model.get("fingerprint")
    if not same:
        notes.append("Two different models: weights are matched by name, and no difference is paired.")
    layers = _layers(one, two, same)
    metrics = _metrics(one, two, same, notes)
    prompts = _prompts(one, two, notes)
    totals = {
        side: {key: sum(row[side][key] or 0 for row in layers if row[side]) for key in ("parameters", "bytes")}
        for side in "ab"
    }
    for side, key in (("a", one), ("b", two)):
        damages = [row[side]["damage"] for row in layers if row[side]]
        totals[side]["damage"] = sum(damages) if damages and None not in damages else None
        if warning := key.point.get("text_warning"):
            notes.append(f"{key.name}: {warning}")
        if key.kind == "plan" and not any(known(key.point, name) for name in ("loss", "rise")):
            notes.append(f"{key.name} is a plan: what it loses is predicted, not measured.")
    return {
        "format": FORMAT,
        "version": VERSION,
        **{
            side: {
                "name": each.name,
                "kind": each.kind,
                "model": each.model.get("name"),
                "fingerprint": each.model.get("fingerprint"),
            }
            for side, each in (("a", one), ("b", two))
        },
        "same_model": same,
        "layers": layers,
        "totals": totals | {"changed": sum(not row["same"] for row in layers)},
        "metrics": metrics,
        "prompts": prompts,
        "notes": notes,
    }


# Weight by weight.


def _layers(one: Side, two: Side, same: bool) -> list[dict]:
    names = {name for side in (one, two) for name in (side.plan.weights if side.plan else side.shapes)}
    shapes = two.shapes | one.shapes
    for side in (one, two):
        if side.plan is None:
            continue
        for name in side.plan.weights:
            if (spec := side.plan.spec(name)) is not None:
                shapes.setdefault(name, (spec.n_out, spec.n_in))
    lost = [damages(side.plan) if side.plan else {} for side in (one, two)]
    mixture = any(".experts." in name for name in names)
    rows = []
    for name in names:
        layer, expert = place(name)
        role = role_of(name, mixture)
        cells = [_cell(side, name, shapes, damage, same) for side, damage in zip((one, two), lost, strict=True)]
        ours, theirs = cells
        same_kind = ours and theirs and all(ours[key] == theirs[key] for key in ("network", "chi", "quantize"))
        row = {"name": name, "layer": layer, "role": role, "same": bool(same_kind), "a": ours, "b": theirs}
        rows.append((listing_key(name, layer, expert, role), row))
    return [row for _, row in sorted(rows, key=lambda pair: pair[0])]


def _cell(side: Side, name: str, shapes: dict, damage: dict, same: bool) -> dict | None:
    """What a side makes of one weight; None where the side's model is another one and does not name the weight."""
    if not same and name not in (side.plan.weights if side.plan else side.shapes):
        return None
    spec = side.plan.spec(name) if side.plan and name in side.plan.weights else None
    row = side.rows.get(name) or {}
    errors = {key: row.get(key) for key in ("weight_error", "functional_error")}
    if spec is None:
        shape = shapes.get(name)
        size = math.prod(shape) if shape else None
        return {
            "network": "dense",
            "chi": [],
            "quantize": None,
            "parameters": size,
            "bytes": size and 2 * size,
            "damage": 0.0,
            **{key: value or 0.0 for key, value in errors.items()},
        }
    return {
        "network": spec.network,
        "chi": list(spec.chi),
        "quantize": spec.quantize,
        "parameters": spec.parameters,
        "bytes": int(spec.bytes(2)),
        "damage": damage.get(name),
        **errors,
    }


def damages(plan: Plan) -> dict[str, float]:
    """Predicted divergence of each compressed weight alone, nats a token, from the calibration and curves that the
    workspace holds for the plan's model and text; {} where it holds none. Nothing is computed anew."""
    from karipap_core.plan.curves import load_curves
    from karipap_core.plan.kind import Kind, own_options
    from karipap_core.plan.predictions import calibration_file

    if (file := calibration_file(plan)) is None:
        return {}
    key = file.stem.removeprefix(f"{plan.metric}-")
    if (measured := kept_json(file, "calibration")) is None:
        return {}
    calibration, tables, found = Calibration.from_json(measured), {}, {}
    for name in plan.weights:
        spec = plan.spec(name)
        if spec is None or name not in calibration.levels:
            continue
        kind = Kind(spec.network, spec.quantize, own_options(spec))
        what = f"{kind.label.replace(' ', '-')}-{plan.metric}-{'none' if plan.metric == 'weight' else key}"
        if what not in tables:
            curves = file.parents[1] / "curves" / f"{what}.safetensors"
            tables[what] = load_curves(curves) or {}
        table = tables[what]
        curve = table.get(name) if isinstance(table, dict) else None
        if curve is not None:
            found[name] = float(calibration.damage(name, curve.at(max(spec.chi, default=0))))
    return found


# Figure by figure.


def _metrics(one: Side, two: Side, same: bool, notes: list[str]) -> list[dict]:
    ours, theirs = uncertainty.rise_of(one.point), uncertainty.rise_of(two.point)
    paired = uncertainty.difference(one.point, two.point) if same else None
    for side, other in ((one, two), (two, one)):
        if same and side.kind == "model" and other.point.get("dense"):  # what was measured beside the other
            side.point = other.point["dense"] | side.point
            paired = theirs if side is one else ours and replace(ours, mean=-ours.mean, low=-ours.high, high=-ours.low)
    if same and paired is None and all(known(side.point, "loss") for side in (one, two)):
        if "model" in (one.kind, two.kind):
            notes.append("No interval: the run was measured before documents were kept. Measure it again.")
        elif not _same_text(one.point, two.point):
            notes.append(
                "The two were measured on different text or in different windows: their figures do not compare."
            )
        else:
            notes.append(
                "No paired interval: one of the two was measured before documents were kept. Measure it again."
            )
    rows = []
    for key, label, more in FIGURES:
        a, b = (side.point[key] if known(side.point, key) else None for side in (one, two))
        if a is None and b is None:
            continue
        row = _row(key, label, a, b, more)
        if key in ("loss", "rise") and paired is not None:
            row |= {"low": paired.low, "high": paired.high, "measurable": paired.measurable}
        if key == "rise":
            row |= _bounds("a", ours) | _bounds("b", theirs)
        rows.append(row)
    for row in rows:  # a difference of figures that stand on the same losses is not better where the loss is not
        if (
            paired is not None
            and not paired.measurable
            and row["key"] in ("loss", "rise", "perplexity", "bits_per_byte")
        ):
            row["better"] = None
    return rows + _tasks(one.point, two.point)


def _row(key: str, label: str, a, b, more: bool | None) -> dict:
    difference = None if a is None or b is None else b - a
    better = None if not difference or more is None else "b" if (difference > 0) == more else "a"
    empty = dict.fromkeys(("low", "high", "measurable", "a_low", "a_high", "b_low", "b_high"))
    return {"key": key, "label": label, "a": a, "b": b, "difference": difference, **empty, "better": better}


def _bounds(side: str, interval) -> dict:
    return {} if interval is None else {f"{side}_low": interval.low, f"{side}_high": interval.high}


def _tasks(one: dict, two: dict) -> list[dict]:
    """Scores of benchmark tasks with their intervals; the difference of two is paired over the items where both kept
    them, else as if they were independent, which is too wide (`scores.difference`)."""
    rows = []
    for key, more in scores.keys((one, two)).items():
        held = [scores.of(point, key) for point in (one, two)]
        a, b = (found and found[0][found[1]] for found in held)
        row = _row(key, key, a, b, more)
        for side, point in zip("ab", (one, two), strict=True):
            low, high = scores.interval(point, key) or (None, None)
            row |= {f"{side}_low": low, f"{side}_high": high}
        between = scores.difference(one, two, key)
        if between is not None:
            row |= {"low": between.low, "high": between.high, "measurable": between.measurable}
            row["better"] = row["better"] if between.measurable else None
        elif a is not None and b is not None:  # other items, or other shots: the two do not compare
            row |= {"difference": None, "better": None}
        rows.append(row)
    return rows


def _same_text(one: dict, two: dict) -> bool:
    text = [(point.get("text") or {}).get("sha256") for point in (one, two)]
    return text[0] == text[1] and all(one.get(key) == two.get(key) for key in ("window", "stride", "tokens"))


def _prompts(one: Side, two: Side, notes: list[str]) -> list[dict]:
    """The prompts that both shadow runs hold, what each wrote; of one side alone where the other has no shadow run."""
    found = [{row["prompt"]: row for row in (side.shadow or {}).get("prompts", ())} for side in (one, two)]
    if one.shadow and two.shadow and not found[0].keys() & found[1].keys():
        notes.append("The two shadow runs share no prompt.")
    rows = []
    for prompt in dict.fromkeys([*found[0], *found[1]]):
        a, b = (each.get(prompt) for each in found)
        if one.shadow and two.shadow and None in (a, b):
            continue
        rows.append(
            {
                "prompt": prompt,
                "dense": (a or b or {}).get("dense"),
                "a": a and a["compressed"],
                "b": b and b["compressed"],
                "kl_a": a and a.get("kl"),
                "kl_b": b and b.get("kl"),
            }
        )
    return rows


# In words.


def verdict(document: dict) -> str:
    """One sentence on which of the two is better, or that nothing tells."""
    rows = {row["key"]: row for row in document["metrics"]}
    size, loss = rows.get("bytes_kept"), rows.get("loss") or rows.get("rise")
    words = ""
    if size and None not in (size["a"], size["b"]):
        words = f"A keeps {size['a']:.1%} of the bytes, B {size['b']:.1%}. "
    if loss is None or loss["difference"] is None:
        predicted = rows.get("predicted_rise")
        if predicted and predicted["difference"] is not None:
            a, b = predicted["a"], predicted["b"]
            return f"{words}The predicted rise in loss is {a:.4f} nats a token for A and {b:.4f} for B."
        return f"{words}No figure of quality is known of both."
    if loss["low"] is None:
        return f"{words}The loss of B is {loss['difference']:+z.4f} nats a token beside A's, without an interval."
    span = f"95 % interval {loss['low']:+z.4f} to {loss['high']:+z.4f}"
    if not loss["measurable"]:
        return f"{words}There is no measurable difference in loss ({span} nats a token)."
    return f"{words}The loss of B is {abs(loss['difference']):.4f} nats a token " + (
        f"{'above' if loss['difference'] > 0 else 'below'} A's ({span})."
    )
