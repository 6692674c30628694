// The pure half of the χ board, against slow and obvious references. Run: node --test tests/js

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { Allocator } from "../../pages/parts/chi_board_allocate.js";
import {
  beyondChecked, damageAt, decode, figures, formatBytes, formatCount, formatNats, formatPercent, formatRise, heat, keptAt,
  lastAtMost, layout, nearest, parametersAt, predictedRise, step, totals,
} from "../../pages/parts/chi_board_core.js";

globalThis.Path2D = class {}; // the browser's, which the marks of cells are made of
const { heatColors } = await import("../../pages/parts/chi_board_cells.js");
const { roundTicks } = await import("../../pages/parts/chi_board_panel.js");

const pack = (Kind, values) => Buffer.from(Kind.from(values).buffer).toString("base64");

/** A repeatable random number in [0, 1) (mulberry32). */
function random(seed) {
  let t = seed;
  return () => {
    t = (t + 0x6d2b79f5) | 0;
    let x = Math.imul(t ^ (t >>> 15), 1 | t);
    x = (x + Math.imul(x ^ (x >>> 7), 61 | x)) ^ x;
    return ((x ^ (x >>> 14)) >>> 0) / 4294967296;
  };
}

/** A table of n weights of made-up shapes and falling, not convex, damages; as board_data in chi_board.py packs it. */
function makeTable(n, { seed = 1, objective = false } = {}) {
  const next = random(seed);
  const weights = { name: [], layer: [], role: [], expert: [], out: [], in: [], parameters: [], dense_bytes: [],
    core_bytes: [], grid: [], break_even: [], share: [] };
  const grids = [], damage = [], other = [];
  for (let w = 0; w < n; w++) {
    const out = 8 + Math.floor(40 * next()), inn = 8 + Math.floor(40 * next());
    const full = Math.min(out, inn);
    const chi = Array.from({ length: full }, (_, k) => k + 1).filter((k) => k < 6 || k === full || next() < 0.6);
    grids.push({ chi: pack(Int32Array, chi), parameters: pack(Float64Array, chi.map((k) => k * (out + inn))) });
    let d = 0.2 + next();
    for (let k = 0; k < chi.length; k++) {
      damage.push(d);
      other.push(d * (0.5 + next()));
      d *= 0.4 + 0.6 * next();
    }
    weights.name.push(`w${w}`);
    weights.layer.push(Math.floor(w / 2));
    weights.role.push(w % 2 ? "down" : "q");
    weights.expert.push(null);
    weights.out.push(out);
    weights.in.push(inn);
    weights.parameters.push(out * inn);
    weights.dense_bytes.push(w % 3 ? 2 : 4);
    weights.core_bytes.push(w % 3 ? 2 : 4);
    weights.grid.push(w);
    weights.break_even.push((out * inn) / (out + inn));
    weights.share.push((0.5 + next()) * out * inn);
  }
  const model = { other_parameters: 1000, other_bytes: 2000, other_memory: 2000, dense_loss: 2, vocabulary: 512, error: 0.1, measure: "kl",
    points: [0.01, 0.2, 2].map((x) => [x, 1.5 * x ** 0.8]) };
  return { id: `t${seed}`, grids, weights, model, damage: pack(Float32Array, damage),
    objective: objective ? pack(Float32Array, other) : null };
}

/** Every option of weight w with cost and objective, dense last; only those that cost less than dense. */
function optionsOf(T, w, unit) {
  const grid = T.grids[T.grid[w]];
  const core = unit === "bytes" ? T.coreBytes[w] : 1;
  const dense = T.dense[w] * (unit === "bytes" ? T.denseBytes[w] : 1);
  const all = Array.from(grid.chi, (chi, k) => ({ chi, cost: grid.parameters[k] * core, value: T.objective[T.start[w] + k] }));
  return [...all.filter(({ cost }) => cost < dense), { chi: 0, cost: dense, value: 0 }];
}

