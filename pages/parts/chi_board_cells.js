// The board's grid: one slider element for each weight, and how it looks. No allocation, no events.
//
// The elements (role, keys, pointer) are transparent; what is seen of the cells is painted on canvases of a few
// rows each, because laying out and painting 200 texts and fills as elements costs four times as much a frame.

import { formatPercent, heat, layout, nameAt } from "./chi_board_core.js";

const HEAT_STEPS = 32;
// [lightness, chroma, hue] in OKLCH, from the smallest share of the damage to the largest: blue to vermilion, apart
// also for colour-blind eyes, and darker (lighter in the dark theme) with the share. Ink stays readable on all.
const HEAT = {
  light: [[0.865, 0.035, 245], [0.845, 0.075, 90], [0.7, 0.165, 42]],
  dark: [[0.35, 0.035, 245], [0.435, 0.07, 85], [0.515, 0.145, 40]],
};
const BLOCK = 12; // rows a canvas
const TINT = 0.38; // how much of the fill's colour the empty part of a cell has

/** OKLab → "rgb(r g b)". B. Ottosson, "A perceptual color space for image processing" (2020). */
function rgb([lightness, a, b]) {
  const l = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3;
  const m = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3;
  const s = (lightness - 0.0894841775 * a - 1.291485548 * b) ** 3;
  const linear = [
    4.0767416621 * l - 3.3077115913 * m + 0.2309699292 * s,
    -1.2684380046 * l + 2.6097574011 * m - 0.3413193965 * s,
    -0.0041960863 * l - 0.7034186147 * m + 1.707614701 * s,
  ];
  return linear.map((x) => {
    const v = Math.max(0, Math.min(1, x));
    return Math.round(255 * (v <= 0.0031308 ? 12.92 * v : 1.055 * v ** (1 / 2.4) - 0.055));
  });
}

const css = (color) => `rgb(${color.join(" ")})`;

/** The colours of the cells: for heat 0 … 1 the fill and, over `paper` [r, g, b], the empty part. */
export function heatColors(dark, paper) {
  const lab = HEAT[dark ? "dark" : "light"].map(([l, c, h]) => {
    const angle = (h * Math.PI) / 180;
    return [l, c * Math.cos(angle), c * Math.sin(angle)];
  });
  const fills = Array.from({ length: HEAT_STEPS + 1 }, (_, i) => {
    const x = (i / HEAT_STEPS) * (lab.length - 1);
    const k = Math.min(lab.length - 2, Math.floor(x));
    return rgb(lab[k].map((v, j) => v + (lab[k + 1][j] - v) * (x - k)));
  });
  const tint = (color) => color.map((v, j) => Math.round(TINT * v + (1 - TINT) * paper[j]));
  return { fill: fills.map(css), empty: fills.map((color) => css(tint(color))) };
}

/** Diagonal lines, for what is dense. */
export function hatch(color) {
  const tile = new OffscreenCanvas(8, 8);
  const brush = tile.getContext("2d", { willReadFrequently: true });
  brush.strokeStyle = color;
  brush.lineWidth = 1.6;
  for (const x of [-8, 0, 8]) {
    brush.moveTo(x, 8);
    brush.lineTo(x + 8, 0);
  }
  brush.stroke();
  return brush.createPattern(tile, "repeat");
}

export function element(tag, className, parent, text) {
  const el = document.createElement(tag);
  if (className) el.className = className;
  if (text !== undefined) el.textContent = text;
  parent?.append(el);
  return el;
}

/** A slider in the grid: `weights` are the indices it moves, `kind` is cell | role | layer | all. */
function item(kind, weights, label, parent, className, name) {
  const el = element("div", className, parent);
  el.setAttribute("role", "slider");
  el.setAttribute("aria-label", label);
  el.tabIndex = -1;
  const it = { el, kind, weights, label, drawn: {} };
  if (kind === "cell") return it;
  element("b", "", el, name);
  return Object.assign(it, { fill: element("i", "fill", el), text: element("span", "text", el) });
}

const labelOf = (T, w) => {
  const tower = T.tower[w] ? `${T.tower[w]} ` : "";
  const layer = T.layer[w] === null || T.layer[w] === undefined ? "" : `${tower}layer ${T.layer[w]} `;
  return `${layer}${T.role[w]}${T.expert[w] === null || T.expert[w] === undefined ? "" : ` expert ${T.expert[w]}`}`;
};

