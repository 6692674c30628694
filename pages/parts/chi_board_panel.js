// What stands around the board's grid: the figures, the budget slider with the rule's curve, the legend.

import {
  budgetFigure, formatBytes, formatCount, formatNats, formatPercent, nameAt, predictedRise,
} from "./chi_board_core.js";
import { element } from "./chi_board_cells.js";

const DECADES = 4; // of predicted rise that the budget's plot shows

/** Set a text only where it changed. */
export function write(el, text) {
  if (el.textContent !== text) el.textContent = text;
}

const TILES = [["kept", "Parameters kept"], ["bytes", "Size on disk"], ["loss", "Predicted loss"],
  ["memory", "Memory for weights"]];

export class Figures {
  constructor(parent) {
    const list = element("dl", "figures", parent);
    for (const [key, title] of TILES) {
      const tile = element("div", `figure ${key}`, list);
      this[key] = { title: element("dt", "", tile, title), value: element("dd", "value", tile), note: element("dd", "note", tile) };
    }
  }

  put(key, value, note) {
    write(this[key].value, value);
    write(this[key].note, note);
  }

  /** `known`: whether the plan is one whose predictions' error has been observed (none of it by hand). */
  draw(T, s, budget, known) {
    const { model } = T;
    const blocks = budget.scope === "blocks";
    const of = `${formatCount(s.parameters)} of ${formatCount(T.blockParameters + model.other_parameters)}`;
    this.put("kept", formatPercent(blocks ? s.kept_blocks : s.kept),
      blocks ? `of the blocks; whole model ${formatPercent(s.kept)}` : `${of}, whole model`);
    const whole = formatBytes(T.blockBytes + model.other_bytes);
    this.put("bytes", formatBytes(s.bytes), `${formatPercent(s.bytes_kept)} of ${whole}`);
    this.put("memory", formatBytes(s.memory), "when loaded, without activations");
    const { dense_loss: dense, measure } = model;
    const error = known ? model.error : null;
    write(this.loss.title, measure === "kl" ? "Predicted loss" : "Predicted output error");
    if (s.rise === null) {
      this.put("loss", "–", "not measured yet for this model");
      return;
    }
    if (measure !== "kl") {
      this.put("loss", formatNats(s.rise), `relative to dense${error === null ? "" : `, ±${formatPercent(error, 0)}`}`);
      return;
    }
    const about = error === null ? "" : ` ± ${formatPercent(error, 0)}`;
    this.put("loss", s.loss === null ? `+${formatNats(s.rise)}` : formatNats(s.loss),
      dense === null ? `nats over dense${about}` : `+${formatNats(s.rise)}${about} over dense ${formatNats(dense)}`);
  }
}

/** One slider for the whole plan, under the curve of what the rule makes of every budget. */
export class BudgetPlot {
  constructor(parent) {
    const box = element("div", "budget", parent);
    const line = element("div", "budget-line", box);
    this.title = element("span", "budget-title", line);
    this.note = element("span", "budget-note", line);
    this.el = element("div", "plot", box);
    this.el.setAttribute("role", "slider");
    this.el.setAttribute("aria-label", "budget");
    this.el.tabIndex = 0;
    const ns = "http://www.w3.org/2000/svg";
    const svg = this.el.appendChild(document.createElementNS(ns, "svg"));
    svg.setAttribute("viewBox", "0 0 1000 100");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    [this.area, this.line] = ["area", "line"].map((name) => {
      const path = svg.appendChild(document.createElementNS(ns, "path"));
      path.setAttribute("class", name);
      return path;
    });
    this.ticks = element("div", "ticks", this.el);
    element("div", "track", this.el);
    this.done = element("i", "done", this.el);
    this.dot = element("i", "dot", this.el);
    this.thumb = element("i", "thumb", this.el);
    this.range = [0, 1];
    this.top = 0;
  }

  clamp(kept) {
    return Math.max(this.range[0], Math.min(this.range[1], kept));
  }

  /** The kept fraction at x = 0 … 1 along the track. */
  keptAt(x) {
    return this.clamp(this.range[0] + x * (this.range[1] - this.range[0]));
  }

  x(kept) {
    const [low, high] = this.range;
    return high > low ? (this.clamp(kept) - low) / (high - low) : 1;
  }

