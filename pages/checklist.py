"""Production: whether a compressed folder is fit to be served, from evidence on disk; and both models side by side."""

import hashlib
import html
import json
import time
from pathlib import Path

import streamlit as st

from karipap_core.compressed import records
from karipap_core.deployment.checklist import OF_ITEM, checklist
from karipap_core.deployment.shadow import MAX_NEW_TOKENS
from karipap_core.errors import InputError
from karipap_core.workspace import Workspace
from karipap_core.workspace.files import write_json
from pages.parts import common, job, model, runs

TOKENS = [16, 32, 64, 128, 256]
PROMPTS = "def main():\nimport os\nclass Stack:\n"
MOST_PROMPTS, MOST_LETTERS = 64, 4000
TITLES = {"verify": "Verify", "evaluation": "Evaluate", "shadow": "Shadow run", "fallback": "Test the fallback"}


def page() -> None:
    st.html(Path(model.__file__).with_name("checklist.css"))
    view = model.current()
    common.title(
        "Production",
        "Is this compressed model fit to be served? Every item is green or red from files on disk: nothing here can be "
        "ticked by hand, and results about an earlier state of the folder do not count.",
    )
    found = folders(view)
    if not found:
        if gone := common.missing("folder", found):
            common.say_gone("compressed folder", gone)
        st.html('<p class="k-note">No compressed folder of this model yet: compress a plan first.</p>')
        st.page_link("pages/run.py", label="Compress & evaluate", icon=":material/play_circle:")
        return
    name, gone = common.asked(
        st.selectbox,
        "Compressed folder",
        list(found),
        "folder",
        next(iter(found)),
        "compressed folder",
        format_func=lambda key: found[key]["label"],
    )
    if gone:
        return
    folder = Path(found[name]["folder"])
    running = job.followed("production_job")
    if running is not None:
        job.panel(running, "production_job")
    busy = running is not None and running.status()["state"] not in job.ENDED
    with st.spinner("Looking at what is on disk …", show_time=False):
        document = checklist(folder, view.source)
    verdict(document)
    st.html(items(document))
    fixes(view, folder, document, busy)
    shadow(view, folder, busy)


def folders(view) -> dict[str, dict]:
    """Runs of the model in view whose folder is there, newest first, by id."""
    return {run["id"]: run for run in runs.with_folder(view)}


def verdict(document: dict) -> None:
    red = [item for item in document["items"] if not item["ok"]]
    if not red:
        said = "Ready: all items are green."
    else:
        said = f"Not ready: {len(red)} of {len(document['items'])} items are red. Below each stands what to run."
    st.html(f'<p class="k-verdict">{said}</p>')


def items(document: dict) -> str:
    """The items as a list; state in words, never by colour alone."""
    rows = []
    for item in document["items"]:
        state = "✓ green" if item["ok"] else "✗ red"
        fix = f"<code>{html.escape(item['fix'])}</code>" if item["fix"] else ""
        rows.append(
            f'<li class="k-{"green" if item["ok"] else "red"}"><span class="k-state">{state}</span>'
            f"<b>{html.escape(item['name'])}</b>"
            f'<span class="k-evidence">{html.escape(item["evidence"])}</span>{fix}</li>'
        )
    return f'<ul class="k-items">{"".join(rows)}</ul>'


def fixes(view, folder: Path, document: dict, busy: bool) -> None:
    """A button for each record that is missing, stale or bad and can be made anew from here."""
    red = {item["name"] for item in document["items"] if not item["ok"]}
    argv = {
        "verify": ["verify", str(folder), "--against", view.source],
        "evaluation": ["evaluate", str(folder), "--against", view.source],
        "fallback": ["checklist", str(folder), "--against", view.source, "--test-fallback"],
    }
    wanted = [kind for name, kind in OF_ITEM.items() if name in red and kind in argv]
    if not wanted:
        return
    with st.container(horizontal=True, gap="small"):
        for kind in wanted:
            if st.button(TITLES[kind], key=f"fix_{kind}", icon=":material/play_arrow:", disabled=busy):
                job.start(argv[kind], f"{TITLES[kind]}: {folder.parent.name}", "production_job")
                st.rerun()
    if busy:
        st.caption("One at a time from this page; the running one is above.")


