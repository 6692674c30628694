// What stands around the board's grid: the figures, the budget slider with the rule's curve, the slider for fingers, the
// legend.

import {
  beyondChecked, budgetFigure, formatBytes, formatCount, formatNats, formatPercent, formatRise, nameAt, predictedRise,
} from "./chi_board_core.js";
import { element } from "./chi_board_cells.js";

const DECADES = 4; // of predicted rise that the budget's plot shows
const BEYOND = "beyond what was checked";

/** Set a text only where it changed. */
export function write(el, text) {
  if (el.textContent !== text) el.textContent = text;
}

const TILES = [["kept", "Parameters kept"], ["bytes", "Size on disk"], ["loss", "Predicted loss"],
  ["sure", "Predictions are off by"], ["cut", "Weights cut"], ["adds", "Multiply-adds a token"]];

export class Figures {
  constructor(parent) {
    const list = element("dl", "figures", parent);
    for (const [key, title] of TILES) {
      const tile = element("div", `figure ${key}`, list);
      this[key] = { title: element("dt", "", tile, title), value: element("dd", "value", tile), note: element("dd", "note", tile) };
    }
    this.said = {};
  }

  /** Touches the document only where a word changed: this runs on every frame of a drag. */
  put(key, value, note) {
    const said = (this.said[key] ??= {});
    if (said.value !== value) {
      this[key].value.textContent = said.value = value;
      this[key].value.classList.toggle("words", value.length > 14);
    }
    if (said.note !== note) this[key].note.textContent = said.note = note;
  }

  /** `view`: T, shown (the figures), budget, chi, hand, locked; told: what Python knows of this very plan alone, or {}. */
  draw(view, told) {
    const { T, shown: s, budget, chi } = view;
    const { model } = T;
    const blocks = budget.scope !== "model";
    const whose = budget.scope === "model" ? "blocks" : budget.scope;
    const of = `${formatCount(s.parameters)} of ${formatCount(T.blockParameters + model.other_parameters)}`;
    this.put("kept", formatPercent(blocks ? s.kept_blocks : s.kept),
      blocks ? `of the ${whose}; of the whole model ${formatPercent(s.kept)}`
        : `${of}, the whole model; of the blocks ${formatPercent(s.kept_blocks)}`);
    const loaded = s.memory > 1.001 * s.bytes ? `${formatBytes(s.memory)} in memory` : "the same in memory";
    this.put("bytes", formatBytes(s.bytes),
      `${formatPercent(s.bytes_kept)} of ${formatBytes(T.blockBytes + model.other_bytes)}; ${loaded}`);
    let dense = 0, hand = 0, locked = 0;
    for (let w = 0; w < T.n; w++) {
      dense += chi[w] === 0 || (T.labels !== null && nameAt(T, w, chi[w]) === "dense") ? 1 : 0;
      hand += view.hand[w];
      locked += view.locked[w];
    }
    const by = [hand ? `${hand} set by hand` : "", locked ? `${locked} locked` : ""].filter(Boolean).join(", ");
    this.put("cut", `${T.n - dense} of ${T.n}`, `${dense} ${dense === 1 ? "stays" : "stay"} whole, "dense"${by ? `; ${by}` : ""}`);
    const adds = s.multiply_adds ?? told.adds ?? null;
    this.put("adds", adds === null ? "–" : formatPercent(adds), adds === null ? "counted when you let go"
      : "the work in the blocks, against dense; the time is measured under Networks");
    this.drawLoss(s, model, told, hand > 0);
  }

