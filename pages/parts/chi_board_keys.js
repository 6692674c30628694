// The board's keys: what they do to a cell, a heading or the budget. Mixed into the Board (chi_board.js).

import { budgetFigure, keptAt, nearest, step } from "./chi_board_core.js";

export const keys = {
  key(event) {
    if (event.key === "Escape" && this.drag) {
      this.cancel();
      event.preventDefault();
      return;
    }
    const z = event.key.toLowerCase();
    if ((event.ctrlKey || event.metaKey) && (z === "z" || z === "y")) {
      this.flush();
      this.history?.(z === "y" || event.shiftKey ? "redo" : "undo");
      event.preventDefault();
      event.stopPropagation();
      return;
    }
    if (this.drag || !this.grid) return;
    this.hover = null;
    const it = this.itemAt(event);
    const handled = it ? this.keyOnItem(event, it) : event.target === this.plot.el && this.keyOnBudget(event);
    if (!handled) return;
    // Streamlit has global one-letter shortcuts.
    event.preventDefault();
    event.stopPropagation();
  },

  keyOnItem(event, it) {
    const arrows = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };
    const arrow = arrows[event.key];
    if (arrow && (event.ctrlKey || event.altKey || event.metaKey)) {
      this.focus(this.grid.neighbour(it, ...arrow), true);
      return true;
    }
    if (event.ctrlKey || event.metaKey || event.altKey) return false;
    const up = arrow && (event.key === "ArrowRight" || event.key === "ArrowUp") ? 1 : -1;
    if (arrow) {
      this.stepped(it, up);
      return true;
    }
    const page = { PageUp: 0.1, PageDown: -0.1 }[event.key];
    if (page) this.edit(it, (w) => this.moved(w, page));
    else if (event.key === "Home") this.edit(it, (w) => nearest(this.T, w, 0));
    else if (event.key === "End" || event.key === "d") this.edit(it, () => 0);
    else if (event.key === "l") this.toggleLock(it);
    else if (event.key === "r") this.release(it.weights);
    else if (event.key === "Enter" || event.key === " ") {
      if (it.kind === "cell" && it.weights.length === 1) {
        if (this.select(it)) this.commit("select");
        this.schedule();
      } else if (it.kind !== "role" && it.kind !== "all") {
        const line = this.grid.rows[it.r - 1];
        if (line.folds !== undefined) this.fold(line.folds);
      }
    } else return false;
    return true;
  },

  /** One option of a weight, or a hundredth of the size of several. */
  stepped(it, by) {
    const one = it.kind === "cell" && it.weights.length === 1;
    this.edit(it, (w) => (one ? step(this.T, w, this.chi[w], by) : this.moved(w, 0.01 * by)));
  },

  /** χ after moving by a part of the dense size, at least one option on. */
  moved(w, delta) {
    const chi = nearest(this.T, w, Math.min(1, keptAt(this.T, w, this.chi[w])) + delta);
    return chi === this.chi[w] ? step(this.T, w, chi, Math.sign(delta)) : chi;
  },

  edit(it, chiOf) {
    for (const w of this.free(it.weights)) {
      const chi = chiOf(w);
      if (chi === this.chi[w]) continue;
      this.chi[w] = chi;
      this.hand[w] = 1;
    }
    this.select(it);
    this.later(it.kind === "cell" ? "cell" : "head");
  },

  keyOnBudget(event) {
    if (event.key === "r" && !event.ctrlKey && !event.metaKey && !event.altKey) {
      this.release(Array.from(this.hand.keys()));
      return true;
    }
    const by = { ArrowRight: 0.005, ArrowUp: 0.005, ArrowLeft: -0.005, ArrowDown: -0.005, PageUp: 0.05, PageDown: -0.05 };
    // What is shown follows with the next frame, and keys may come faster.
    const now = this.cause === "budget" ? this.asked : this.shown[budgetFigure(this.budget)];
    let to = null;
    if (event.key in by) to = now + by[event.key] * (event.shiftKey ? 0.2 : 1);
    else if (event.key === "Home") to = this.plot.reach[0];
    else if (event.key === "End") to = this.plot.reach[1];
    if (to === null) return false;
    if (this.cause !== "budget") this.flush();
    this.toBudget(to);
    this.later("budget");
    return true;
  },
};