def shadow(view, folder: Path, busy: bool) -> None:
    """Prompts to type, the button, and what came out last."""
    st.subheader("Shadow run", anchor=False)
    if not view.checkpoint.predicts:
        st.html('<p class="k-note">An encoder writes no text: it is compared by <b>Evaluate</b>.</p>')
        return
    left, right = st.columns([3, 2], gap="large", vertical_alignment="bottom")
    typed = left.text_area(
        "Prompts, one a line",
        PROMPTS,
        key="prompts",
        height=120,
        max_chars=MOST_LETTERS,
        persist_state="session",
        help="Both models continue each prompt, always with the token that they find most likely.",
    )
    prompts = [line for line in typed.splitlines() if line.strip()]
    with right:
        tokens = common.choose(
            st.select_slider,
            "Tokens to write",
            TOKENS,
            "shadow_tokens",
            MAX_NEW_TOKENS,
        )
        if len(prompts) > MOST_PROMPTS:
            st.caption(f"At most {MOST_PROMPTS} prompts from this page; the verb `shadow` takes a file of any length.")
        pressed = st.button(
            "Run both models",
            type="primary",
            key="start_shadow",
            icon=":material/compare_arrows:",
            width="stretch",
            disabled=busy or not 0 < len(prompts) <= MOST_PROMPTS,
        )
    if pressed:
        argv = ["shadow", str(folder), "--against", view.source, "--prompts", str(keep(prompts))]
        job.start([*argv, "--tokens", str(tokens)], f"Shadow run: {folder.parent.name}", "production_job")
        st.rerun()
    document = records.read(folder, "shadow")
    if document is not None:
        compared(folder, document)


def keep(prompts: list[str]) -> Path:
    """The prompts as a file of the workspace, named by its content, so that a resumed job finds them."""
    name = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:12]
    path = Workspace().root / "prompts" / f"{name}.json"
    if not path.is_file():
        write_json(path, prompts)
    return path


def compared(folder: Path, document: dict) -> None:
    """The last shadow run: its figures, and the texts side by side with what differs marked."""
    result = document["result"]
    try:
        why = records.stale(document, records.state_of(folder), records.pinned(records.settings_of(folder)))
    except InputError:
        why = "the folder's tensors cannot be read"
    when = time.strftime("%d %b %Y %H:%M", time.localtime(document["created"]))
    if why:
        st.html(f'<p class="k-note"><b>Stale</b>: {html.escape(why)}. What follows was found on {when}.</p>')
    count = len(result["prompts"])
    same = count - result["diverged"]
    common.facts(
        [
            ("KL to dense", f"{result['kl']:.4f}", "nats a token, along the dense texts"),
            ("Agreement", f"{result['agreement']:.1%}", "of those tokens, both models put the same one first"),
            ("Same text", f"{same} of {count}", f"prompts, over {result['max_new_tokens']} tokens"),
            ("When", when, f"on {result['device']}"),
        ]
    )
    st.html("".join(pair(row) for row in result["prompts"]))


def pair(row: dict) -> str:
    at = row["diverges_at"]
    where = "the same text to the end" if at is None else f"the texts differ from token {at + 1} of {row['tokens']} on"
    figures = f"{where}; KL {row['kl']:.4f}, agreement {row['agreement']:.1%}"
    prompt = html.escape(row["prompt"])
    sides = "".join(
        f"<figure><figcaption>{name}</figcaption><pre><i>{prompt}</i>{marked(row, key)}</pre></figure>"
        for name, key in (("Dense", "dense"), ("Compressed", "compressed"))
    )
    return f'<section class="k-shadow"><header><b>{prompt}</b><span>{figures}</span></header>{sides}</section>'


def marked(row: dict, key: str) -> str:
    """One of the two texts, with what follows their common beginning marked.

    A token may end inside a letter; then `shared` is no prefix of the text, and the letters that agree are counted.
    """
    text, shared = row[key], 0
    if row["diverges_at"] is None:
        return html.escape(text)
    for a, b in zip(text, row["shared"], strict=False):
        if a != b:
            break
        shared += 1
    rest = f"<mark>{html.escape(text[shared:])}</mark>" if text[shared:] else ""
    return html.escape(text[:shared]) + rest


with common.plain_errors("drawing the checklist"):
    page()
