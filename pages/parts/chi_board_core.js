// The pure half of the χ board: the option tables, their totals, the layout. No DOM, no state of its own.
//
// A weight's options are a grid of bond dimensions χ (ascending) with the parameters each costs, and the damage each
// does; χ = 0 stands for "dense": the weight as it is, no damage. Between two grid points parameters are linear in χ and
// the damage geometric. Where several networks or formats share one slider, χ only counts the options, which then have
// labels. Weights that share cores are mates: they always stand at the same option.
// `board_data` in chi_board.py writes the table and documents it; `totals` there is the same.

const bytesOf = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer;

/** Read a table as `board_data` wrote it into typed arrays: weight w's options are start[w] … start[w + 1] − 1. */
export function decode(table) {
  const w = table.weights;
  const n = w.name.length;
  const grids = table.grids.map((grid) => ({
    chi: new Int32Array(bytesOf(grid.chi)),
    parameters: new Float64Array(bytesOf(grid.parameters)),
    memory: grid.memory ? new Float64Array(bytesOf(grid.memory)) : null,
    bytes: grid.bytes ? new Float64Array(bytesOf(grid.bytes)) : null,
    adds: grid.multiply_adds ? new Float64Array(bytesOf(grid.multiply_adds)) : null,
  }));
  // Along `steps`, which rises, a slider runs: parts of the dense weight in what the budget counts.
  grids.forEach((grid, g) => {
    const { steps } = table.grids[g];
    grid.steps = steps ? new Float64Array(bytesOf(steps)) : grid.parameters;
  });
  const start = new Int32Array(n + 1);
  for (let i = 0; i < n; i++) start[i + 1] = start[i] + grids[w.grid[i]].chi.length;
  const damage = new Float32Array(bytesOf(table.damage));
  const objective = table.objective ? new Float32Array(bytesOf(table.objective)) : damage;
  const dense = Float64Array.from(w.parameters);
  const T = {
    id: table.id, n, grids, start, damage, objective, dense,
    name: w.name, layer: w.layer, tower: w.tower ?? new Array(n).fill(""), role: w.role, expert: w.expert, out: w.out, in: w.in,
    grid: w.grid, denseBytes: w.dense_bytes, coreBytes: w.core_bytes, share: w.share,
    model: table.model, last: new Int32Array(n), breakEven: Float64Array.from(w.break_even),
    labels: w.labels?.map((k) => (k === null ? null : table.labels[k])) ?? null, mates: matesOf(w.group, n),
    noDense: w.no_dense ?? new Array(n).fill(false), adds: table.adds === true,
  };
  // `last` is how many options are smaller than the dense weight: a slider runs over these, then to dense.
  for (let i = 0; i < n; i++) {
    const grid = grids[T.grid[i]];
    let k = grid.chi.length;
    while (k > 0 && grid.steps[k - 1] >= dense[i]) k--;
    T.last[i] = k;
  }
  T.blockParameters = dense.reduce((a, b) => a + b, 0);
  T.blockBytes = dense.reduce((a, b, i) => a + b * T.denseBytes[i], 0);
  return T;
}

/** For each weight all that move with it, itself among them. */
function matesOf(group, n) {
  const of = new Map();
  const mates = Array.from({ length: n }, (_, w) => {
    const id = group?.[w] ?? null;
    if (id === null) return [w];
    if (!of.has(id)) of.set(id, []);
    of.get(id).push(w);
    return of.get(id);
  });
  return mates;
}

/** These weights and all that move with any of them, each once. */
export function withMates(T, weights) {
  return weights.every((w) => T.mates[w].length === 1) ? weights : [...new Set(weights.flatMap((w) => T.mates[w]))];
}

/** What weight w is at χ, in a word: its χ, or the label of its option. */
export function nameAt(T, w, chi) {
  if (chi === 0) return "dense";
  return T.labels?.[w]?.[chi - 1] ?? String(chi);
}

