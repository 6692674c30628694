"""A look by the clock that the browser asked for while another page was under way leaves that page as it is."""

from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg

from tests.helpers.browser import Reader, dashboard
from tests.helpers.paths import REPOSITORY


def test_a_look_of_the_page_before_does_not_empty_the_page(browser, tmp_path):
    looks, late = [], []

    def between(browser_side):
        server = browser_side.connect_to_server()

        def asked(data):
            message = BackMsg()
            message.ParseFromString(data)
            if message.rerun_script.is_auto_rerun:
                looks.append(data)
            server.send(data)

        def told(data):
            message = ForwardMsg()
            message.ParseFromString(data)
            if late and message.WhichOneof("type") == "navigation":  # the next page has begun
                server.send(late.pop())
            browser_side.send(data)

        browser_side.on_message(asked)
        server.on_message(told)

    with dashboard(REPOSITORY / "app.py", tmp_path) as address, Reader(browser, address) as reader:
        reader.page.route_web_socket("**/_stcore/stream", between)
        page = reader.open("/plan")
        while not looks:
            page.wait_for_timeout(200)
        late.append(looks[-1])
        reader.go("Trade-off")
        assert not late, "the look was sent"
        page.wait_for_selector(".st-key-curve .main-svg")
        seen = len(looks)
        while len(looks) == seen:  # the page's own next look
            page.wait_for_timeout(200)
        reader.still()
        assert page.locator(".k-title h1").inner_text() == "Trade-off"
        assert page.locator(".st-key-curve .main-svg").count() and "/tradeoff" in page.url
        assert not reader.complaints
