"""The dashboard: its server, navigation and theme, nothing else. Start it with `make app`.

`streamlit run` and uvicorn import this file once, for the server that it names; Streamlit then runs it as a script,
for each look of each session.
"""

import streamlit as st

from pages.parts import page_changes, server

PAGES = {  # name of the file and of the address, title, icon; those of "" stand in front, the rest in menus
    "": [
        ("profile", "Profile", "grid_on"),
        ("plan", "Plan", "tune"),
        ("tradeoff", "Trade-off", "show_chart"),
    ],
    "Compress": [
        ("run", "Run", "play_circle"),
        ("autopilot", "Autopilot", "flight_takeoff"),
        ("heal", "Heal", "healing"),
        ("compare", "Compare", "compare_arrows"),
    ],
    "Deploy": [
        ("deploy", "Deploy", "rocket_launch"),
        ("checklist", "Production", "checklist"),
    ],
    "Study": [
        ("sensitivity", "Sensitivity", "science"),
        ("networks", "Networks", "hub"),
        ("claims", "Claims", "fact_check"),
        ("physics", "Physics check", "experiment"),
        ("glossary", "Glossary", "menu_book"),
    ],
}
HIDDEN = [("jobs", "Jobs", "list")]  # in no menu: the chip in the top bar leads there


def draw() -> None:
    st.set_page_config(page_title="Karipap", page_icon="assets/theme/icon.png", layout="wide")

    from pages.parts import common, focus, job_chip, model  # they draw, which must not come before set_page_config

    common.refuse_strangers()
    common.theme()
    focus.keep()
    sections = {
        section: [
            st.Page(
                f"pages/{name}.py",
                title=title,
                icon=f":material/{icon}:",
                url_path=name,
                default=name == "profile",
            )
            for name, title, icon in pages
        ]
        for section, pages in PAGES.items()
    }
    sections[""] += [
        st.Page(f"pages/{name}.py", title=title, icon=f":material/{icon}:", url_path=name, visibility="hidden")
        for name, title, icon in HIDDEN
    ]
    page = st.navigation(sections, position="top")
    st.set_page_config(page_title=f"{page.title} · Karipap")
    with common.plain_errors(f"drawing the page {page.title}", again=True):
        job_chip.chip()
        model.bar()
        page.run()


if __name__ == "__main__":
    draw()
else:
    page_changes.hold()
    app = st.App(__file__, routes=server.routes(), middleware=server.middleware())
