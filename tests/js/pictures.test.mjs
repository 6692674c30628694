// What a saved picture is made of. Run: node --test tests/js

import assert from "node:assert/strict";
import { test } from "node:test";

import { footer, framed, json, lines, onPaper, page } from "../../pages/parts/pictures.js";

const wide = (text) => text.length; // a sign is one wide

test("a title is broken at its spaces, a word that is too long where the room ends, and nothing is lost", () => {
  assert.deepEqual(lines("one two three", 7, wide), ["one two", "three"]);
  assert.deepEqual(lines("model.layers.12.self_attn.q_proj of it", 10, wide).join("").replaceAll(" ", ""),
    "model.layers.12.self_attn.q_projofit");
  for (const line of lines("a model.layers.12.self_attn.q_proj b c", 10, wide)) assert.ok(line.length <= 10, line);
  assert.deepEqual(lines("", 10, wide), []);
});

test("the line below names model, text, day and version, and leaves out what there is none of", () => {
  const day = new Date(2026, 2, 5, 23, 59);
  assert.equal(footer({ model: "m", text: "on t", version: "Karipap 1" }, day), "m · on t · 2026-03-05 · Karipap 1");
  assert.equal(footer({ model: "", text: "", version: "Karipap 1" }, day), "2026-03-05 · Karipap 1");
});

test("on paper a chart is white and of its own height, and the chart on the page stays as it was", () => {
  const chart = {
    data: [{ y: new Float32Array([1, 2]) }],
    layout: { width: 300, height: 900, template: { layout: { font: { color: "white" } } }, paper_bgcolor: "black",
      title: { text: "T" }, margin: { l: 8, t: 48 } },
  };
  const before = structuredClone(chart);
  const { layout } = onPaper(chart, { title: "T", height: 360 });
  assert.deepEqual(chart, before);
  assert.equal(layout.paper_bgcolor, "#ffffff");
  assert.equal(layout.height, 360);
  assert.ok(!("width" in layout) && !("title" in layout) && layout.template.layout.font.color !== "white");
  assert.equal(onPaper(chart, { title: "another", height: 360 }).layout.title.text, "T");
});

test("the frame is one SVG with title and note round the figure, in order from the top, names as text", () => {
  const inner = '<?xml version="1.0"?>\n<svg class="main-svg" width="944" height="300"><g/></svg>';
  const svg = framed(inner, 300, "<script> & co", "m · t", wide);
  assert.ok(!svg.includes("<script>") && svg.includes("&#60;script&#62; &#38; co"));
  assert.equal(svg.match(/<svg /g).length, 2);
  const top = Number(svg.match(/<svg x="28" y="(\d+)" class="main-svg"/)[1]);
  const [title, note] = [...svg.matchAll(/<text x="28" y="([\d.]+)"/g)].map((found) => Number(found[1]));
  const total = Number(svg.match(/height="([\d.]+)" viewBox/)[1]);
  assert.ok(title < top && top + 300 < note && note < total);
});

test("a saved page holds the numbers as lists, and no name can end its script", () => {
  const figure = { data: [{ y: new Float32Array([0.5, NaN]), name: "</script><b>" }], layout: { height: 300 } };
  assert.deepEqual(JSON.parse(json(figure)).data[0], { y: [0.5, null], name: "</script><b>" });
  const made = page(figure, "a <b>", "n", "LIBRARY");
  assert.equal(made.match(/<\/script>/g).length, 2);
  assert.ok(made.includes("<h1>a &#60;b&#62;</h1>") && made.includes("LIBRARY"));
});