  drawLoss(s, model, told, hand) {
    const { dense_loss: dense, measure, error, checked } = model;
    const causal = measure === "kl";
    write(this.loss.title, causal ? "Predicted loss" : "Predicted output error");
    const rise = told.rise ?? s.rise;
    if (rise === null) {
      this.put("loss", "–", "nothing was measured on this model yet");
      this.put("sure", "–", "measure the damages first");
      return;
    }
    const measured = told.rise !== undefined && told.rise !== null;
    if (s.beyond && !measured) {
      this.put("loss", BEYOND, "more is cut than in any plan that was measured");
      this.put("sure", "unknown", "keep more, and it is predicted");
      return;
    }
    const above = dense === null ? "nats a token over dense" : `nats a token; ${formatRise(rise)} over dense ${formatNats(dense)}`;
    if (causal) this.put("loss", dense === null ? formatRise(rise) : formatNats(dense + rise), above);
    else this.put("loss", formatNats(rise), "relative to the dense outputs");
    if (measured) {
      this.put("sure", "measured", "this very plan, on the calibration text");
      return;
    }
    const plans = checked ? `; ${checked} plan${checked === 1 ? "" : "s"} checked` : "";
    if (hand || error === null) this.put("sure", "unknown", hand ? "set by hand: it may cost more than the curve says" : "this rule was not checked; it may cost more");
    else this.put("sure", `±${formatPercent(error, 0)}`, `or less, 4 times of 5${plans}`);
  }
}

/** Round places between two kept fractions, at most `most` of them. */
export function roundTicks(low, high, most = 10) {
  const step = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.25].find((s) => (high - low) / s <= most) ?? 0.5;
  const first = Math.ceil(low / step - 1e-9);
  const found = [];
  for (let k = first; k * step <= high + 1e-9; k++) found.push(k * step);
  return found;
}

/** One slider for the whole plan, under the curve of what the rule makes of every budget. */
export class BudgetPlot {
  constructor(parent, release) {
    const box = element("div", "budget", parent);
    const line = element("div", "budget-line", box);
    this.title = element("span", "budget-title", line);
    this.note = element("span", "budget-note", line);
    this.el = element("div", "plot", box);
    this.el.setAttribute("role", "slider");
    this.el.setAttribute("aria-label", "budget");
    this.el.tabIndex = 0;
    const ns = "http://www.w3.org/2000/svg";
    this.rises = element("div", "rises", this.el);
    const svg = this.el.appendChild(document.createElementNS(ns, "svg"));
    svg.setAttribute("viewBox", "0 0 1000 100");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    [this.area, this.line] = ["area", "line"].map((name) => {
      const path = svg.appendChild(document.createElementNS(ns, "path"));
      path.setAttribute("class", name);
      return path;
    });
    this.beyond = element("div", "beyond", this.el);
    element("span", "", this.beyond, BEYOND);
    element("div", "track", this.el);
    this.low = element("i", "closed", this.el);
    this.high = element("i", "closed", this.el);
    this.done = element("i", "done", this.el);
    this.dot = element("i", "dot", this.el);
    this.thumb = element("i", "thumb", this.el);
    this.keeps = element("div", "keeps", this.el);
    this.held = element("div", "held", box);
    this.heldText = element("span", "", this.held);
    this.heldText.setAttribute("role", "status");
    this.button = element("button", "", this.held, "Release");
    this.button.type = "button";
    this.button.addEventListener("click", release);
    this.range = [0, 1]; // what the axis shows: all that the rule could meet if nothing were held
    this.reach = [0, 1]; // what it can meet around what is held
    this.wanted = null; // the last budget that was asked for here
    this.top = 0;
  }

  reachable(kept) {
    return Math.max(this.reach[0], Math.min(this.reach[1], kept));
  }

  /** The kept fraction at x = 0 … 1 along the track. */
  at(x) {
    return this.range[0] + Math.max(0, Math.min(1, x)) * (this.range[1] - this.range[0]);
  }

  x(kept) {
    const [low, high] = this.range;
    return high > low ? Math.max(0, Math.min(1, (kept - low) / (high - low))) : 1;
  }

  y(rise) {
    return Math.max(0, Math.min(1, (this.top - Math.log10(Math.max(rise, 1e-30))) / DECADES));
  }

