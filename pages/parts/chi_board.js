// The χ board: what the pointer and the keys do, the figures and the budget slider, and the talk with Python.
// Streamlit calls the default export again on every re-run, so the state lives in a WeakMap on the board's element.

import {
  budgetFigure, decode, figures, keptAt, measure, nearest, withMates,
} from "./chi_board_core.js";
import { Allocator } from "./chi_board_allocate.js";
import { Grid, element, hatch, heatColors } from "./chi_board_cells.js";
import { keys } from "./chi_board_keys.js";
import { BudgetPlot, Figures, Fingers, describe, legend, write } from "./chi_board_panel.js";

const boards = new WeakMap();
const tables = new Map(); // by id; the board and the table are two mounts of this module
const waiting = new Map(); // id → boards that came before their table
const ROW_DRAG = 180; // pixels that move a layer, or everything, by its whole range
const KEY_PAUSE = 350; // ms after the last key before Python hears of it

const HINT = "Drag a cell, a heading or the budget; Shift is finer, Esc takes it back. "
  + "Keys: arrows change χ, Ctrl+arrows move, L locks, D dense, R releases to the budget.";
const TOUCH_HINT = "Tap a cell or a heading, then set it with the slider below the board.";

class Board {
  constructor(root) {
    this.root = root;
    this.open = new Set();
    this.seq = -1;
    this.revision = null;
    root.setAttribute("role", "group");
    root.setAttribute("aria-label", "χ board: one slider for each weight");
    this.tiles = new Figures(root);
    this.plot = new BudgetPlot(root, () => this.release(Array.from(this.hand.keys())));
    this.buildStatus();
    this.scroll = element("div", "scroll", root);
    this.fingers = new Fingers(root, {
      slide: (kept) => this.slideTo(kept),
      done: () => this.slid(),
      step: (by) => this.current && this.stepped(this.current, by),
    });
    this.touch(window.matchMedia("(pointer: coarse)").matches);
    this.ramp = legend(root);
    this.listen();
  }

  // ---- building ----

  buildStatus() {
    const bar = element("div", "status", this.root);
    this.status = element("div", "status-text", bar);
    const button = (text, label, act) => {
      const b = element("button", "", bar, text);
      b.type = "button";
      b.setAttribute("aria-label", label);
      b.addEventListener("click", () => this.current && act(this.current));
      return b;
    };
    this.lockButton = button("Lock", "lock or unlock the chosen weights", (it) => this.toggleLock(it));
    this.denseButton = button("Dense", "make the chosen weights dense", (it) => this.set(it.weights, () => 0, "cell"));
  }

  listen() {
    const { root, scroll } = this;
    root.addEventListener("pointerdown", (e) => this.down(e));
    root.addEventListener("pointermove", (e) => this.move(e));
    root.addEventListener("pointerup", (e) => this.up(e));
    root.addEventListener("pointercancel", () => this.cancel());
    root.addEventListener("lostpointercapture", () => this.drag && this.cancel());
    root.addEventListener("keydown", (e) => this.key(e));
    root.addEventListener("pointerover", (e) => this.point(this.itemAt(e)));
    root.addEventListener("pointerleave", () => this.point(null));
    root.addEventListener("focusin", (e) => this.focus(this.itemAt(e)));
    root.addEventListener("focusout", () => this.flush());
    root.addEventListener("click", (e) => this.tap(e) || this.toggleFold(e.target.closest?.(".toggle")));
    this.scrollTop = 0; // kept, because asking for it in a frame would lay the page out
    const scrolled = () => {
      this.scrollTop = scroll.scrollTop;
      this.schedule();
    };
    scroll.addEventListener("scroll", scrolled, { passive: true });
    this.observer = new ResizeObserver(() => {
      this.grid?.invalidate();
      this.height = scroll.clientHeight;
      this.schedule();
    });
    this.observer.observe(scroll);
  }

  destroy() {
    cancelAnimationFrame(this.frame);
    clearTimeout(this.timer);
    this.observer.disconnect();
    boards.delete(this.root);
  }

  // ---- what Python says ----

  receive({ table, state }) {
    const T = tables.get(table);
    if (!T) {
      waiting.set(table, (waiting.get(table) ?? new Set()).add(this));
      this.late = { table, state };
      return;
    }
    this.late = null;
    this.theme();
    if (T !== this.T) {
      this.T = T;
      this.seq = -1;
      this.revision = null;
      this.grid = null;
      this.open.clear();
    }
    // A state from before the last release is old news; one that comes during a drag or between keys waits.
    if (state.seq < this.seq || state.revision === this.revision) return;
    if (this.drag || this.slide || this.cause) this.pending = state;
    else this.adopt(state);
  }

