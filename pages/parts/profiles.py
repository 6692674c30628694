"""Which profile of a model is in view: one of the workspace's, or one that is being made."""

from pathlib import Path

import streamlit as st

from karipap_core.errors import InputError
from karipap_core.plan.calibration import Calibration
from karipap_core.plan.document import is_of
from karipap_core.profiles.document import Profile
from karipap_core.workspace import Workspace
from pages.parts import common, job, texts

LARGE = 4_000_000_000  # bytes of a model above which a profile is not started unasked: it takes minutes


@st.cache_resource(max_entries=8, show_spinner=False)
def loaded(folder: str, stamp: int) -> Profile:
    """The profile in a folder; shared by all sessions and never changed. `stamp` is the file's time."""
    return Profile.load(folder)


BARE = (
    "This profile came without its singular values: drop the spectra.safetensors that lies beside its profile.json, "
    "together with it, for spectra, χ and the board."
)
CUTS = {
    "mpo": "The spectrum across every bond of each weight's matrix product operator.",
    "tree": "The entropy of every edge of a tree over the layers of one role: what the layers share, and what each has "
    "of its own.",
    "peps": "The entropy of every bond of each weight's lattice, across it and down it.",
}


def _load(folder: Path) -> Profile:
    return loaded(str(folder), (folder / "profile.json").stat().st_mtime_ns)


def folders(view) -> list[Path]:
    """The workspace's finished profiles of a model."""
    own = Workspace().model_dir(view.checkpoint.key) / "profiles"
    candidates = [folder.parent for folder in own.glob("*/profile.json")]
    found = []
    for folder in candidates:
        try:
            profile = _load(folder)
            first = profile.weights[0]
            if not (view.only and profile.bare):
                profile.sigma(first["name"], next(iter(first["spectra"])))  # the spectra must be readable too
            if is_of(profile.document, view.checkpoint):
                found.append(folder)
        except (InputError, LookupError):
            continue
    return found


def _worth(folder: Path) -> tuple:
    settings = _load(folder).settings
    return len(settings["metrics"]), settings["network"] is not None, (folder / "profile.json").stat().st_mtime


def current(view) -> Profile | None:
    """The profile to show: the chosen one, else the one that knows most. Starts making one where there is none, and
    shows its progress; None until it is there."""
    with common.plain_errors("reading the profile"):
        found = folders(view)
        follow(view, bool(found))
        if not found:
            return None
        names = {folder.name: folder for folder in found}
        wanted = st.session_state.get("profile")
        return _load(names[wanted] if wanted in names else max(found, key=_worth))


def follow(view, have: bool) -> None:
    """The job that makes a profile: shown while it runs, started unasked where the model has none at all."""
    if view.only in ("profile", "config"):  # what was given is all that there is
        return
    running = job.followed("profile_job")
    plain = ["profile", view.source, "--metrics", "weight"]
    if running is None and not have:
        running = job.latest(plain)
        if running is not None and running.status()["state"] == "done":
            _look_again(view)
            running = None
        if running is None:
            if view.checkpoint.bytes > LARGE:
                st.info(f"This model has no profile yet, and it is large ({common.size(view.checkpoint.bytes)}).")
                if not st.button("Profile it", type="primary", key="profile_it"):
                    return
            job.start(plain, f"Profile {view.checkpoint.name}", "profile_job")
            running = job.followed("profile_job")
    if running is None:
        return
    if running.status()["state"] == "done":
        if have:
            job.forget("profile_job")
            return
        _look_again(view)
    job.panel(running, "profile_job")


def _look_again(view) -> None:
    """Draws the page anew where the job has ended since the profiles were looked for."""
    if folders(view):
        st.rerun()


def no_board(view) -> str:
    """Why the χ board cannot be drawn: of a model whose weights are not here it needs singular values, and an adapter's
    update is no model; "" where it can."""
    if view.only is None:
        return ""
    if view.only in ("config", "update"):
        return view.checkpoint.missing
    return "" if any(not _load(folder).bare for folder in folders(view)) else BARE


def with_network(view, network: str, metric: str) -> Profile | None:
    """The newest profile with the entropies of this network's cuts, under this metric where there is one."""
    found = [profile for folder in folders(view) if (profile := _load(folder)).settings["network"] == network]
    made = {profile.folder: (profile.folder / "profile.json").stat().st_mtime for profile in found}
    return max(found, key=lambda p: (metric in p.settings["metrics"], made[p.folder]), default=None)