  /** Draw the rule's [kept, Σ damage] points and both axes. */
  curve(T, allocator) {
    const points = allocator.curve();
    this.reach = allocator.range();
    const [low, high] = allocator.range(new Uint8Array(T.n));
    this.range = [Math.min(low, this.reach[0]), Math.max(high, this.reach[1])];
    const measured = T.model.points !== null;
    const values = points.map(([kept, damage]) => [kept, predictedRise(T, damage) ?? damage]);
    const checked = values.filter((_, i) => !beyondChecked(T, points[i][1]));
    const most = Math.max(0, ...(checked.length ? checked : values).map(([, rise]) => rise));
    this.top = Math.log10(Math.max(1e-9, most)) + 0.05;
    const d = values.map(([kept, rise], i) =>
      `${i ? "L" : "M"}${(1000 * this.x(kept)).toFixed(1)} ${(100 * this.y(rise)).toFixed(2)}`).join("");
    this.line.setAttribute("d", d);
    this.area.setAttribute("d", d ? `${d}L${(1000 * this.x(values.at(-1)[0])).toFixed(1)} 100L${(1000 * this.x(values[0][0])).toFixed(1)} 100Z` : "");
    const edge = checked.length < values.length ? this.x(checked.length ? checked[0][0] : this.range[1]) : 0;
    this.beyond.hidden = !measured || edge <= 0;
    this.beyond.style.width = `${(100 * edge).toFixed(2)}%`;
    this.beyond.classList.toggle("narrow", edge < 0.3);
    this.rises.replaceChildren();
    for (let e = Math.floor(this.top); e > this.top - DECADES; e--) {
      const y = this.y(10 ** e);
      if (y > 0.97) continue;
      const tick = element("span", "", this.rises);
      tick.dataset.says = `+${e < 0 ? (10 ** e).toFixed(-e) : 10 ** e}`;
      tick.style.top = `${(100 * y).toFixed(1)}%`;
    }
    this.keeps.replaceChildren();
    for (const kept of roundTicks(...this.range)) {
      const tick = element("span", "", this.keeps, `${+(100 * kept).toFixed(1)}%`);
      tick.style.left = `${(100 * this.x(kept)).toFixed(2)}%`;
    }
    this.low.style.width = `${(100 * this.x(this.reach[0])).toFixed(2)}%`;
    this.high.style.width = `${(100 - 100 * this.x(this.reach[1])).toFixed(2)}%`;
    write(this.note, !measured ? "curve: the sum of this rule's errors, log scale"
      : T.model.measure === "kl" ? "curve: predicted rise in loss, nats a token, log scale"
        : "curve: predicted error of the outputs, log scale");
    this.said = this.heldSaid = null;
  }

  draw(s, budget) {
    const kept = s[budgetFigure(budget)];
    const place = `${(100 * this.x(kept)).toFixed(2)}%`;
    this.thumb.style.left = this.dot.style.left = this.done.style.width = place;
    this.dot.style.top = `calc(var(--curve) * ${this.y(s.rise ?? s.damage).toFixed(4)})`;
    const say = formatPercent(kept);
    const what = `${budget.unit} of the ${budget.scope === "model" ? "whole model" : budget.scope}`;
    const said = `${say} of the ${what}`;
    if (this.said === said) return;
    this.said = said;
    write(this.title, `Budget: keep ${said}`);
    this.el.setAttribute("aria-valuenow", (100 * kept).toFixed(1));
    this.el.setAttribute("aria-valuemin", (100 * this.reach[0]).toFixed(1));
    this.el.setAttribute("aria-valuemax", (100 * this.reach[1]).toFixed(1));
    this.el.setAttribute("aria-valuetext", `keep ${said}`);
  }

  /** Says how many weights the budget leaves alone, and which budgets that puts out of reach. */
  drawHeld(hand, locked) {
    let byHand = 0, fixed = 0;
    for (let w = 0; w < hand.length; w++) {
      fixed += locked[w];
      byHand += hand[w] && !locked[w] ? 1 : 0;
    }
    const key = `${byHand}|${fixed}|${this.wanted}`;
    if (key === this.heldSaid) return;
    this.heldSaid = key;
    this.held.hidden = byHand + fixed === 0;
    this.button.hidden = byHand === 0;
    this.button.setAttribute("aria-label", `release the ${byHand} set by hand to the budget`);
    if (this.held.hidden) return;
    const who = [byHand ? `${byHand} set by hand` : "", fixed ? `${fixed} locked` : ""].filter(Boolean).join(" and ");
    const [low, high] = this.reach;
    const parts = [`${who} ${byHand + fixed === 1 ? "stays" : "stay"}`];
    if (byHand + fixed === hand.length) parts.push("nothing is left for the budget to change");
    else if (this.wanted !== null && (this.wanted < low - 5e-4 || this.wanted > high + 5e-4)) {
      parts.push(`around ${byHand + fixed === 1 ? "it" : "them"} ${formatPercent(this.wanted)} cannot be met: the `
        + (this.wanted < low ? `smallest budget is ${formatPercent(low)}` : `largest budget is ${formatPercent(high)}`));
    }
    write(this.heldText, parts.join(" · "));
  }
}

