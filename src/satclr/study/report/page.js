"use strict";
const shown = [];
const dark = matchMedia("(prefers-color-scheme: dark)");
const root = document.documentElement;
const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();

function theme() {
  const axis = { gridcolor: css("--line"), zerolinecolor: css("--line"), linecolor: css("--line") };
  const hover = { bgcolor: css("--card"), bordercolor: css("--line"), font: { color: css("--ink") } };
  return { layout: { font: { color: css("--ink") }, xaxis: axis, yaxis: axis, hoverlabel: hover } };
}

async function draw(element, figure) {
  const still = innerWidth < 600 || !element.dataset.arm; // a finger that scrolls must not pan a chart
  const layout = { ...figure.layout, template: theme(), dragmode: still ? false : "pan" };
  const options = { responsive: true, displayModeBar: false, scrollZoom: !still, doubleClick: "reset" };
  await Plotly.newPlot(element, figure.data, layout, options);
  shown.push(element);
}

const repaint = () => shown.forEach((element) => Plotly.relayout(element, { template: theme() }));
const read = (id) => JSON.parse(document.getElementById(id).textContent);

async function maps() {
  const data = read("map-data");
  const projection = document.getElementById("projection");
  const colour = document.getElementById("colour");
  const tip = document.getElementById("tip");
  const sheet = document.getElementById("sheet").src;
  const palette = read("map-colours");
  const elements = [...document.querySelectorAll("[data-arm]")];

  const mark = { on: "#D55E00", off: "#9AA3AD66" };
  const symbols = ["circle", "diamond", "square", "cross", "triangle-up"]; // more categories than colours
  const look = (c) => [palette[c % palette.length], symbols[Math.floor(c / palette.length) % symbols.length]];
  const paint = () => {
    const [kind, number] = colour.value.split(" ");
    if (!kind) return data.category.map(look);
    const has = (i) => kind === "label" ? data.labels[i].includes(Number(number)) : data.category[i] === Number(number);
    return data.tiles.map((_, i) => [has(i) ? mark.on : mark.off, "circle"]);
  };
  const key = () => {
    const [kind, number] = colour.value.split(" ");
    const one = kind && (kind === "label" ? data.names : data.categories)[number];
    const rows = kind ? [[mark.on, "circle", one], [mark.off, "circle", `not ${one}`]]
      : data.categories.map((name, c) => [...look(c), name]);
    const shape = { circle: "●", diamond: "◆", square: "■", cross: "✚", "triangle-up": "▲" };
    document.getElementById("key").replaceChildren(...rows.map(([ink, symbol, name]) => {
      const entry = document.createElement("span"), dot = document.createElement("b");
      [dot.textContent, dot.style.color] = [shape[symbol], ink];
      entry.append(dot, name);
      return entry;
    }));
  };
  const fill = () => { key(); elements.forEach(place); };
  const place = (element) => {
    const looks = paint();
    const points = data.arms[element.dataset.arm][projection.value];
    const xy = { x: [points.map((p) => p[0])], y: [points.map((p) => p[1])], "marker.color": [looks.map((l) => l[0])], "marker.symbol": [looks.map((l) => l[1])] };
    Plotly.update(element, xy, { "xaxis.autorange": true, "yaxis.autorange": true });
  };
  const show = (event) => {
    const i = event.points[0].pointNumber;
    const side = 2 * data.side_px;
    const place = [i % data.columns, Math.floor(i / data.columns)].map((n) => `${-n * side}px`).join(" ");
    const picture = document.createElement("i");
    picture.style.background = `url(${sheet}) ${place} / ${data.columns * side}px auto`;
    const names = data.labels[i].map((k) => data.names[k]).join(", ") || "no label";
    tip.replaceChildren(picture, `${data.tiles[i]}: ${names}`);
    tip.style.display = "block";
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(event.event.clientX + 14, innerWidth - box.width - 8))}px`;
    tip.style.top = `${Math.max(4, Math.min(event.event.clientY + 14, innerHeight - box.height - 8))}px`;
  };
  for (const element of elements) {
    await draw(element, read("chart-map"));
    element.on("plotly_hover", show);
    element.on("plotly_unhover", () => { tip.style.display = "none"; });
  }
  projection.addEventListener("change", fill);
  colour.addEventListener("change", fill);
  fill();
}

async function start() {
  for (const element of document.querySelectorAll("[data-chart]")) {
    await draw(element, read(`chart-${element.dataset.chart}`));
  }
  if (document.getElementById("map-data")) await maps();
  root.dataset.ready = "yes";
}

dark.addEventListener("change", repaint);
addEventListener("beforeprint", () => {
  root.dataset.print = "yes"; // the page at the paper's width and in its colours, so that charts are drawn to fit
  document.querySelectorAll("details").forEach((element) => { element.open = true; });
  shown.forEach((element) => Plotly.relayout(element, { template: theme(), width: element.clientWidth }));
});
addEventListener("afterprint", () => {
  delete root.dataset.print;
  shown.forEach((element) => Plotly.relayout(element, { template: theme(), width: null, autosize: true }));
});
start();
