// The place of the keyboard. Streamlit draws what a button opens at the end of the document, where Tab comes last, and
// drops the focus when it takes away, or disables, what had it: after a page is left, a box has closed, an undo was the
// last one. Then the next Tab would begin at the top of the page. Nothing here acts for a mouse or a finger.

const BOX = "[data-testid=stPopoverBody]";
const OPENER = "[data-testid=stPopoverButton]";
const STOPS = "a[href], button, input, select, textarea, summary, [contenteditable=true], [tabindex]";
const OFTEN = 120; // ms between two looks whether the focus is lost
const PATIENCE = 1500; // ms in which what a box holds may still come

const visible = (el) => el.isConnected && el.getClientRects().length > 0 && getComputedStyle(el).visibility !== "hidden";
const enabled = (el) => !el.matches(":disabled, [inert] *") && visible(el);

/** Everything below `root` that Tab stops at, in its order. */
export const stops = (root) => [...root.querySelectorAll(STOPS)].filter((el) => el.tabIndex >= 0 && enabled(el));

const keyOf = (around) => around.map((at) => /st-key-[\w-]+/.exec(at.className)?.[0]).find(Boolean);

/** What had the keyboard, as far as it has to be known once it is gone: what stood around it, and where it was. */
export function place(el, address) {
  const around = [];
  for (let at = el.parentElement; at; at = at.parentElement) around.push(at);
  return { el, around, key: keyOf(around), address, inBox: el.closest(BOX) !== null };
}

/** What gets the focus after `lost` is gone: its successor of the same key, the first stop that stands nearest around
 * where it was, the button of the box that it was in; on another page the title. `opener`: the place of the button. */
export function heir(lost, page, opener) {
  const all = stops(page);
  for (const { key } of lost.inBox && opener ? [lost, opener] : [lost]) {
    const same = key && all.find((el) => el.closest(`.${key}`));
    if (same) return same;
  }
  if (lost.address === page.defaultView.location.pathname) {
    const near = lost.around.find((at) => at.isConnected && at.closest("[data-testid=stMain]") && stops(at).length);
    if (near && near.querySelector("h1") === null) return stops(near)[0];
  }
  return page.querySelector(".k-title h1");
}

function give(el) {
  if (el.tabIndex < 0) el.tabIndex = -1;
  el.focus();
}

function watch() {
  let byKey = false, lost = null, opener = null;
  const settled = () => document.querySelector("[data-testid=stApp][data-test-script-state=notRunning]");
  const boxOf = (button) => (button.getAttribute("aria-expanded") === "true" ? document.querySelector(BOX) : null);

  /** Into a box as soon as it stands, and on to its first stop once that has come. */
  const enter = (button) => {
    const end = performance.now() + PATIENCE;
    const look = () => {
      const box = boxOf(button), at = document.activeElement, late = performance.now() > end;
      if (!byKey || (at !== button && at !== box)) return;
      const whole = box && settled() && !box.querySelector("[data-testid=stSkeleton]");
      const [first] = whole || (box && late) ? stops(box) : [];
      if (first) first.focus();
      else if (box && at !== box) give(box);
      if (!first && !late) setTimeout(look, 40);
    };
    look();
  };

  addEventListener("pointerdown", () => { byKey = false; lost = null; }, true);
  addEventListener("keydown", (event) => {
    byKey = true;
    if (event.key !== "Tab" || event.altKey || event.ctrlKey || event.metaKey) return;
    const at = document.activeElement, box = at.closest(BOX);
    if (box) {
      const all = stops(box), end = event.shiftKey ? all[0] : all.at(-1);
      if ((at !== end && at !== box) || !opener?.el.isConnected || (at === box && all.length && !event.shiftKey)) return;
      opener.el.focus(); // from there Tab goes on in the page
      if (event.shiftKey) event.preventDefault();
    } else if (at.matches(OPENER) && !event.shiftKey && boxOf(at)) {
      const [first] = stops(boxOf(at));
      if (first) {
        first.focus();
        event.preventDefault();
      }
    }
  }, true);
  addEventListener("click", (event) => {
    const button = event.target.closest?.(OPENER);
    if (!button) return;
    opener = place(button);
    if (byKey && event.detail === 0 && !boxOf(button)) enter(button);
  }, true);
  const title = () => document.querySelector(".k-title h1")?.textContent;
  addEventListener("focusin", ({ target }) => {
    if (byKey) lost = { ...place(target, location.pathname), title: title() };
  }, true);

  setInterval(() => {
    if (!lost || document.activeElement !== document.body || enabled(lost.el)) return;
    // A page has a title; between two pages none stands. One that follows a job is seldom at rest: a new title will do.
    if (!title() || (!settled() && title() === lost.title)) return;
    const next = heir(lost, document, opener);
    if (next) give(next);
  }, OFTEN);
}

export default function focus() {
  if (document.documentElement.dataset.kFocus) return; // called again on each re-run
  document.documentElement.dataset.kFocus = "kept";
  watch();
}