/** argmin(objective + λ·cost) a weight with λ bisected, then the best affordable step while there is one. */
function reference(T, room, unit, locked) {
  const tables = Array.from({ length: T.n }, (_, w) => (locked[w] ? null : optionsOf(T, w, unit)));
  const choose = (price) => tables.map((options) => {
    if (!options) return null;
    let best = 0;
    options.forEach((o, k) => {
      if (o.value + price * o.cost < options[best].value + price * options[best].cost) best = k;
    });
    return best;
  });
  const cost = (chosen) => chosen.reduce((sum, k, w) => sum + (k === null ? 0 : tables[w][k].cost), 0);
  let chosen = choose(0);
  if (cost(chosen) > room) {
    let low = 1e-30, high = 1e6;
    for (let i = 0; i < 400; i++) {
      const middle = Math.sqrt(low * high);
      if (cost(choose(middle)) > room) low = middle;
      else high = middle;
    }
    chosen = choose(high);
  }
  for (;;) {
    const left = room - cost(chosen);
    let top = null;
    tables.forEach((options, w) => options?.forEach((o, k) => {
      const now = options[chosen[w]];
      if (k <= chosen[w] || o.cost - now.cost > left) return;
      const gain = (now.value - o.value) / (o.cost - now.cost);
      if (gain > 0 && (!top || gain > top.gain)) top = { gain, w, k };
    }));
    if (!top) return chosen.map((k, w) => (k === null ? null : tables[w][k].chi));
    chosen[top.w] = top.k;
  }
}

for (const [unit, objective] of [["parameters", false], ["bytes", false], ["parameters", true]]) {
  test(`a budget in ${unit}${objective ? ", another objective" : ""} gives what bisecting λ gives`, () => {
    for (const seed of [1, 2, 3]) {
      const T = decode(makeTable(11, { seed, objective }));
      const chi = new Int32Array(T.n).fill(2);
      const locked = Uint8Array.from({ length: T.n }, (_, w) => (w === 4 || (seed === 2 && w === 7) ? 1 : 0));
      const allocator = new Allocator(T, { unit, scope: "model" }, { kind: "lagrangian" }).hold(locked, chi);
      const lockedCost = Array.from({ length: T.n }, (_, w) => (locked[w] ? allocator.cost(w, 2) : 0)).reduce((a, b) => a + b);
      for (let budget = 0.12; budget <= 1; budget += 0.07) {
        const room = budget * allocator.whole - allocator.other - lockedCost;
        if (budget < allocator.range()[0]) continue;
        const got = allocator.allocate(budget);
        const want = reference(T, room, unit, locked);
        for (let w = 0; w < T.n; w++) assert.equal(got[w], locked[w] ? 2 : want[w], `seed ${seed} budget ${budget} w${w}`);
        assert.ok(allocator.measure(got) <= budget * allocator.whole * (1 + 1e-9));
      }
    }
  });
}

test("on a few weights the choice is within one step of the best of all choices", () => {
  const T = decode(makeTable(3, { seed: 9 }));
  const none = new Uint8Array(3);
  const allocator = new Allocator(T, { unit: "parameters", scope: "blocks" }, { kind: "lagrangian" }).hold(none, new Int32Array(3));
  const tables = [0, 1, 2].map((w) => optionsOf(T, w, "parameters"));
  const largest = Math.max(...tables.flatMap((t) => t.slice(1).map((o, k) => t[k].value - o.value)));
  for (const budget of [0.2, 0.35, 0.5, 0.75, 0.9]) {
    let best = Infinity;
    for (const a of tables[0]) for (const b of tables[1]) for (const c of tables[2])
      if (a.cost + b.cost + c.cost <= budget * allocator.whole) best = Math.min(best, a.value + b.value + c.value);
    const sum = totals(T, allocator.allocate(budget)).damage;
    assert.ok(sum >= best - 1e-6 && sum <= best + largest, `${budget}: ${sum} against ${best}`);
  }
});

