// Saves a figure as PNG, SVG or a page of its own, with its title above and a line of where it comes from below.
// Nothing is made before a button is pressed; the figure's data is what the chart on the page already holds.

const WIDE = 1000; // pixels of a picture; a PNG has twice as many, for sharp print
const EDGE = 28;
const SCALE = 2;
const FONT = "Arial, Helvetica, sans-serif"; // on every machine: an SVG takes no font along
const INK = "#1d2328", PALE = "#565e64", PAPER = "#ffffff";
const TITLE = { size: 20, line: 26 }, NOTE = { size: 12.5, line: 18 };

/** Text in lines no wider than `width`, where `measure` gives a text's width; a word that is too long is broken. */
export function lines(text, width, measure) {
  const found = [];
  let line = "";
  for (let word of text.split(/\s+/).filter(Boolean)) {
    if (line && measure(`${line} ${word}`) <= width) {
      line += ` ${word}`;
      continue;
    }
    if (line) found.push(line);
    while (measure(word) > width && word.length > 1) {
      let end = word.length - 1;
      while (end > 1 && measure(word.slice(0, end)) > width) end -= 1;
      found.push(word.slice(0, end));
      word = word.slice(end);
    }
    line = word;
  }
  return line ? [...found, line] : found;
}

export const escape = (text) =>
  String(text).replace(/[&<>"']/g, (sign) => `&#${sign.charCodeAt(0)};`);

/** The line below: model, text, the day, the version. */
export const footer = (picture, now = new Date()) => {
  const two = (number) => String(number).padStart(2, "0");
  const day = `${now.getFullYear()}-${two(now.getMonth() + 1)}-${two(now.getDate())}`;
  return [picture.model, picture.text, day, picture.version].filter(Boolean).join(" · ");
};

/** A copy of a chart's data and layout on white, whatever the theme in view, without the size it has on the page. */
export function onPaper(chart, picture) {
  const data = structuredClone(chart.data);
  const { width, height, template, ...rest } = chart.layout;
  const layout = structuredClone(rest);
  const axis = { linecolor: "#9aa1a6", tickfont: { color: PALE }, title: { font: { color: PALE, size: 13 } } };
  layout.template = {
    layout: {
      colorway: template?.layout?.colorway,
      font: { family: FONT, size: 13, color: INK },
      xaxis: axis,
      yaxis: axis,
    },
  };
  layout.paper_bgcolor = layout.plot_bgcolor = PAPER;
  layout.height = picture.height;
  if (layout.title?.text?.replaceAll("<br>", " ") === picture.title) {
    delete layout.title;
    layout.margin = { ...layout.margin, t: 16 };
  }
  return { data, layout };
}

/** One SVG from the figure's own (`inner`, WIDE − 2·EDGE by `height`), the title over it and the note under it. */
export function framed(inner, height, title, note, measure) {
  const room = WIDE - 2 * EDGE;
  const above = lines(title, room, (text) => measure(text, TITLE.size, true));
  const below = lines(note, room, (text) => measure(text, NOTE.size, false));
  const top = EDGE + above.length * TITLE.line;
  const bottom = top + height + 14;
  const total = bottom + below.length * NOTE.line + EDGE - 8;
  const text = (rows, y, { size, line }, color, weight) =>
    rows.map((row, i) =>
      `<text x="${EDGE}" y="${y + i * line + size}" font-family="${FONT}" font-size="${size}" font-weight="${weight}" ` +
      `fill="${color}">${escape(row)}</text>`).join("");
  const figure = inner.replace(/^[\s\S]*?<svg /, `<svg x="${EDGE}" y="${top}" `);
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="${WIDE}" ` +
    `height="${total}" viewBox="0 0 ${WIDE} ${total}"><title>${escape(title)}</title>` +
    `<rect width="100%" height="100%" fill="${PAPER}"/>` +
    text(above, EDGE - 6, TITLE, INK, 700) + figure + text(below, bottom, NOTE, PALE, 400) + "</svg>"
  );
}

/** JSON that may stand in a script of a page: arrays of numbers as lists, no sign that could end the script. */
export const json = (value) =>
  JSON.stringify(value, (_, part) => (ArrayBuffer.isView(part) ? Array.from(part) : part)).replace(/</g, "\\u003c");

/** A page that needs no network: the figure with its hover labels, and the library that draws it. */
export function page({ data, layout }, title, note, library) {
  return `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>${escape(title)}</title>
<style>
body { font-family: ${FONT}; color: ${INK}; background: ${PAPER}; max-width: 1100px; margin: 0 auto; padding: ${EDGE}px; }
h1 { font-size: ${TITLE.size}px; line-height: 1.3; margin: 0 0 8px; overflow-wrap: anywhere; }
p { font-size: ${NOTE.size}px; line-height: 1.45; color: ${PALE}; margin: 14px 0 0; overflow-wrap: anywhere; }
</style>
<h1>${escape(title)}</h1>
<div id="figure" style="height: ${layout.height}px"></div>
<p>${escape(note)}</p>
<script>${library}</script>
<script>
const figure = ${json({ data, layout })};
Plotly.newPlot("figure", figure.data, figure.layout, { responsive: true, displayModeBar: false });
</script>
</html>
`;
}

function measured(text, size, bold) {
  const pen = document.createElement("canvas").getContext("2d");
  pen.font = `${bold ? "bold " : ""}${size}px ${FONT}`;
  return pen.measureText(text).width;
}

async function drawn(paper, picture, note) {
  const height = paper.layout.height;
  const inner = await window.Plotly.toImage(
    { ...paper, config: {} },
    { format: "svg", width: WIDE - 2 * EDGE, height, imageDataOnly: true },
  );
  return framed(inner, height, picture.title, note, measured);
}

async function raster(svg) {
  const image = new Image();
  image.src = URL.createObjectURL(new Blob([svg], { type: "image/svg+xml" }));
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.width = SCALE * image.width;
  canvas.height = SCALE * image.height;
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  URL.revokeObjectURL(image.src);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

async function library(address) {
  const answer = await fetch(address);
  if (!answer.ok || !answer.headers.get("content-type").includes("javascript")) throw new Error("no library");
  return answer.text();
}

async function made(kind, chart, picture) {
  const note = footer(picture), paper = onPaper(chart, picture);
  if (kind === "html") {
    return new Blob([page(paper, picture.title, note, await library(picture.library))], { type: "text/html" });
  }
  const svg = await drawn(paper, picture, note);
  return kind === "svg" ? new Blob([svg], { type: "image/svg+xml" }) : raster(svg);
}

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/** Takes the numbers out of a map's cells while it is narrower than they need, and puts them back. */
function fit(chart, room) {
  const look = () => chart.classList.toggle("k-crowded", chart.clientWidth < room);
  const watch = new ResizeObserver(look);
  watch.observe(chart);
  return () => watch.disconnect();
}

export default function pictures({ data, parentElement }) {
  const strip = parentElement.querySelector(".picture");
  const said = strip.querySelector("[role=status]");
  const box = () => document.querySelector(`.st-key-${CSS.escape(data.chart)}`);
  for (const button of strip.querySelectorAll("button")) {
    const kind = button.value;
    button.setAttribute("aria-label", `Save the figure as ${button.textContent}: ${data.title}`);
    button.onclick = async () => {
      const chart = box().querySelector(".js-plotly-plot");
      button.disabled = true;
      said.textContent = "";
      try {
        save(await made(kind, chart, data), `${data.file}.${kind}`);
      } catch (error) {
        said.textContent = `No ${button.textContent} could be made: reload the page and try again.`;
        console.warn(error);
      }
      button.disabled = false;
    };
  }
  return data.room && box() ? fit(box(), data.room) : undefined;
}
