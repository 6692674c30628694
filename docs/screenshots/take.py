"""Takes the screenshots of this folder from a running dashboard.

    python docs/screenshots/take.py http://127.0.0.1:8501 [chromium]

Every page in light and dark, wide and 900 pixels; whole pages, in 256 colours (a tenth of the bytes).
"""

import sys
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent
PAGES = {
    "profile": "/?model=demo&quantity=excess&metric=loss",
    "plan": "/plan?model=demo",
    "run": "/run?model=demo",
    "tradeoff": "/tradeoff?model=demo",
    "sensitivity": "/sensitivity?model=demo",
    "networks": "/networks?network=peps",
}
READY = (
    "!document.querySelector('[data-testid=stSkeleton]') && [...document.querySelectorAll("
    "'[data-testid=stPlotlyChart]')].every(chart => chart.querySelector('.main-svg'))"
)


def still(page) -> None:
    for _ in range(3):
        page.wait_for_timeout(700)
        page.wait_for_selector("[data-testid=stApp][data-test-script-state=notRunning]", timeout=60_000)
        page.wait_for_function(READY, timeout=60_000)


def main(address: str, chromium: str = "/usr/bin/chromium") -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for scheme in ("light", "dark"):
            for width, name in ((1440, "wide"), (900, "900")):
                context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
                page = context.new_page()
                for title, path in PAGES.items():
                    page.set_viewport_size({"width": width, "height": 900})
                    page.goto(address + path)
                    still(page)
                    height = page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
                    page.set_viewport_size({"width": width, "height": height + 10})
                    still(page)
                    picture = (
                        Image.open(BytesIO(page.screenshot()))
                        .convert("RGB")
                        .quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=3, dither=0)
                    )
                    picture.save(HERE / f"{title}-{scheme}-{name}.png", optimize=True)
                context.close()
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
