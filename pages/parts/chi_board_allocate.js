// A budget → χ for every weight, fast enough to run on every move of the budget slider. No DOM.

import { bytesAt, damageAt, held, lastAtMost, parametersAt } from "./chi_board_core.js";

/**
 * A budget → χ for every weight that is not held (locked, or set by hand); the same choices as karipap_core/allocate.py.
 *
 * "lagrangian": each weight takes argmin over its options of objective + λ·cost, λ as small as the budget allows. The
 * argmin moves along the weight's convex hull, so all hulls' segments, sorted once by gain per cost, hold the answer
 * to every λ, and a budget is one binary search. What is left over goes, step by step, where it gains most per cost.
 * "proportional": the largest option of cost ≤ t·share, t as large as the budget allows.
 * Mates are chosen for as one, at the sum of their costs and objectives: the first of them stands for all.
 */
export class Allocator {
  constructor(T, budget, rule) {
    this.T = T;
    this.unit = budget.unit;
    this.kind = rule.kind;
    const m = T.model;
    const bytes = this.unit === "bytes";
    this.other = budget.scope !== "model" ? held(m, bytes) : bytes ? m.other_bytes : m.other_parameters;
    this.whole = (bytes ? T.blockBytes : T.blockParameters) + this.other;
    this.perCore = bytes ? T.coreBytes : new Array(T.n).fill(1);
    this.denseCost = Float64Array.from(T.dense, (p, w) => (bytes ? p * T.denseBytes[w] : p));
    // How many options cost less than the dense weight (of mates: than all of them).
    this.last = Int32Array.from(this.denseCost, (cost, w) => {
      if (T.mates[w][0] !== w) return 0;
      const dense = cost * T.mates[w].length;
      let k = T.grids[T.grid[w]].chi.length;
      while (k > 0 && this.networkCost(w, k - 1) >= dense) k--;
      return k;
    });
    T.mates.forEach((mates, w) => { this.last[w] = this.last[mates[0]]; });
    // The largest option that the rule may take: dense, unless the weight is stored in a format whatever it becomes.
    this.top = this.last.map((k, w) => (T.noDense[w] && k > 0 ? k - 1 : k));
    this.share = Float64Array.from(T.share);
    this.objectives = T.objective;
    this.damages = T.damage;
    this.joinMates();
    if (this.kind === "lagrangian") this.all = hullSegments(this);
  }

  /** Gives the first of each group the sums of its group. */
  joinMates() {
    const { T } = this;
    const groups = T.mates.filter((mates, w) => mates.length > 1 && mates[0] === w);
    if (groups.length === 0) return;
    this.objectives = Float32Array.from(T.objective);
    this.damages = T.damage === T.objective ? this.objectives : Float32Array.from(T.damage);
    for (const [first, ...others] of groups) {
      for (const w of others) {
        this.share[first] += T.share[w];
        for (let k = 0; k < this.last[first]; k++) {
          this.objectives[T.start[first] + k] += T.objective[T.start[w] + k];
          if (this.damages !== this.objectives) this.damages[T.start[first] + k] += T.damage[T.start[w] + k];
        }
      }
    }
  }

  /** Cost of the option at index k of weight w alone, where that is a network. */
  coreCost(w, k) {
    const grid = this.T.grids[this.T.grid[w]];
    return this.unit === "bytes" && grid.bytes ? grid.bytes[k] : grid.parameters[k] * this.perCore[w];
  }

  /** The same of w and its mates together. */
  networkCost(w, k) {
    const mates = this.T.mates[w];
    if (mates.length === 1) return this.coreCost(w, k);
    let sum = 0;
    for (const mate of mates) sum += this.coreCost(mate, k);
    return sum;
  }

  /** Cost of the option at index k of weight w and its mates; k = last[w] is dense. */
  optionCost(w, k) {
    return k >= this.last[w] ? this.denseCost[w] * this.T.mates[w].length : this.networkCost(w, k);
  }

  optionObjective(w, k) {
    return k >= this.last[w] ? 0 : this.objectives[this.T.start[w] + k];
  }

  cost(w, chi) {
    if (chi === 0) return this.denseCost[w];
    return this.unit === "bytes" ? bytesAt(this.T, w, chi) : parametersAt(this.T, w, chi);
  }

  measure(chi) {
    let sum = this.other;
    for (let w = 0; w < this.T.n; w++) sum += this.cost(w, chi[w]);
    return sum;
  }

