"""Taking a run home: its folder as a ZIP file, what loads it, its plan and report, and what other engines load."""

import html
import json
from importlib import metadata
from pathlib import Path

import streamlit as st

from karipap_core.checkpoint.kinds import loader_of
from karipap_core.compressed import archive, records
from karipap_core.errors import InputError
from karipap_core.plan.document import Plan
from karipap_core.workspace import Workspace
from pages.parts import common, exports, job, naming


def folder_of(run: dict, what: str = "model") -> Path | None:
    """The compressed folder of a run of this workspace, or one written from it ("dense", "export-gguf"); None where it
    is not there. Where a document says that it lies does not count."""
    folder = Workspace().runs_dir / run["id"] / what
    return folder if any((folder / name).is_file() for name in ("config.json", archive.EXPORTED)) else None


def page(view, run: dict) -> None:
    """Everything that can be carried away of a run."""
    st.subheader("Take it home", anchor=False)
    folder = folder_of(run)
    left, right = st.columns(2, gap="large")
    with left:
        if folder is None:
            st.html(
                '<p class="k-note">The compressed folder is not in this workspace any more: run the plan again.</p>'
            )
        else:
            zipped(run, "model", "Download the model")
        with st.container(horizontal=True, gap="small"):
            plan(run)
            report(view, run)
        if folder is not None:
            verdict(view, folder)
            exports.section(run, folder, zipped)
    with right:
        if folder is not None:
            lines(view, folder)


def zipped(run: dict, what: str, label: str) -> None:
    """A link to the archive of a folder, its size said first: it is sent from the disk, however large."""
    files = archive.members(folder_of(run, what), what)
    size = common.size(archive.size(files))
    st.html(
        f'<p class="k-take"><span>{size}, {len(files)} files, stored as they are.</span>'
        f'<a class="k-download" href="take-home/{html.escape(run["id"])}/{what}.zip" download>'
        f"{label} (ZIP, {size})</a></p>"
    )


def plan(run: dict) -> None:
    if not run.get("plan"):
        return
    found = Plan.from_json(run["plan"], run["id"])
    found.name = run.get("name")
    st.download_button(
        "Its plan",
        lambda: json.dumps(found.named(), indent=1),
        f"{found.called}.plan.json",
        "application/json",
        key="export",
        on_click="ignore",
        icon=":material/download:",
    )


def report(view, run: dict) -> None:
    """The report of this run alone, made when it is asked for."""

    def written() -> str:
        from karipap_core.reports.html import page as whole
        from karipap_core.reports.report import describe, profile_of

        try:
            return whole(describe([run]), profile_of(run["model"]))
        except InputError as error:
            return f"<!DOCTYPE html><title>No report</title><p>{html.escape(str(error))}</p>"

    own = run.get("name") or f"{view.checkpoint.name}-{run['id']}"
    st.download_button(
        "Its report",
        written,
        f"{naming.file_name(own, 'report')}.html",
        "text/html",
        key="run_report",
        on_click="ignore",
        icon=":material/description:",
        help="One HTML file of 5 MB that opens without a network: figures, plan, hashes, commands to measure it.",
    )


def verdict(view, folder: Path) -> None:
    """Whether the folder was found to be what its plan says, and the button that looks again."""
    found = records.read(folder, "verify")
    checks = found["result"]["checks"] if found else []
    good = sum(check["ok"] is True for check in checks)
    if not found:
        said = "It was not verified yet."
    elif found["result"]["ok"]:
        said = f"Verified when it was written: {good} checks passed, against its plan and the dense model."
    else:
        wrong = next((check["detail"] for check in checks if check["ok"] is False), "")
        said = f"Not what its plan says: {wrong}"
    with st.container(horizontal=True, vertical_alignment="center", gap="small"):
        st.html(f'<p class="k-note">{html.escape(said)}</p>')
        if st.button("Verify again", key="verify", type="tertiary", icon=":material/verified:"):
            job.start(["verify", str(folder), "--against", view.source], f"Verify {view.checkpoint.name}", "take_job")
            st.rerun()


def lines(view, folder: Path) -> None:
    """Where it lies, and the lines that load it from anywhere in this environment."""
    st.markdown("**On this machine**")
    st.code(str(folder), language=None, wrap_lines=True)
    st.markdown("**Load it, from any folder**")
    st.code(
        archive.two_lines(folder, loader_of(view.checkpoint.config, view.checkpoint.kind)),
        language="python",
        wrap_lines=True,
    )
    if not installed():
        st.caption("Karipap is not installed in this environment yet. Once, in a terminal:")
        st.code(f"pip install -e {common.ROOT}", language="bash", wrap_lines=True)


def installed() -> bool:
    """Whether `import karipap_core` works from any folder, or only from the one that this server was started in."""
    try:
        return bool(metadata.version("karipap"))
    except metadata.PackageNotFoundError:
        return False