  y(rise) {
    return Math.max(0, Math.min(1, (this.top - Math.log10(Math.max(rise, 1e-30))) / DECADES));
  }

  /** Draw the rule's [kept, Σ damage] points; the range is that of the budgets it can meet. */
  curve(T, points, range) {
    this.range = range;
    const values = points.map(([kept, damage]) => [kept, predictedRise(T, damage) ?? damage]);
    this.top = Math.log10(Math.max(1e-9, ...values.map(([, rise]) => rise)));
    const d = values.map(([kept, rise], i) =>
      `${i ? "L" : "M"}${(1000 * this.x(kept)).toFixed(1)} ${(100 * this.y(rise)).toFixed(2)}`).join("");
    this.line.setAttribute("d", d);
    this.area.setAttribute("d", d ? `${d}L1000 100L${(1000 * this.x(values[0][0])).toFixed(1)} 100Z` : "");
    this.ticks.replaceChildren();
    for (let e = Math.floor(this.top); e > this.top - DECADES; e--) {
      const y = this.y(10 ** e);
      if (y < 0.12 || y > 0.8) continue;
      element("span", "tick", this.ticks, `+${e < 0 ? (10 ** e).toFixed(-e) : 10 ** e}`).style.top = `${100 * y}%`;
    }
    this.said = null;
  }

  draw(s, budget) {
    const kept = s[budgetFigure(budget)];
    const place = `${(100 * this.x(kept)).toFixed(2)}%`;
    this.thumb.style.left = this.dot.style.left = this.done.style.width = place;
    this.dot.style.top = `calc((100% - 18px) * ${this.y(s.rise ?? s.damage).toFixed(4)})`;
    const say = formatPercent(kept);
    const what = `${budget.unit} of the ${budget.scope === "blocks" ? "blocks" : "whole model"}`;
    const said = `${say} of the ${what}`;
    if (this.said === said) return;
    this.said = said;
    write(this.title, `Budget: keep ${said}`);
    write(this.note, s.rise === null ? "curve: this rule's sum of damages, log scale"
      : "curve: the rise that this rule is predicted to cost, log scale");
    this.el.setAttribute("aria-valuenow", (100 * kept).toFixed(1));
    this.el.setAttribute("aria-valuemin", (100 * this.range[0]).toFixed(1));
    this.el.setAttribute("aria-valuemax", (100 * this.range[1]).toFixed(1));
    this.el.setAttribute("aria-valuetext", `keep ${said}`);
  }
}

/** What colours and marks mean; returns the colour ramp, whose colours follow the theme. */
export function legend(parent) {
  const box = element("div", "legend", parent);
  const colours = element("span", "key", box);
  element("span", "", colours, "share of the damage: ⅛");
  const ramp = element("i", "ramp", colours);
  element("span", "", colours, "8 × average");
  for (const [name, text] of [["level", "fill: part kept"], ["dense", "dense"], ["locked", "locked"],
    ["hand", "set by hand"]]) {
    const key = element("span", "key", box);
    element("i", `sample ${name}`, key);
    element("span", "", key, text);
  }
  return ramp;
}

/** What a cell or a heading is and what it keeps and costs, in a line. */
export function describe(it, board) {
  const { T } = board;
  let damage = 0, parameters = 0, dense = 0, locked = 0;
  for (const w of it.weights) {
    damage += board.damage[w];
    parameters += board.parameters[w];
    dense += T.dense[w];
    locked += board.locked[w];
  }
  const w = it.weights[0];
  const share = board.total > 0 ? formatPercent(damage / board.total) : "none";
  const parts = [it.label];
  if (it.weights.length === 1) {
    parts.push(`${T.out[w]} × ${T.in[w]}`);
    const chi = board.chi[w];
    if (T.labels?.[w] || chi === 0) parts.push(nameAt(T, w, chi));
    else parts.push(`χ ${chi} of ${Math.floor(T.breakEven[w])} at break-even`);
    if (T.mates[w].length > 1) parts.push(`moves with the ${T.mates[w].length - 1} it shares cores with`);
  } else parts.push(`${it.weights.length} weights`);
  parts.push(`keeps ${formatPercent(parameters / dense)}`, `${share} of the damage`);
  if (locked) parts.push(locked === it.weights.length ? "locked" : `${locked} locked`);
  return parts.join(" · ");
}
