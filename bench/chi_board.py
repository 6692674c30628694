"""How quick the χ board is in a browser: frames while dragging, drawn for each pointer move; release → figures redrawn.

    python -m bench.chi_board [--layers 32 100 6] [--moves 120]

Opens tests/browser/board_app.py (synthetic spectra, 7B-shaped weights) in Chromium. `frame` is the time from the
animation callback to the task after style, layout and paint, `script` the callback alone, both by the clock; `cpu` is
what the page's main thread computes a move, which a busy machine does not stretch as much. `release` is from letting
go to the page's other figures redrawn by Python.
"""

import argparse
import os
import shutil
import statistics
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from reliability.dashboard import ROOT, served

BOARD = ROOT / "tests" / "browser" / "board_app.py"

# Frames asked for while a pointer move is handled are the board's: note what each costs.
PROBE = """
(() => {
  const log = { moves: 0, frames: [], scripts: [] };
  let moving = false;
  window.boardLog = log;
  window.addEventListener("pointermove", () => { log.moves++; moving = true; }, true);
  window.addEventListener("pointermove", () => { moving = false; });
  const ask = window.requestAnimationFrame.bind(window);
  window.requestAnimationFrame = (draw) => {
    if (!moving) return ask(draw);
    return ask((t) => {
      const began = performance.now();
      const channel = new MessageChannel();
      channel.port1.onmessage = () => log.frames.push(performance.now() - began);
      draw(t);
      log.scripts.push(performance.now() - began);
      channel.port2.postMessage(0);
    });
  };
})();
"""


@contextmanager
def browser():
    from playwright.sync_api import sync_playwright

    names = (os.environ.get("KARIPAP_CHROMIUM"), "chromium", "chromium-browser", "google-chrome")
    path = next((p for name in names if name and (p := shutil.which(name))), None)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def main_thread(chromium) -> float:
    """Milliseconds of CPU that the page's main thread has had."""
    metrics = chromium.send("Performance.getMetrics")["metrics"]
    return 1000 * next(metric["value"] for metric in metrics if metric["name"] == "TaskDuration")


def drag(page, slider, moves: int, span: float, start: float) -> dict:
    """Press at `start` of a slider's width, move to and fro over `span` pixels, let go; what the probe saw."""
    box = slider.bounding_box()
    x, y = box["x"] + start * box["width"], box["y"] + box["height"] - 8
    chromium = page.context.new_cdp_session(page)
    chromium.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.mouse.move(x, y)
    page.mouse.down()
    page.wait_for_timeout(200)
    before = main_thread(chromium)
    page.evaluate("Object.assign(boardLog, { moves: 0, frames: [], scripts: [] })")
    for k in range(1, moves + 1):
        phase = (2 * k / moves) % 2
        page.mouse.move(x - 4 + span * (phase if phase <= 1 else 2 - phase), y)
    page.wait_for_timeout(100)
    log = page.evaluate("boardLog")
    log["cpu"] = (main_thread(chromium) - before) / moves
    chromium.detach()
    before = page.locator("#told").text_content()
    began = time.perf_counter()
    page.mouse.up()
    page.wait_for_function("before => document.querySelector('#told')?.textContent !== before", arg=before)
    return log | {"release": 1000 * (time.perf_counter() - began)}


def measure(page, address: str, layers: int, moves: int) -> list[tuple]:
    page.goto(f"{address}?layers={layers}")
    budget = page.get_by_role("slider", name="budget")
    budget.wait_for(timeout=120_000)
    page.wait_for_timeout(500)
    rows = []
    width = budget.bounding_box()["width"]
    rows.append(("budget slider, all cells", drag(page, budget, moves, -0.6 * width, 0.95)))
    page.wait_for_timeout(300)
    cell = page.get_by_role("slider", name="layer 3 down", exact=True)
    rows.append(("one cell", drag(page, cell, moves, -70, 0.5)))
    page.wait_for_timeout(300)
    rows.append(("one role", drag(page, page.get_by_role("slider", name="role up, all layers"), moves, -60, 0.5)))
    return [(what, 7 * layers, log) for what, log in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[32, 100, 6])
    parser.add_argument("--moves", type=int, default=120)
    options = parser.parse_args()
    heads = ("drag", "weights", "moves", "frames", "script", "frame", "worst", "cpu", "release")
    print("{:<26}{:>8}{:>7}{:>8}{:>9}{:>8}{:>8}{:>7}{:>9}   (ms, medians)".format(*heads))
    with TemporaryDirectory() as folder, served(Path(folder), BOARD) as (address, _), browser() as chromium:
        page = chromium.new_page(viewport={"width": 1400, "height": 1000})
        page.add_init_script(PROBE)
        for layers in options.layers:
            for what, weights, log in measure(page, address, layers, options.moves):
                frames, scripts = log["frames"], log["scripts"]
                times = (statistics.median(scripts), statistics.median(frames), max(frames), log["cpu"], log["release"])
                counts = f"{what:<26}{weights:>8}{log['moves']:>7}{len(frames):>8}"
                print(counts + "{:>9.1f}{:>8.1f}{:>8.1f}{:>7.1f}{:>9.0f}".format(*times), flush=True)


if __name__ == "__main__":
    main()