/** A large slider and two steps for the cell or heading that was tapped: what dragging is for a mouse. */
export class Fingers {
  constructor(parent, { slide, done, step }) {
    const box = element("div", "fingers", parent);
    box.setAttribute("role", "group");
    box.setAttribute("aria-label", "the tapped cell or heading");
    const line = element("div", "fingers-line", box);
    const button = (text, label, by) => {
      const b = element("button", "", line, text);
      b.type = "button";
      b.setAttribute("aria-label", label);
      b.addEventListener("click", () => step(by));
      return b;
    };
    this.less = button("−", "one step smaller", -1);
    this.input = element("input", "", line);
    Object.assign(this.input, { type: "range", min: "0", max: "1000", step: "1" });
    this.input.addEventListener("input", () => slide(this.input.valueAsNumber / 1000));
    this.input.addEventListener("change", done);
    this.more = button("+", "one step larger", 1);
    this.all = [this.less, this.input, this.more];
  }

  /** `it` is the cell or heading, `kept` what it keeps; `sliding` leaves the thumb to the finger. */
  draw(it, kept, locked, sliding) {
    for (const el of this.all) el.disabled = !it || locked;
    if (!it) return;
    this.input.setAttribute("aria-label", `${it.label}: part kept`);
    if (!sliding) this.input.value = String(Math.round(1000 * Math.min(1, kept)));
    this.input.setAttribute("aria-valuetext", it.say);
  }
}

/** What colours and marks mean; returns the colour ramp, whose colours follow the theme. */
export function legend(parent) {
  const box = element("div", "legend", parent);
  const colours = element("span", "key", box);
  element("span", "", colours, "share of the damage: ⅛");
  const ramp = element("i", "ramp", colours);
  element("span", "", colours, "8 × average");
  for (const [name, text] of [["level", "fill: part kept"], ["dense", "dense: left whole"],
    ["hand", "set by hand: the budget leaves it"], ["locked", "locked: nothing moves it"]]) {
    const key = element("span", "key", box);
    element("i", `sample ${name}`, key);
    element("span", "", key, text);
  }
  return ramp;
}

/** What a cell or a heading is and what it keeps and costs, in a line. */
export function describe(it, board) {
  const { T } = board;
  let damage = 0, parameters = 0, dense = 0, locked = 0, hand = 0;
  for (const w of it.weights) {
    damage += board.damage[w];
    parameters += board.parameters[w];
    dense += T.dense[w];
    locked += board.locked[w];
    hand += board.hand[w];
  }
  const w = it.weights[0], one = it.weights.length === 1;
  const share = board.total > 0 ? formatPercent(damage / board.total) : "none";
  const parts = [it.label];
  if (one) {
    parts.push(`${T.out[w]} × ${T.in[w]}`);
    const chi = board.chi[w];
    if (T.labels?.[w] || chi === 0) parts.push(nameAt(T, w, chi));
    else parts.push(`χ ${chi} of ${Math.floor(T.breakEven[w])} at break-even`);
    if (T.mates[w].length > 1) parts.push(`moves with the ${T.mates[w].length - 1} it shares cores with`);
  } else parts.push(`${it.weights.length} weights`);
  parts.push(`keeps ${formatPercent(parameters / dense)}`, `${share} of the damage`);
  if (hand) parts.push(one ? "set by hand" : `${hand} set by hand`);
  if (locked) parts.push(locked === it.weights.length ? "locked" : `${locked} locked`);
  return parts.join(" · ");
}
