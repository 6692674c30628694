"""The dashboard: navigation and theme, nothing else. Start it with `make app`."""

import streamlit as st

st.set_page_config(page_title="Karipap", page_icon="assets/theme/icon.png", layout="wide")

from pages.parts import common, model  # noqa: E402  (set_page_config comes before anything that draws)

common.refuse_strangers()
common.theme()

page = st.navigation(
    {
        "": [
            st.Page("pages/profile.py", title="Profile", icon=":material/grid_on:", url_path="profile", default=True),
            st.Page("pages/plan.py", title="Plan", icon=":material/tune:", url_path="plan"),
            st.Page("pages/autopilot.py", title="Autopilot", icon=":material/flight_takeoff:", url_path="autopilot"),
            st.Page("pages/run.py", title="Run", icon=":material/play_circle:", url_path="run"),
            st.Page("pages/heal.py", title="Heal", icon=":material/healing:", url_path="heal"),
            st.Page("pages/tradeoff.py", title="Trade-off", icon=":material/show_chart:", url_path="tradeoff"),
            st.Page("pages/compare.py", title="Compare", icon=":material/compare_arrows:", url_path="compare"),
            st.Page("pages/deploy.py", title="Deploy", icon=":material/rocket_launch:", url_path="deploy"),
            st.Page("pages/checklist.py", title="Production", icon=":material/checklist:", url_path="checklist"),
        ],
        "Study": [
            st.Page("pages/sensitivity.py", title="Sensitivity", icon=":material/science:", url_path="sensitivity"),
            st.Page("pages/networks.py", title="Networks", icon=":material/hub:", url_path="networks"),
            st.Page("pages/claims.py", title="Claims", icon=":material/fact_check:", url_path="claims"),
            st.Page("pages/physics.py", title="Physics check", icon=":material/experiment:", url_path="physics"),
        ],
    },
    position="top",
)
st.set_page_config(page_title=f"{page.title} · Karipap")
model.bar()
page.run()