test("proportional: the largest option under one factor times each share", () => {
  const T = decode(makeTable(9, { seed: 5 }));
  const allocator = new Allocator(T, { unit: "parameters", scope: "model" }, { kind: "proportional" });
  allocator.hold(new Uint8Array(9), new Int32Array(9));
  for (const budget of [0.3, 0.5, 0.8]) {
    const got = allocator.allocate(budget);
    assert.ok(allocator.measure(got) <= budget * allocator.whole);
    // Some factor gives exactly this, and the next larger plan is over the budget.
    const at = (t) => Int32Array.from({ length: 9 }, (_, w) => {
      const fit = optionsOf(T, w, "parameters").filter((o) => o.cost <= t * T.share[w]);
      return fit.length ? fit.at(-1).chi : optionsOf(T, w, "parameters")[0].chi;
    });
    const factors = [...new Set([0, 1, 2, 3, 4, 5, 6, 7, 8].flatMap((w) =>
      optionsOf(T, w, "parameters").map((o) => (o.cost / T.share[w]) * (1 + 1e-13))))].sort((a, b) => a - b);
    const k = factors.findIndex((t) => String(at(t)) === String(got));
    assert.ok(k >= 0, "no factor gives this plan");
    const larger = factors.slice(k).find((t) => String(at(t)) !== String(got));
    assert.ok(larger === undefined || allocator.measure(at(larger)) > budget * allocator.whole);
  }
});

test("a larger budget never damages more, and the curve is what the budgets give", () => {
  const T = decode(makeTable(20, { seed: 6 }));
  const allocator = new Allocator(T, { unit: "parameters", scope: "model" }, { kind: "lagrangian" });
  allocator.hold(new Uint8Array(20), new Int32Array(20));
  const [low, high] = allocator.range();
  assert.ok(Math.abs(high - 1) < 1e-12);
  let last = Infinity;
  for (const [kept, damage] of allocator.curve()) {
    assert.ok(kept >= low - 1e-12 && kept <= high + 1e-12 && damage <= last + 1e-9);
    last = damage;
    assert.ok(totals(T, allocator.allocate(kept)).damage <= damage + 1e-6);
  }
  assert.ok(Math.abs(last) < 1e-6);
  assert.equal(totals(T, allocator.allocate(high)).kept, 1);
});

test("totals: dense is the whole model, no rise; a plan adds up by hand", () => {
  const T = decode(makeTable(2, { seed: 3 }));
  const dense = totals(T, [0, 0]);
  assert.deepEqual([dense.kept, dense.kept_blocks, dense.bytes_kept, dense.rise, dense.loss], [1, 1, 1, 0, 2]);
  const one = totals(T, [1, 0]);
  const p = T.out[0] + T.in[0] + T.dense[1];
  assert.equal(one.parameters, p + 1000);
  assert.equal(one.bytes, (T.out[0] + T.in[0]) * 4 + T.dense[1] * 2 + 2000);
  assert.equal(one.damage, T.damage[0]);
  assert.ok(Math.abs(one.rise - 1.5 * T.damage[0] ** 0.8) < 1e-12);
  assert.equal(figures({ ...T, model: { ...T.model, points: null } }, { parameters: 1, bytes: 1, memory: 1, adds: 1, damage: 1 }).rise, null);
});

test("a rise is predicted piece by piece through the measured plans", () => {
  const rise = (points, damage) => predictedRise({ model: { points } }, damage);
  const points = [[0.1, 0.2], [1, 0.9], [10, 4]];
  for (const [x, y] of points) assert.ok(Math.abs(rise(points, x) - y) < 1e-12);
  assert.ok(Math.abs(rise(points, Math.sqrt(0.1)) - Math.sqrt(0.2 * 0.9)) < 1e-12);
  assert.ok(Math.abs(rise(points, 100) - 4 * (4 / 0.9)) < 1e-9);
  assert.equal(rise([[2, 3]], 4), 6);
  assert.equal(rise([], 4), 4);
  assert.equal(rise(points, 0), 0);
});