export class Grid {
  /** Build the grid of table T into `scroll`; `open` holds the layers whose experts are shown. */
  constructor(scroll, T, open) {
    this.scroll = scroll;
    this.T = T;
    this.items = new Map();
    this.matrix = [];
    scroll.replaceChildren();
    const { roles, rows } = layout(T);
    this.columns = roles.length;
    this.column = new Map(roles.map((role, c) => [role, c]));
    scroll.style.setProperty("--columns", roles.length);
    scroll.classList.toggle("towered", T.tower.some(Boolean)); // rows have longer names
    scroll.classList.toggle("labelled", T.labels !== null); // words need wider cells than numbers

    const head = element("div", "row heads", scroll);
    const everything = Array.from({ length: T.n }, (_, w) => w);
    this.all = this.add(item("all", everything, "all weights", head, "head corner", "all"), 0, 0);
    const byRole = roles.map((role) => everything.filter((w) => T.role[w] === role));
    this.heads = roles.map((role, c) =>
      this.add(item("role", byRole[c], `role ${role}, all layers`, head, "head", role), 0, c + 1));

    // Few rows are taller: easier to grasp.
    scroll.style.setProperty("--row", `${rows.length <= 10 ? 34 : rows.length <= 20 ? 30 : 26}px`);
    this.body = element("div", "body", scroll);
    this.rows = [];
    for (const row of rows) this.addRow(row, open);
    this.blocks = Array.from({ length: Math.ceil(this.rows.length / BLOCK) }, () => {
      const canvas = element("canvas", "", this.body);
      canvas.setAttribute("aria-hidden", "true");
      return { canvas, brush: null };
    });
    this.measured = false;
  }

  add(it, r, c) {
    it.r = r;
    it.c = c;
    (this.matrix[r] ??= [])[c] = it;
    this.items.set(it.el, it);
    return it;
  }

  addRow(row, open) {
    const { T } = this;
    const many = Math.max(...row.cells.map((cell) => cell.length));
    const name = row.layer === null || row.layer === undefined ? "outside" : row.key;
    const weights = row.cells.flat();
    const make = (className, cells, title, label) => {
      const el = element("div", `row ${className}`, this.body);
      const r = this.matrix.length;
      const head = this.add(item("layer", cells.flat(), label, el, "head side", title), r, 0);
      const line = { el, head, cells: [] };
      cells.forEach((at, c) => {
        if (at.length === 0) {
          element("div", "gap", el);
          return;
        }
        const folded = at.length > 1;
        const suffix = folded ? `, ${at.length} weights` : "";
        const cellLabel = folded ? `layer ${name} ${T.role[at[0]]}${suffix}` : labelOf(T, at[0]);
        const it = this.add(item("cell", at, cellLabel, el, folded ? "cell folded" : "cell"), r, c + 1);
        it.layer = row.key;
        line.cells.push(it);
      });
      this.rows.push(line);
      return line;
    };
    const line = make("", row.cells, String(name), name === "outside" ? "outside the blocks" : `layer ${name}, all roles`);
    if (many < 2) return;
    const isOpen = open.has(row.key);
    const toggle = element("button", "toggle", null, isOpen ? "▾" : "▸");
    toggle.type = "button";
    toggle.tabIndex = -1;
    toggle.dataset.layer = String(row.key);
    toggle.setAttribute("aria-expanded", String(isOpen));
    toggle.setAttribute("aria-label", `${isOpen ? "hide" : "show"} the experts of layer ${name}`);
    line.head.el.before(toggle);
    line.el.classList.add("foldable");
    line.folds = row.key;
    if (!isOpen) return;
    const inFold = weights.filter((w) => row.cells[this.columnOf(w)].length > 1);
    const experts = [...new Set(inFold.map((w) => this.partOf(w, row)))];
    for (const part of experts) {
      const cells = row.cells.map((cell) => (cell.length > 1 ? cell.filter((w) => this.partOf(w, row) === part) : []));
      make("expert", cells, `e${part}`, `layer ${name} expert ${part}, all roles`);
    }
  }

  columnOf(w) {
    return this.column.get(this.T.role[w]);
  }

  /** Which line of an opened layer a weight stands in: its expert, or its place among those of its role. */
  partOf(w, row) {
    const { expert } = this.T;
    return expert[w] ?? row.cells[this.columnOf(w)].indexOf(w);
  }

