"""What a plan's `predicted` fields come from, and how that is put in words."""

from karipap_core.plan.checks import BEYOND

CURVE = "curve"
# In place of the curve, where the very plan was measured:
ITSELF = "this plan on calibration text"
BEHIND_DENSE = "this plan on calibration text, behind the dense model"


def measured(predicted: dict) -> bool:
    """Whether the rise of these fields was measured of the very plan, and not read off the curve."""
    return predicted.get("source", CURVE) != CURVE


def words(predicted: dict) -> str:
    """How a prediction was made and how far such predictions were off, from a plan's `predicted` fields, as in
    "predicted with calibration v3 (5 plans checked), usually within ±12%"."""
    if measured(predicted):
        behind = ", its weights fitted behind the dense model" if predicted["source"] == BEHIND_DENSE else ""
        return f"measured on calibration text with this very plan{behind}"
    if predicted.get("beyond"):
        return f"{BEYOND}: more is cut than in any plan that was measured"
    version, checked, error = (predicted.get(key) for key in ("fit", "checked", "error"))
    said = "predicted" if version is None else f"predicted with calibration v{version}"
    if checked == 0:
        tried = "" if error is None else f", within ±{error:.0%} on the plans that were measured for it"
        return f"{said}{tried} (no run has checked it yet)"
    if checked is not None:
        said += f" ({checked} {'plan' if checked == 1 else 'plans'} checked)"
    return said if error is None else f"{said}, usually within ±{error:.0%}"