test("between options parameters are linear in χ and the damage geometric", () => {
  const table = makeTable(1);
  table.grids[0] = { chi: pack(Int32Array, [1, 4]), parameters: pack(Float64Array, [100, 400]) };
  table.damage = pack(Float32Array, [1, 0.25]);
  const T = decode(table);
  assert.equal(parametersAt(T, 0, 2), 200);
  assert.ok(Math.abs(damageAt(T, 0, 2) - 0.25 ** (1 / 3)) < 1e-12);
  assert.equal(damageAt(T, 0, 9), 0.25);
});

test("a slider's options run from the smallest to dense, each reachable by keys and by dragging", () => {
  const T = decode(makeTable(4, { seed: 8 }));
  for (let w = 0; w < T.n; w++) {
    const options = optionsOf(T, w, "parameters").map((o) => o.chi);
    assert.equal(T.last[w], options.length - 1);
    options.forEach((chi, k) => {
      assert.equal(step(T, w, chi, 1), options[Math.min(k + 1, options.length - 1)]);
      assert.equal(step(T, w, chi, -1), options[Math.max(k - 1, 0)]);
      assert.equal(nearest(T, w, keptAt(T, w, chi)), chi);
    });
    assert.equal(nearest(T, w, -3), options[0]);
    assert.equal(nearest(T, w, 3), 0);
    assert.equal(step(T, w, 0, -999), options[0]);
  }
});

test("layout: known roles in their order, layers rising, experts share a cell", () => {
  const T = { n: 6, role: ["down", "router2", "q", "gate", "gate", "q"], layer: [1, 0, 0, 0, 0, null], tower: Array(6).fill("") };
  const { roles, rows } = layout(T);
  assert.deepEqual(roles, ["q", "gate", "down", "router2"]);
  assert.deepEqual(rows.map((row) => row.layer), [0, 1, null], "what is outside the blocks comes last");
  assert.deepEqual(rows[0].cells, [[2], [3, 4], [], [1]]);
});

test("what is held stays at every budget, and tells which budgets can be met", () => {
  const T = decode(makeTable(11, { seed: 4 }));
  for (const kind of ["lagrangian", "proportional"]) {
    const allocator = new Allocator(T, { unit: "parameters", scope: "model" }, { kind });
    const chi = new Int32Array(T.n).fill(3);
    const held = Uint8Array.from({ length: T.n }, (_, w) => (w % 3 === 0 ? 1 : 0));
    allocator.hold(held, chi);
    const [low, high] = allocator.range();
    const [widest, largest] = allocator.range(new Uint8Array(T.n));
    assert.ok(low > widest && high < largest && Math.abs(largest - 1) < 1e-12);
    for (const budget of [0, widest, low, 0.5, high, 1]) {
      const got = allocator.allocate(budget);
      for (let w = 0; w < T.n; w++) if (held[w]) assert.equal(got[w], 3);
      const kept = allocator.measure(got) / allocator.whole;
      assert.ok(kept >= low - 1e-9 && kept <= high + 1e-9, `${kind} ${budget}: ${kept}`);
      if (budget >= low) assert.ok(kept <= Math.min(1, budget) + 1e-9);
    }
    assert.ok(Math.abs(allocator.measure(allocator.allocate(0)) / allocator.whole - low) < 1e-12);
    assert.ok(Math.abs(allocator.measure(allocator.allocate(1)) / allocator.whole - high) < 1e-12);
  }
});

test("who shares cores with what is held is held with it", () => {
  const table = makeTable(4, { seed: 3 });
  table.grids = [table.grids[0]];
  table.weights.grid = [0, 0, 0, 0];
  const options = decode(makeTable(4, { seed: 3 })).start[1];
  table.damage = pack(Float32Array, Array.from({ length: 4 * options }, (_, k) => 1 / (1 + (k % options))));
  for (const key of ["parameters", "out", "in"]) table.weights[key] = table.weights[key].map(() => table.weights[key][0]);
  table.weights.group = [0, 0, null, null];
  const T = decode(table);
  const allocator = new Allocator(T, { unit: "parameters", scope: "blocks" }, { kind: "lagrangian" });
  allocator.hold(Uint8Array.of(0, 1, 0, 0), Int32Array.of(2, 2, 0, 0)); // the second of two mates alone
  const one = allocator.allocate(0.3), other = allocator.allocate(0.6);
  assert.deepEqual([one[0], one[1], other[0], other[1]], [2, 2, 2, 2]);
  assert.notDeepEqual(one, other);
});