  /** Sizes from the page, after anything that may have moved them; all canvases are empty then. */
  measure() {
    this.measured = true;
    this.columnBox = this.heads.map(({ el }) => ({ x: el.offsetLeft, width: el.offsetWidth }));
    this.rowHeight = this.rows[0].el.offsetHeight;
    this.cellHeight = this.rows[0].cells[0].el.offsetHeight;
    this.scale = window.devicePixelRatio || 1;
    for (const block of this.blocks) block.brush = null;
    for (const row of this.rows) for (const cell of row.cells) cell.drawn.look = null;
  }

  /** The context that row r is painted in. The font is set once: setting it brings all styles up to date. */
  brush(r, font) {
    const k = Math.floor(r / BLOCK);
    const block = this.blocks[k];
    if (block.brush) return block.brush;
    const { canvas } = block;
    const width = this.rows[0].el.offsetWidth;
    const height = Math.min(BLOCK, this.rows.length - k * BLOCK) * this.rowHeight;
    canvas.style.cssText = `top: ${k * BLOCK * this.rowHeight}px; width: ${width}px; height: ${height}px`;
    [canvas.width, canvas.height] = [width, height].map((v) => Math.round(v * this.scale));
    // Kept in main memory: these are redrawn on every frame, and a GPU only adds the way there.
    block.brush = canvas.getContext("2d", { willReadFrequently: true });
    block.brush.scale(this.scale, this.scale);
    block.brush.textBaseline = "middle";
    block.brush.textAlign = "right";
    block.brush.font = font;
    return block.brush;
  }

  /** Draw what can be seen: `view` holds chi, parameters, damage (per weight), total, locked, hand, selected, palette. */
  draw(view, everything = false) {
    if (!this.measured) this.measure();
    let first = 0, last = this.rows.length - 1;
    if (!everything) {
      first = Math.max(0, Math.floor(view.scrollTop / this.rowHeight) - 1);
      last = Math.min(last, Math.ceil((view.scrollTop + view.height) / this.rowHeight) + 1);
    }
    for (let r = first; r <= last; r++) {
      for (const cell of this.rows[r].cells) this.drawCell(cell, r, view);
    }
    for (let r = first; r <= last; r++) this.drawHead(this.rows[r].head, view);
    for (const head of [this.all, ...this.heads]) this.drawHead(head, view);
  }

  sums(it, view) {
    let now = 0, dense = 0;
    for (const w of it.weights) {
      now += view.parameters[w];
      dense += this.T.dense[w];
    }
    return now / dense;
  }

  drawHead(it, view) {
    const kept = this.sums(it, view);
    const text = formatPercent(kept, 0);
    const fill = `translateX(${(100 * Math.min(1, kept) - 100).toFixed(1)}%)`;
    this.set(it, "fill", fill, () => { it.fill.style.transform = fill; });
    this.set(it, "text", text, () => { it.text.textContent = text; });
    it.now = Math.round(100 * kept);
    it.say = `keeps ${text} of its parameters`;
    it.max = 100;
  }

  drawCell(it, r, view) {
    const { T } = this;
    const n = it.weights.length;
    const w0 = it.weights[0];
    let damage = 0, locked = 0, hand = 0, dense = 0, sum = 0, same = true;
    for (const w of it.weights) {
      damage += view.damage[w];
      locked += view.locked[w];
      hand += view.hand[w];
      if (view.chi[w] === 0) dense++;
      sum += view.chi[w];
      same &&= view.chi[w] === view.chi[w0];
    }
    const kept = this.sums(it, view);
    const mixed = T.labels ? "mixed" : `~${Math.round(sum / (n - dense))}`;
    const text = dense === n ? "dense" : same ? nameAt(T, w0, view.chi[w0]) : mixed;
    const isDense = text === "dense"; // also where that is an option of a group
    const look = {
      text,
      dense: isDense,
      fill: Math.min(1, kept),
      heat: Math.round(HEAT_STEPS * heat(damage / n, view.total, T.n)),
      locked: locked === n,
      hand: hand > 0,
      selected: n === 1 && view.selected === w0,
      folded: n > 1,
    };
    const key = `${text}|${look.fill.toFixed(3)}|${look.heat}|${look.locked}${look.hand}${look.selected}`;
    this.set(it, "look", key, () => {
      const { x, width } = this.columnBox[it.c - 1];
      const box = { x, y: (r % BLOCK) * this.rowHeight, width, height: this.cellHeight };
      paintCell(this.brush(r, view.palette.font), box, look, view.palette);
    });
    this.set(it, "locked", look.locked, (v) => it.el.classList.toggle("locked", v));
    it.max = T.labels?.[w0] ? T.last[w0] + 1 : Math.round(T.breakEven[w0]);
    it.now = dense === n ? it.max : Math.round(sum / Math.max(1, n - dense));
    it.say = `${isDense || T.labels ? text : `χ ${text}`}, keeps ${formatPercent(kept, 0)}${look.locked ? ", locked" : ""}`;
  }

