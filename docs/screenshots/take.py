"""Takes pictures of every page of a running dashboard: light and dark, 1440, 900 and 390 pixels wide, each page whole.

    python docs/screenshots/take.py http://127.0.0.1:8501 FOLDER [page …]

Those that README shows are kept here, in 256 colours (a tenth of the bytes): copy them from FOLDER.
"""

import sys
from io import BytesIO
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from app import HIDDEN, PAGES
from bench.chi_board import browser

READY = (
    "!document.querySelector('[data-testid=stSkeleton]') && [...document.querySelectorAll("
    "'[data-testid=stPlotlyChart]')].every(chart => chart.querySelector('.main-svg'))"
)
WIDTHS = (1440, 900, 390)


def still(page) -> None:
    for _ in range(2):
        page.wait_for_timeout(600)
        page.wait_for_selector("[data-testid=stApp][data-test-script-state=notRunning]", timeout=60_000)
        page.wait_for_function(READY, timeout=60_000)


def main(address: str, folder: str, *wanted: str) -> None:
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    names = wanted or [name for pages in [*PAGES.values(), HIDDEN] for name, *_ in pages]
    with browser() as chromium:
        for scheme in ("light", "dark"):
            for width in WIDTHS:
                phone = width < 500
                window = {"width": width, "height": 900}
                context = chromium.new_context(viewport=window, color_scheme=scheme, has_touch=phone, is_mobile=phone)
                page = context.new_page()
                for name in names:
                    page.set_viewport_size(window)
                    page.goto(f"{address}/{name}")
                    page.wait_for_selector(".k-title", timeout=60_000)
                    still(page)
                    height = page.evaluate("document.querySelector('[data-testid=stMain]').scrollHeight")
                    page.set_viewport_size({"width": width, "height": height + 10})
                    still(page)
                    picture = Image.open(BytesIO(page.screenshot())).convert("RGB")
                    picture = picture.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=3, dither=0)
                    picture.save(out / f"{name}-{scheme}-{width}.png", optimize=True)
                context.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