  adopt(state) {
    const { T } = this;
    this.pending = null;
    this.seq = Math.max(this.seq, state.seq);
    this.revision = state.revision;
    // The answer to a release of this board leaves the budget that was asked for here, met or not, in view.
    if (!this.grid || state.chi.some((chi, w) => chi !== this.chi[w])) this.plot.wanted = state.budget.kept;
    this.chi = Int32Array.from(state.chi);
    this.told = { chi: Int32Array.from(state.chi), ...state.told };
    const flags = (indices) => {
      const out = new Uint8Array(T.n);
      for (const w of indices) out[w] = 1;
      return out;
    };
    this.locked = flags(state.locked);
    this.hand = flags(state.hand);
    this.selected = state.selected ?? -1;
    this.asked = state.budget.kept;
    const rule = `${T.id}|${state.rule.kind}|${state.budget.unit}|${state.budget.scope}`;
    if (rule !== this.ruleKey) {
      this.ruleKey = rule;
      this.budget = state.budget;
      this.allocator = new Allocator(T, state.budget, state.rule);
      this.heldKey = null;
    }
    if (!this.grid) this.build();
    this.hold();
    this.schedule(true);
  }

  build() {
    this.parameters = new Float64Array(this.T.n);
    this.damage = new Float64Array(this.T.n);
    this.grid = new Grid(this.scroll, this.T, this.open);
    this.height = this.scroll.clientHeight;
    this.current = null;
    const first = this.grid.rows[0]?.cells[0];
    if (first) first.el.tabIndex = 0;
  }

  /** Tell the allocator what the budget has to leave as it is (locked, or set by hand), where that changed. */
  hold() {
    const held = this.locked.map((locked, w) => locked | this.hand[w]);
    let key = "";
    for (let w = 0; w < this.T.n; w++) if (held[w]) key += `${w}:${this.chi[w]},`;
    if (key === this.heldKey) return;
    this.heldKey = key;
    this.allocator.hold(held, this.chi);
    this.plot.curve(this.T, this.allocator);
  }