  /** Touch the document only where something changed. */
  set(it, key, value, write) {
    if (it.drawn[key] === value) return;
    it.drawn[key] = value;
    write(value);
  }

  /** ARIA values; on release, not on every frame. */
  announce(it) {
    const value = `${it.now}|${it.max}|${it.say}`;
    this.set(it, "aria", value, () => {
      it.el.setAttribute("aria-valuemin", it.kind === "cell" ? "1" : "0");
      it.el.setAttribute("aria-valuemax", String(Math.max(it.max, it.now)));
      it.el.setAttribute("aria-valuenow", String(it.now));
      it.el.setAttribute("aria-valuetext", it.say);
    });
  }

  /** Draw all anew: the theme or a size changed. */
  invalidate() {
    this.measured = false;
  }

  /** The next item from `it` in a direction, over gaps. */
  neighbour(it, dr, dc) {
    let { r, c } = it;
    for (;;) {
      r += dr;
      c += dc;
      if (r < 0 || c < 0 || r >= this.matrix.length || c > this.columns) return null;
      if (this.matrix[r][c]) return this.matrix[r][c];
    }
  }
}

const LOCK = new Path2D("M3.5 5V3.7a2.5 2.5 0 0 1 5 0V5H9.3v6H2.7V5zm1.3 0h2.4V3.7a1.2 1.2 0 0 0-2.4 0z");

const KNOB = 7; // the strip at a cell's foot that the handle stands in: no digit comes there

/** One cell: fill against dense, χ, and the marks for dense, locked, by hand and selected. */
function paintCell(brush, { x, y, width, height }, look, palette) {
  const narrow = width < 54;
  // On narrow cells the lock stands above the word, not beside it.
  const middle = look.locked && narrow ? y + height - KNOB - 6 : y + (height - (look.dense ? 0 : KNOB - 2)) / 2;
  brush.clearRect(x - 1, y, width + 2, height);
  brush.fillStyle = look.dense ? palette.hatch : palette.cells.empty[look.heat];
  brush.beginPath();
  brush.roundRect(x, y, width, height, look.folded ? [4, 9, 9, 4] : 4);
  brush.fill();
  if (!look.dense) {
    const edge = Math.max(2, width * look.fill);
    const right = edge > width - 4 ? 4 : 0;
    brush.fillStyle = palette.cells.fill[look.heat];
    brush.beginPath();
    brush.roundRect(x, y, edge, height, [4, right, right, 4]);
    brush.fill();
    brush.fillStyle = palette.edge;
    brush.beginPath();
    brush.roundRect(x + Math.min(width - 4, Math.max(1, edge - 2)), y + height - KNOB, 3, KNOB - 1, 1.5);
    brush.fill();
  }
  brush.fillStyle = look.dense ? palette.soft : palette.ink;
  brush.fillText(look.text, x + width - (narrow ? 5 : look.locked ? 24 : 8), middle + 1);
  brush.fillStyle = palette.ink;
  if (look.folded) for (const dot of [7, 11, 15]) brush.fillRect(x + dot, middle - 1, 2, 2);
  if (look.locked) {
    brush.save();
    if (narrow) brush.translate(x + width - 15, y + 2);
    else brush.translate(x + width - 20, middle - 7);
    brush.fill(LOCK, "evenodd");
    brush.restore();
  }
  if (look.locked || look.selected) {
    brush.strokeStyle = look.selected ? palette.accent : palette.ink;
    brush.lineWidth = look.selected ? 2 : 1.5;
    brush.beginPath();
    brush.roundRect(x + 1, y + 1, width - 2, height - 2, 3.5);
    brush.stroke();
  }
  if (!look.hand) return;
  brush.beginPath();
  brush.moveTo(x, y);
  brush.lineTo(x + 10, y);
  brush.lineTo(x, y + 10);
  brush.fill();
}