/** Index of the last value ≤ x in ascending `values` (−1 where all are larger). */
export function lastAtMost(values, x) {
  let low = 0;
  let high = values.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (values[middle] <= x) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

/** values[k] between grid points: straight, or `geometric` where both ends are positive; the end values outside. */
function interpolate(grid, values, offset, chi, geometric = false) {
  const k = lastAtMost(grid.chi, chi);
  if (k < 0) return values[offset];
  const low = values[offset + k];
  if (grid.chi[k] === chi || k === grid.chi.length - 1) return low;
  const high = values[offset + k + 1];
  const t = (chi - grid.chi[k]) / (grid.chi[k + 1] - grid.chi[k]);
  return geometric && low > 0 && high > 0 ? low * (high / low) ** t : low + t * (high - low);
}

/** Parameters of weight w at χ; χ = 0 is dense. */
export function parametersAt(T, w, chi) {
  const grid = T.grids[T.grid[w]];
  return chi === 0 ? T.dense[w] : interpolate(grid, grid.parameters, 0, chi);
}

/** Predicted damage of weight w at χ (nats of KL, as the calibration measured it). */
export function damageAt(T, w, chi) {
  return chi === 0 ? 0 : interpolate(T.grids[T.grid[w]], T.damage, T.start[w], chi, true);
}

/** Bytes of weight w at χ, as stored. */
export function bytesAt(T, w, chi) {
  const grid = T.grids[T.grid[w]];
  if (chi !== 0 && grid.bytes) return interpolate(grid, grid.bytes, 0, chi);
  return parametersAt(T, w, chi) * (chi === 0 ? T.denseBytes[w] : T.coreBytes[w]);
}

/**
 * Predicted rise for a sum of damages: a·sum^b through the two nearest of the measured plans' [sum, rise], as
 * karipap_core.calibrate.predicted_rise has it; null where nothing was measured.
 */
export function predictedRise(T, damage) {
  const { points } = T.model;
  if (points === null) return null;
  if (!(damage > 0)) return 0;
  if (points.length === 0) return damage;
  if (points.length === 1) return (points[0][1] * damage) / points[0][0];
  const upper = Math.min(Math.max(1, points.filter(([sum]) => sum < damage).length), points.length - 1);
  const [[x0, y0], [x1, y1]] = [points[upper - 1], points[upper]];
  return y0 * (damage / x0) ** (Math.log(y1 / y0) / Math.log(x1 / x0));
}

/**
 * Whether a prediction is past all that was measured, so that its number means nothing: the same as
 * karipap_core.plan.checks.beyond_checked.
 */
export function beyondChecked(T, damage) {
  const { points, dense_loss: dense, vocabulary } = T.model;
  if (points === null || !(damage > 0)) return false;
  if (points.length === 0 || damage > points.at(-1)[0] * (1 + 1e-6)) return true;
  return dense !== null && vocabulary !== null && dense + predictedRise(T, damage) > Math.log(vocabulary);
}

/** Every whole-model figure of a plan (χ a weight; 0 = dense). */
export function totals(T, chi) {
  return figures(T, measure(T, chi));
}

/** Sums over the weights here; `parameters` and `damages`, where given, are filled with those of each weight. */
export function measure(T, chi, parameters = null, damages = null) {
  const sum = { parameters: 0, bytes: 0, memory: 0, adds: 0, damage: 0 };
  for (let w = 0; w < T.n; w++) {
    const grid = T.grids[T.grid[w]], at = chi[w];
    const p = parametersAt(T, w, at), d = damageAt(T, w, at);
    const bytes = at !== 0 && grid.bytes ? interpolate(grid, grid.bytes, 0, at) : p * (at === 0 ? T.denseBytes[w] : T.coreBytes[w]);
    sum.parameters += p;
    sum.bytes += bytes;
    sum.memory += at !== 0 && grid.memory ? interpolate(grid, grid.memory, 0, at) : bytes;
    sum.adds += at !== 0 && grid.adds ? interpolate(grid, grid.adds, 0, at) : p;
    sum.damage += d;
    if (parameters) parameters[w] = p;
    if (damages) damages[w] = d;
  }
  return sum;
}

/** The same figures from sums over the block weights. */
export function figures(T, { parameters, bytes, memory, adds, damage }) {
  const m = T.model;
  const rise = predictedRise(T, damage);
  return {
    parameters: parameters + m.other_parameters,
    bytes: bytes + m.other_bytes,
    memory: memory + m.other_memory,
    kept: (parameters + m.other_parameters) / (T.blockParameters + m.other_parameters),
    kept_blocks: (parameters + held(m, false)) / (T.blockParameters + held(m, false)),
    bytes_kept: (bytes + m.other_bytes) / (T.blockBytes + m.other_bytes),
    bytes_kept_blocks: (bytes + held(m, true)) / (T.blockBytes + held(m, true)),
    multiply_adds: T.adds ? adds / T.blockParameters : null,
    damage,
    rise,
    beyond: beyondChecked(T, damage),
    loss: rise === null || m.dense_loss === null ? null : m.dense_loss + rise,
  };
}

/** What the weights of the scope take that stay dense and have no row, in parameters or bytes. */
export function held(model, bytes) {
  return (bytes ? model.held_bytes : model.held_parameters) ?? 0;
}

/** Which figure a budget speaks of: {unit: "parameters" | "bytes", scope: "model", "blocks" or a tower's name}. */
export function budgetFigure(budget) {
  return (budget.unit === "bytes" ? "bytes_kept" : "kept") + (budget.scope === "model" ? "" : "_blocks");
}

/** Fraction of the dense weight that w keeps at χ, in what its slider runs along. */
export function keptAt(T, w, chi) {
  const grid = T.grids[T.grid[w]];
  return chi === 0 ? 1 : interpolate(grid, grid.steps, 0, chi) / T.dense[w];
}

/** The option of w nearest to a kept fraction; dense (0) from half way between the last option and 1. */
export function nearest(T, w, fraction) {
  const { chi, steps } = T.grids[T.grid[w]];
  const last = T.last[w];
  if (last === 0) return 0;
  const target = fraction * T.dense[w];
  const k = Math.min(lastAtMost(steps, target), last - 1);
  if (k < 0) return chi[0];
  if (k + 1 === last && T.noDense[w]) return chi[k];
  const next = k + 1 < last ? steps[k + 1] : T.dense[w];
  if (target - steps[k] <= next - target) return chi[k];
  return k + 1 < last ? chi[k + 1] : 0;
}

/** The option `steps` places from χ along the slider χ₀ < χ₁ < … < dense, ends included. */
export function step(T, w, chi, steps) {
  const grid = T.grids[T.grid[w]];
  const last = T.last[w];
  if (last === 0) return 0;
  let k = chi === 0 ? last : Math.min(lastAtMost(grid.chi, chi), last);
  // From between two options, one step down is the option just below.
  if (chi !== 0 && k < last && k >= 0 && grid.chi[k] !== chi && steps < 0) k += 1;
  k = Math.max(0, Math.min(T.noDense[w] ? last - 1 : last, k + steps));
  return k === last ? 0 : grid.chi[k];
}

/** The board's layout: role columns, layer rows, and for each (row, column) the weights that share the cell. */
export function layout(T) {
  const known = ["q", "k", "v", "qkv", "o", "gate", "up", "gate_up", "down", "fc1", "fc2", "embed", "head"];
  const roles = [...new Set(T.role)];
  const place = (role) => (known.includes(role) ? known.indexOf(role) : known.length + roles.indexOf(role));
  roles.sort((a, b) => place(a) - place(b));
  const column = new Map(roles.map((role, c) => [role, c]));
  const rows = new Map();
  for (let w = 0; w < T.n; w++) {
    const key = (T.layer[w] ?? null) === null ? -1 : T.tower[w] ? `${T.tower[w]} ${T.layer[w]}` : T.layer[w];
    if (!rows.has(key)) rows.set(key, { key, layer: T.layer[w], tower: T.tower[w], cells: roles.map(() => []) });
    rows.get(key).cells[column.get(T.role[w])].push(w);
  }
  const towers = [...new Set(T.tower)]; // as they run
  const at = (row) => row.layer ?? Infinity;
  const outside = (row) => (at(row) === Infinity ? 1 : 0);
  const order = (a, b) => outside(a) - outside(b) || towers.indexOf(a.tower) - towers.indexOf(b.tower) || at(a) - at(b) || 0;
  return { roles, rows: [...rows.values()].sort(order) };
}

/** 0 … 1: where a weight's share of the damage stands, log scale from 1/8 of the average share to 8 times it. */
export function heat(damage, total, n) {
  if (!(total > 0) || !(damage > 0)) return 0;
  return Math.max(0, Math.min(1, (Math.log2((damage / total) * n) + 3) / 6));
}

const scaled = (x, units) => {
  let k = 0;
  while (k + 1 < units.length && Math.abs(x) >= 999.5) { x /= 1000; k++; }
  return `${k === 0 ? Math.round(x) : x.toPrecision(3)} ${units[k]}`.trim();
};
/** 4710000000 → "4.71 B" (thousands, millions, billions of parameters). */
export const formatCount = (x) => scaled(x, ["", "k", "M", "B", "T"]);
/** Bytes in decimal units: 9430000000 → "9.43 GB". */
export const formatBytes = (x) => scaled(x, ["B", "kB", "MB", "GB", "TB"]);
/** 0.7 → "70.0%". */
export const formatPercent = (x, digits = 1) => `${(100 * x).toFixed(digits)}%`;
/** A loss or a rise in nats, as karipap_core.terminal.nats writes it: 1.6331 → "1.633", 0.00042 → "0.00042". */
export function formatNats(x) {
  const size = Math.abs(x);
  if (size < 1e-4) return x >= 5e-9 ? "<0.0001" : "0";
  return x.toFixed(size >= 0.00995 ? 3 : 1 - Math.floor(Math.log10(size)));
}
/** The same with its sign. */
export const formatRise = (x) => (x >= 1e-4 ? `+${formatNats(x)}` : formatNats(x));
