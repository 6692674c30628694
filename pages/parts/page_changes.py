"""A change of page stands against what the page before still asks for.

Fragments that look by themselves (`run_every`) ask in the name of the page that the browser shows, and a script that
calls `st.rerun` in the name of the page that it draws. Where such a request meets a click on another page's name that
waits, Streamlit (1.67) joins the two into one request for the older page: the click is lost. Where it meets another
page that is being drawn, Streamlit runs the fragment afterwards as of the older page, at which the browser drops all
that the new page has drawn, and the next fragment leaves it blank. The chip of jobs is on every page and looks every
two seconds, and what follows a job draws the page anew when it ends, so both happen. `hold` lets such requests go.
"""

from functools import wraps

from streamlit.runtime.scriptrunner import get_script_run_ctx
from streamlit.runtime.scriptrunner_utils.script_requests import RerunData, ScriptRequests, ScriptRequestType


def hold() -> None:
    """Makes every session of this process drop requests of fragments and scripts whose page is being, or has been,
    left."""
    if not hasattr(ScriptRequests.request_rerun, "__wrapped__"):
        ScriptRequests.request_rerun = _arrives(ScriptRequests.request_rerun)
        ScriptRequests.on_scriptrunner_ready = _is_next(ScriptRequests.on_scriptrunner_ready)


def _of_fragments(request: RerunData) -> bool:
    return bool(request.fragment_id or request.fragment_id_queue)


def _arrives(request_rerun):
    @wraps(request_rerun)
    def arrives(self: ScriptRequests, new_data: RerunData) -> bool:
        drawn = get_script_run_ctx(suppress_warning=True)  # a browser asks in a thread without one
        with self._lock:
            waiting = self._rerun_data if self._state is ScriptRequestType.RERUN else None
        changing = waiting is not None and not _of_fragments(waiting)
        of_itself = drawn is not None and drawn.page_script_hash == new_data.page_script_hash
        if (
            changing
            and (_of_fragments(new_data) or of_itself)
            and new_data.page_script_hash != waiting.page_script_hash
        ):
            return True
        return request_rerun(self, new_data)

    return arrives


def _is_next(on_scriptrunner_ready):
    @wraps(on_scriptrunner_ready)
    def is_next(self: ScriptRequests):
        drawn = get_script_run_ctx(suppress_warning=True)
        with self._lock:
            if self._state is ScriptRequestType.RERUN and drawn is not None and drawn.page_script_hash:
                left = self._rerun_data.page_script_hash != drawn.page_script_hash
                if left and _of_fragments(self._rerun_data):
                    self._state = ScriptRequestType.CONTINUE
        return on_scriptrunner_ready(self)

    return is_next