test("a prediction past the largest measured plan, or past ln(vocabulary), is beyond what was checked", () => {
  const T = (points, more = {}) => ({ model: { points, dense_loss: 2, vocabulary: 512, ...more } });
  const points = [[0.1, 0.2], [1, 3]];
  assert.deepEqual([0, 0.05, 0.5, 1, 1.01].map((sum) => beyondChecked(T(points), sum)), [false, false, false, false, true]);
  assert.ok(beyondChecked(T([[0.1, 0.2], [1, 5]]), 0.99)); // 2 + 4.9 > ln 512 = 6.24
  assert.ok(!beyondChecked(T([[0.1, 0.2], [1, 5]], { vocabulary: null }), 0.99));
  assert.ok(beyondChecked(T([]), 0.1));
  assert.ok(!beyondChecked(T(null), 0.1)); // nothing is predicted at all
});

test("ticks are round, between the ends, and few", () => {
  assert.deepEqual(roundTicks(0.252, 1).map((x) => Math.round(100 * x)), [30, 40, 50, 60, 70, 80, 90, 100]);
  for (const [low, high] of [[0.1, 1], [0.9, 1], [0.998, 1], [0.5, 0.5004]]) {
    const ticks = roundTicks(low, high);
    assert.ok(ticks.length <= 11 && ticks.every((x) => x >= low - 1e-9 && x <= high + 1e-9));
  }
});

const THEME = readFileSync(new URL("../../.streamlit/config.toml", import.meta.url), "utf8");
for (const theme of ["light", "dark"]) {
  test(`${theme}: the χ of a cell can be read on every colour that a cell has`, () => {
    const section = THEME.split(`[theme.${theme}]`)[1];
    const colour = (name) => section.match(new RegExp(`${name} = "#(..)(..)(..)"`)).slice(1).map((x) => parseInt(x, 16));
    const luminance = (rgb) => {
      const [r, g, b] = rgb.map((v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4));
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const [paper, ink] = [colour("backgroundColor"), colour("textColor")];
    const { fill, empty } = heatColors(theme === "dark", paper);
    assert.ok(new Set(fill).size > 30);
    for (const cell of [...fill, ...empty]) {
      const [low, high] = [luminance(ink), luminance(cell.match(/\d+/g).map(Number))].sort((a, b) => a - b);
      assert.ok((high + 0.05) / (low + 0.05) >= 4.5, `${cell}: ${((high + 0.05) / (low + 0.05)).toFixed(2)}`);
    }
  });
}

test("heat is the middle at the average share, the ends at an eighth and eight times it", () => {
  assert.equal(heat(0.1, 1, 10), 0.5);
  assert.equal(heat(0.8, 1, 10), 1);
  assert.equal(heat(0.0125, 1, 10), 0);
  assert.equal(heat(0, 0, 10), 0);
});

test("numbers as words", () => {
  assert.equal(lastAtMost([1, 3, 3, 7], 3), 2);
  assert.equal(lastAtMost([1], 0), -1);
  assert.equal(formatCount(6738415616), "6.74 B");
  assert.equal(formatCount(999), "999");
  assert.equal(formatCount(999700), "1.00 M");
  assert.equal(formatBytes(13476831232), "13.5 GB");
  assert.equal(formatPercent(0.7004), "70.0%");
  assert.equal(formatNats(0.00042), "0.00042");
  assert.equal(formatNats(1.6331), "1.633");
  assert.deepEqual([0.0000755, -1e-9, 0, -0.012, 1e-12].map(formatNats), ["<0.0001", "0", "0", "-0.012", "0"]);
  assert.deepEqual([0.0127, 0.0000755, 0, -0.012].map(formatRise), ["+0.013", "<0.0001", "0", "-0.012"]);
});