def measure_cuts(view, network: str) -> None:
    """Offers to make a profile with the entropies of a network's cuts."""
    st.caption(CUTS[network])
    if view.only:
        st.info(common.plain(view.checkpoint.missing))
        return
    if st.button("Compute it", key=f"cuts_{network}", icon=":material/calculate:"):
        job.start(
            ["profile", view.source, "--metrics", "weight", "--network", network],
            f"Profile {view.checkpoint.name}, {network}",
            "profile_job",
        )
        st.rerun()


def settings(view, profile: Profile) -> None:
    """A popover: which of several profiles, and making one that looks at text."""
    alone = profile.settings["metrics"] == ["weight"] and view.only != "update"
    label = "Look at text too" if alone else "Spectra"
    with st.popover(label, icon=":material/settings:", key="k-spectra"):
        found = {folder.name: folder for folder in folders(view)}
        if len(found) > 1:
            st.session_state.setdefault("profile", max(found.values(), key=_worth).name)
            st.selectbox("Profile", list(found), key="profile", format_func=lambda name: describe(_load(found[name])))
        else:
            st.caption(f"This profile: {common.plain(describe(profile))}.")
        if view.only:
            st.caption(common.plain(view.checkpoint.missing))
            return
        st.markdown("**Look at text too**")
        st.caption(
            "Adds spectra under two more metrics, the layers' outputs and the loss on text, and those of every cut of "
            "a network. Takes forward and backward passes over the calibration text."
        )
        network = st.segmented_control(
            "Cuts of",
            list(CUTS),
            default="mpo",
            required=True,
            key="cuts_of",
            format_func={"mpo": "MPO", "tree": "tree", "peps": "PEPS"}.get,
        )
        chosen = texts.choose("profile", "calibration")
        seen = texts.images(view, "profile")
        if st.button(texts.label("Measure", chosen), key="measure", disabled=chosen is None):
            argv = [
                "profile",
                view.source,
                "--metrics",
                "weight,functional,loss",
                "--network",
                network,
                *(chosen or []),
                *seen,
            ]
            st.session_state.pop("profile", None)
            job.start(argv, f"Profile {view.checkpoint.name} on text", "profile_job")
            st.rerun()


def describe(profile: Profile) -> str:
    """A profile's settings in a few words."""
    kept = profile.settings
    words = ", ".join(kept["metrics"]) + (f", {kept['network']} bonds" if kept["network"] else "")
    seen = f" and {kept['images']['count']} images of {kept['images']['name']}" if kept.get("images") else ""
    return f"{words}, on {kept['text']}{seen}" if kept.get("text") else words


def made(profile: Profile) -> str:
    """How a profile was made: settings, device, versions, seconds."""
    document = profile.document
    versions = ", ".join(f"{name} {version}" for name, version in document.get("versions", {}).items())
    return (
        f"{describe(profile)}; on {document.get('device', 'an unknown device')} in "
        f"{common.seconds(document.get('seconds'))} with {versions}. Fingerprint {profile.fingerprint}."
    )


# ---- measured sensitivity ---------------------------------------------------------------------------------------


def calibration(view) -> Calibration | None:
    """The newest calibration of a model in the workspace, or None."""
    folder = Workspace().model_dir(view.checkpoint.key) / "calibration"
    files = sorted(
        set(folder.glob("*.json")) - set(folder.glob("*.partial.json")), key=lambda file: file.stat().st_mtime
    )
    for file in reversed(files):
        try:
            return Calibration.load(file)
        except (InputError, TypeError):
            continue
    return None


def damages(view, level: float) -> dict[str, float]:
    """Weight name → measured damage when it alone is cut to `level` of its break-even χ."""
    known = calibration(view)
    shapes = {weight.name: weight.shape for weight in view.checkpoint.weights}
    found = {}
    for name, rows in (known.levels if known else {}).items():
        if name in shapes and rows:
            n_out, n_in = shapes[name]
            target = level * n_out * n_in / (n_out + n_in)
            found[name] = min(rows, key=lambda row: abs(row[0] - target))[2]
    return found


def sensitivity_says(view, level: float) -> str:
    """What was measured, on what."""
    known = calibration(view)
    what = "nats of KL divergence a token" if known.measure == "kl" else "relative error of the outputs"
    how = "Measured" if known.gradients is None else "Estimated from gradients, on a scale that a few measured cuts set"
    return (
        f"{how}: how far the model's outputs move ({what}) when this weight alone is cut to {level:.0%} of its "
        f"break-even χ under the metric {known.metric}, on {known.text.get('text', 'calibration text')}, "
        f"{known.tokens:,} tokens. Colours run by decades."
    )