  /** The theme's colours, as the canvases want them; draws anew where they changed. */
  theme() {
    const probe = element("i", "", this.root);
    const color = (value) => {
      probe.style.color = value;
      return getComputedStyle(probe).color;
    };
    const [paper, ink] = [color("var(--paper)"), color("var(--ink)")];
    const key = `${paper}|${ink}|${color("var(--accent)")}`;
    if (key !== this.themeKey) {
      this.themeKey = key;
      const rgb = (paper.match(/[\d.]+/g) ?? [255, 255, 255]).slice(0, 3).map(Number);
      const dark = 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2] < 128;
      this.root.classList.toggle("dark", dark);
      this.palette = {
        paper, ink, cells: heatColors(dark, rgb), accent: color("var(--accent)"), soft: color("var(--soft)"),
        edge: color("color-mix(in oklab, var(--ink) 62%, transparent)"), hatch: hatch(color("var(--faint)")),
        font: `500 12px ${getComputedStyle(this.root).fontFamily}`,
      };
      this.ramp.style.background = `linear-gradient(90deg, ${this.palette.cells.fill.join(", ")})`;
      this.grid?.invalidate();
      this.schedule(true);
    }
    probe.remove();
  }

  // ---- changing χ ----

  /** Everything that moves with these weights: the unlocked of them and of their mates. */
  free(weights) {
    return withMates(this.T, weights).filter((w) => !this.locked[w]);
  }

  set(weights, chiOf, cause) {
    for (const w of this.free(weights)) {
      const chi = chiOf(w);
      if (chi === this.chi[w]) continue;
      this.chi[w] = chi;
      this.hand[w] = 1;
    }
    this.commit(cause);
    this.schedule();
  }

  shift(weights, start, delta) {
    for (const w of weights) {
      const kept = Math.min(1, keptAt(this.T, w, start[w]));
      const chi = delta === 0 ? start[w] : nearest(this.T, w, kept + delta);
      if (chi !== this.chi[w]) this.chi[w] = chi;
    }
  }

  /** What the rule makes of a budget around the weights that are held; the nearest that it can meet. */
  toBudget(wanted) {
    this.plot.wanted = wanted;
    this.asked = this.plot.reachable(wanted);
    this.chi = this.allocator.allocate(this.asked);
  }

  /** Weights set by hand go back to the rule, at the present size; locked ones stay. */
  release(weights) {
    const free = this.free(weights).filter((w) => this.hand[w]);
    if (!free.length) return;
    this.flush();
    for (const w of free) this.hand[w] = 0;
    this.hold();
    this.toBudget(this.shown[budgetFigure(this.budget)]);
    this.commit("release");
  }

  toggleLock(it) {
    const lock = !it.weights.every((w) => this.locked[w]);
    for (const w of withMates(this.T, it.weights)) this.locked[w] = lock ? 1 : 0;
    this.commit("lock");
    this.schedule();
  }

  toggleFold(button) {
    if (!button) return;
    const line = this.grid.rows.find((row) => row.folds !== undefined && String(row.folds) === button.dataset.layer);
    if (line) this.fold(line.folds, button);
  }

  fold(layer) {
    if (!this.open.delete(layer)) this.open.add(layer);
    const { scrollTop } = this.scroll;
    this.build();
    this.scroll.scrollTop = scrollTop;
    this.schedule(true);
    const line = this.grid.rows.find((row) => row.folds === layer);
    if (line) this.focus(line.head, true);
  }

  // ---- pointer ----

  /** Whether fingers are used: then the slider below the board does what dragging a cell does for a mouse. */
  touch(on) {
    this.byTouch = on;
    this.root.classList.toggle("touch", on);
    this.hint = on ? TOUCH_HINT : HINT;
  }

  /** A tap chooses; a drag of a finger is the browser's, which scrolls. */
  tap(event) {
    const it = event.pointerType === "touch" ? this.itemAt(event) : null;
    if (!it) return false;
    this.flush();
    this.focus(it, true);
    if (this.select(it)) this.commit("select");
    this.schedule();
    return true;
  }

  slideTo(kept) {
    const it = this.current;
    if (!it) return;
    if (!this.slide) {
      this.flush();
      this.slide = { it, weights: this.free(it.weights), from: this.keptBy(it), chi: Int32Array.from(this.chi), hand: Uint8Array.from(this.hand) };
    }
    const { weights, from, chi, hand } = this.slide;
    this.shift(weights, chi, kept - from);
    for (const w of weights) this.hand[w] = this.chi[w] === chi[w] ? hand[w] : 1;
    this.schedule();
  }

  slid() {
    if (!this.slide) return;
    const { kind } = this.slide.it;
    this.slide = null;
    this.commit(kind === "cell" ? "cell" : "head");
  }

  /** The part that the weights of a cell or heading keep, as their sliders show it. */
  keptBy(it) {
    let kept = 0, dense = 0;
    for (const w of it.weights) {
      kept += this.T.dense[w] * Math.min(1, keptAt(this.T, w, this.chi[w]));
      dense += this.T.dense[w];
    }
    return kept / dense;
  }

  itemAt(event) {
    return this.grid?.items.get(event.target.closest?.("[role=slider]")) ?? null;
  }

  down(event) {
    if (event.button !== 0 || this.drag || !this.grid) return;
    const target = event.target.closest?.("[role=slider]");
    if (!target || event.target.closest(".toggle")) return;
    if (event.pointerType !== "mouse" && !this.byTouch) this.touch(true);
    if (event.pointerType === "touch" && target !== this.plot.el) return;
    this.flush();
    const it = this.grid.items.get(target);
    const box = target.getBoundingClientRect();
    const saved = { chi: Int32Array.from(this.chi), hand: Uint8Array.from(this.hand), asked: this.asked };
    this.drag = { it, el: target, id: event.pointerId, x: event.clientX, at: event.clientX, delta: 0, moved: false, saved,
      box, fine: event.shiftKey, dirty: false };
    if (it) {
      this.drag.weights = this.free(it.weights);
      this.drag.width = it.kind === "cell" || it.kind === "role" ? box.width : ROW_DRAG;
      this.focus(it, true);
    } else {
      target.focus({ preventScroll: true });
      this.follow(event);
    }
    target.setPointerCapture(event.pointerId);
    event.preventDefault();
  }

  move(event) {
    if (!this.drag || event.pointerId !== this.drag.id) return;
    this.follow(event);
  }

  follow(event) {
    const { drag } = this;
    if (!drag.moved && drag.it && Math.abs(event.clientX - drag.x) < 3) return;
    drag.moved = true;
    drag.dirty = true;
    drag.el.classList.add("dragging");
    if (drag.it) drag.delta += ((event.clientX - drag.at) / drag.width) * (event.shiftKey ? 0.1 : 1);
    else drag.delta = this.plot.at((event.clientX - drag.box.left) / drag.box.width);
    drag.at = event.clientX;
    this.schedule();
  }

  applyDrag() {
    const { drag } = this;
    if (!drag?.dirty) return;
    drag.dirty = false;
    if (!drag.it) {
      this.toBudget(drag.delta);
      return;
    }
    this.shift(drag.weights, drag.saved.chi, drag.delta);
    for (const w of drag.weights) this.hand[w] = this.chi[w] === drag.saved.chi[w] ? drag.saved.hand[w] : 1;
  }

  up(event) {
    const { drag } = this;
    if (!drag || event.pointerId !== drag.id) return;
    this.applyDrag();
    this.drag = null;
    drag.el.classList.remove("dragging");
    if (drag.el.hasPointerCapture(drag.id)) drag.el.releasePointerCapture(drag.id);
    const selected = this.select(drag.it);
    if (drag.moved) this.commit(drag.it ? (drag.it.kind === "cell" ? "cell" : "head") : "budget");
    else if (selected) this.commit("select");
    this.schedule();
  }

  /** A drag taken back (Esc, or the browser took the pointer for scrolling). */
  cancel() {
    const { drag } = this;
    if (!drag) return;
    this.drag = null;
    drag.el.classList.remove("dragging");
    Object.assign(this, drag.saved);
    if (this.pending) this.adopt(this.pending);
    this.schedule();
  }

  select(it) {
    if (it?.kind !== "cell" || it.weights.length !== 1 || this.selected === it.weights[0]) return false;
    this.selected = it.weights[0];
    return true;
  }

  point(it) {
    if (this.drag || it === this.hover) return;
    this.hover = it;
    this.schedule();
  }

  focus(it, move = false) {
    if (!it) return;
    if (this.current && this.current !== it) this.current.el.tabIndex = -1;
    else if (!this.current) for (const other of this.grid.items.values()) other.el.tabIndex = -1;
    this.current = it;
    it.el.tabIndex = 0;
    if (move) it.el.focus({ preventScroll: this.drag !== null && this.drag !== undefined });
    this.schedule();
  }

  /** Tell Python when the keys have come to rest. */
  later(cause) {
    this.cause = cause;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.flush(), KEY_PAUSE);
    this.schedule();
  }

  flush() {
    if (!this.cause) return;
    clearTimeout(this.timer);
    this.commit(this.cause);
  }

  commit(cause) {
    const { T } = this;
    this.cause = null;
    clearTimeout(this.timer);
    this.pending = null;
    this.seq += 1;
    const named = (flags) => T.name.filter((_, w) => flags[w]);
    this.send?.({
      chi: Object.fromEntries(T.name.map((name, w) => [name, this.chi[w]])),
      locked: named(this.locked), hand: named(this.hand), budget: this.asked, cause,
      selected: T.name[this.selected] ?? null, seq: this.seq,
    });
    this.hold();
    this.aria = true;
    this.schedule();
  }

  // ---- drawing ----

  schedule(everything = false) {
    this.everything ||= everything;
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      if (this.T && this.chi && this.grid) this.draw();
    });
  }

  draw() {
    this.applyDrag();
    const { T, chi } = this;
    const sums = measure(T, chi, this.parameters, this.damage);
    this.shown = figures(T, sums);
    this.total = sums.damage;
    this.grid.draw(this, this.everything || this.aria);
    this.tiles.draw(this, chi.every((at, w) => at === this.told.chi[w]) ? this.told : {});
    this.plot.draw(this.shown, this.budget);
    this.plot.drawHeld(this.hand, this.locked);
    this.drawStatus();
    if (this.everything || this.aria) {
      for (const it of this.grid.items.values()) this.grid.announce(it);
      this.everything = this.aria = false;
    } else if (this.current) this.grid.announce(this.current);
  }

  drawStatus() {
    const it = (this.drag && this.drag.it) || this.hover || this.current;
    if (this.byTouch) {
      const one = this.current;
      this.fingers.draw(one, one && this.keptBy(one), one && this.free(one.weights).length === 0, Boolean(this.slide));
    }
    this.lockButton.disabled = this.denseButton.disabled = !this.current;
    if (this.current) write(this.lockButton, this.current.weights.every((w) => this.locked[w]) ? "Unlock" : "Lock");
    if (!it) {
      write(this.status, this.hint);
      return;
    }
    write(this.status, describe(it, this));
  }
}

Object.assign(Board.prototype, keys);

export default function chiBoard({ data, parentElement, setStateValue, setTriggerValue }) {
  const root = parentElement.querySelector(".chi-board");
  if (data.define) {
    const { id } = data.define;
    if (!tables.has(id)) tables.set(id, decode(data.define));
    if (tables.size > 4) tables.delete(tables.keys().next().value);
    const late = waiting.get(id) ?? [];
    waiting.delete(id);
    for (const board of late) if (board.late?.table === id) board.receive(board.late);
    return undefined;
  }
  let board = boards.get(root);
  if (!board) boards.set(root, (board = new Board(root)));
  board.send = (value) => setStateValue("board", value);
  board.history = (way) => setTriggerValue("history", way);
  board.receive(data);
  return () => board.destroy();
}