  /** Hold the flagged weights, and all that move with one of them, at their present χ. */
  hold(flags, chi) {
    const held = Uint8Array.from(flags, (_, w) => (this.T.mates[w].some((mate) => flags[mate]) ? 1 : 0));
    this.held = held;
    this.fixed = Int32Array.from(chi);
    this.free = [];
    let cost = this.other, damage = 0;
    for (let w = 0; w < this.T.n; w++) {
      if (held[w]) {
        cost += this.cost(w, chi[w]);
        damage += damageAt(this.T, w, chi[w]);
      } else if (this.T.mates[w][0] === w) this.free.push(w);
    }
    if (this.kind !== "lagrangian") return this;
    const all = this.all;
    let count = 0;
    for (let i = 0; i < all.weight.length; i++) if (!held[all.weight[i]]) count++;
    this.segmentWeight = new Int32Array(count);
    this.segmentOption = new Int32Array(count);
    this.reach = new Float64Array(count); // cost of all up to here
    this.damage = new Float64Array(count);
    for (let i = 0, k = 0; k < count; i++) {
      if (held[all.weight[i]]) continue;
      this.segmentWeight[k] = all.weight[i];
      this.segmentOption[k] = all.option[i];
      this.reach[k] = cost += all.cost[i];
      this.damage[k] = damage += all.damage[i];
      k++;
    }
    return this;
  }

  /** The smallest and the largest budget (kept fractions) that the rule can meet around the weights that are held. */
  range(held = this.held) {
    let low = this.other, high = this.other;
    for (let w = 0; w < this.T.n; w++) {
      low += held[w] ? this.cost(w, this.fixed[w]) : this.optionCost(w, 0) / this.T.mates[w].length;
      high += held[w] ? this.cost(w, this.fixed[w]) : this.optionCost(w, this.top[w]) / this.T.mates[w].length;
    }
    return [low / this.whole, high / this.whole];
  }

  /** χ for every weight at this budget (a kept fraction); the least plan where the budget is below it. */
  allocate(budget) {
    const target = budget * this.whole * (1 + 1e-12);
    const option = this.kind === "lagrangian" ? this.lagrangian(target) : this.proportional(target);
    const out = Int32Array.from(this.fixed);
    for (const w of this.free) {
      const chi = option[w] >= this.last[w] ? 0 : this.T.grids[this.T.grid[w]].chi[option[w]];
      for (const mate of this.T.mates[w]) out[mate] = chi;
    }
    return out;
  }

  lagrangian(target) {
    const option = new Int32Array(this.T.n);
    const end = Math.max(this.free.length, lastAtMost(this.reach, target) + 1);
    for (let k = 0; k < end; k++) option[this.segmentWeight[k]] = this.segmentOption[k];
    this.fill(option, target - (end ? this.reach[end - 1] : target));
    return option;
  }

  /** Spend what the last λ left over: again and again the affordable step with the most objective saved per cost. */
  fill(option, left) {
    const best = (w) => {
      const now = option[w], cost = this.optionCost(w, now), objective = this.optionObjective(w, now);
      let gain = 0, to = now;
      for (let k = now + 1; k <= this.top[w]; k++) {
        const more = this.optionCost(w, k) - cost;
        if (more > left) break;
        const g = (objective - this.optionObjective(w, k)) / more;
        if (g > gain) { gain = g; to = k; }
      }
      return { w, gain, to };
    };
    if (!(left > 0)) return;
    let steps = this.free.map(best).filter((s) => s.gain > 0);
    for (let turn = 0; turn < 4 * this.free.length && steps.length; turn++) {
      let top = 0;
      for (let i = 1; i < steps.length; i++) if (steps[i].gain > steps[top].gain) top = i;
      const { w, to } = steps[top];
      const more = this.optionCost(w, to) - this.optionCost(w, option[w]);
      if (more <= left) {
        left -= more;
        option[w] = to;
      }
      steps[top] = best(w);
      // What no longer has an affordable step never gets one again: `left` only falls.
      if (!(steps[top].gain > 0)) steps = steps.filter((_, i) => i !== top);
    }
  }

  proportional(target) {
    const option = new Int32Array(this.T.n);
    const at = (t) => {
      let sum = this.other;
      for (let w = 0; w < this.T.n; w++) {
        if (this.held[w]) { sum += this.cost(w, this.fixed[w]); continue; }
        if (this.T.mates[w][0] !== w) continue;
        const room = t * this.share[w] * (1 + 1e-12);
        let low = 0, high = this.top[w];
        if (this.optionCost(w, high) <= room) low = high;
        while (low < high) {
          const middle = (low + high + 1) >> 1;
          if (this.optionCost(w, middle) <= room) low = middle;
          else high = middle - 1;
        }
        option[w] = low;
        sum += this.optionCost(w, low);
      }
      return sum;
    };
    let low = 0, high = 0;
    for (const w of this.free) high = Math.max(high, this.optionCost(w, this.top[w]) / this.share[w]);
    if (at(high) <= target) return option;
    for (let i = 0; i < 50; i++) {
      const middle = (low + high) / 2;
      if (at(middle) <= target) low = middle;
      else high = middle;
    }
    at(low);
    return option;
  }

  /** [[kept, Σ damage], …] along the rule's own plans: what the budget slider will give. */
  curve(points = 120) {
    const [low, high] = this.range();
    if (this.kind === "lagrangian") {
      const picks = [];
      let k = this.free.length - 1;
      for (let i = 0; i <= points && this.reach.length; i++) {
        const at = (low + ((high - low) * i) / points) * this.whole;
        while (k + 1 < this.reach.length && this.reach[k + 1] <= at) k++;
        picks.push([this.reach[k] / this.whole, Math.max(0, this.damage[k])]);
      }
      return picks;
    }
    const few = Math.min(points, 40);
    return Array.from({ length: few + 1 }, (_, i) => {
      const chi = this.allocate(low + ((high - low) * i) / few);
      let damage = 0;
      for (let w = 0; w < this.T.n; w++) damage += damageAt(this.T, w, chi[w]);
      return [this.measure(chi) / this.whole, damage];
    });
  }
}

/** Per weight the lower convex hull of (cost, objective) over its options, as steps; all of them by falling gain. */
function hullSegments(allocator) {
  const { T, last, top, objectives, damages } = allocator;
  const most = last.reduce((sum, k) => sum + k + 1, 0);
  const weight = new Int32Array(most), option = new Int32Array(most);
  const cost = new Float64Array(most), damage = new Float64Array(most), gain = new Float64Array(most);
  let n = 0;
  for (let w = 0; w < T.n; w++) {
    if (T.mates[w][0] !== w) continue;
    const at = (k) => T.start[w] + k;
    const first = n;
    // The hull's corners stand in option[first … n − 1], their costs and objectives in `cost` and `gain` for now.
    for (let k = 0; k <= top[w]; k++) {
      const c = allocator.optionCost(w, k), o = k === last[w] ? 0 : objectives[at(k)];
      if (n > first && o >= gain[n - 1]) continue;
      while (n - first > 1) {
        const [before, here] = [gain[n - 2] - gain[n - 1], gain[n - 1] - o];
        if (before * (c - cost[n - 1]) > here * (cost[n - 1] - cost[n - 2])) break;
        n--;
      }
      weight[n] = w;
      option[n] = k;
      cost[n] = c;
      gain[n++] = o;
    }
    for (let i = n - 1; i >= first; i--) {
      const of = (k) => (k === last[w] ? 0 : damages[at(k)]);
      damage[i] = of(option[i]) - (i > first ? of(option[i - 1]) : 0);
      if (i > first) {
        cost[i] -= cost[i - 1];
        gain[i] = (gain[i - 1] - gain[i]) / cost[i];
      } else gain[i] = Infinity;
    }
  }
  const order = byFallingGain(gain.subarray(0, n));
  const pick = (values) => {
    const out = new values.constructor(n);
    for (let i = 0; i < n; i++) out[i] = values[order[i]];
    return out;
  };
  return { weight: pick(weight), option: pick(option), cost: pick(cost), damage: pick(damage) };
}

/**
 * Indices by falling gain ≥ 0, equal ones in order. A number holds the gain's float32 bits and the index, so that the
 * native sort of numbers does it: five times as fast as a comparison for the 260,000 steps of 700 weights.
 */
function byFallingGain(gain) {
  const places = 2 ** 22;
  if (gain.length > places) return Uint32Array.from(gain.keys()).sort((i, j) => gain[j] - gain[i] || i - j);
  const bits = new Uint32Array(new Float32Array(gain).buffer);
  const keys = new Float64Array(gain.length);
  for (let i = 0; i < keys.length; i++) keys[i] = (0x7f800000 - bits[i]) * places + i;
  keys.sort();
  const order = new Uint32Array(keys.length);
  for (let i = 0; i < keys.length; i++) order[i] = keys[i] % places;
  return order;
}
