"use strict";
// The maps of the features: the tiles' coordinates, coloured by category or label; pointing at a tile shows it.
const root = document.documentElement;
const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const [projection, colour, tip, sheet] = ["projection", "colour", "tip", "sheet"].map((id) => document.getElementById(id));
const data = read("map-data"), palette = read("map-colours");
const elements = [...document.querySelectorAll("[data-arm]")];
const mark = { on: "#D55E00", off: "#9AA3AD66" };
const shapes = { circle: "●", diamond: "◆", square: "■", cross: "✚", "triangle-up": "▲" }; // more categories than colours
const look = (c) => [palette[c % palette.length], Object.keys(shapes)[Math.floor(c / palette.length) % 5]];

function looks() {
  const [kind, number] = colour.value.split(" ");
  if (!kind) return data.category.map(look);
  const has = (i) => kind === "label" ? data.labels[i].includes(Number(number)) : data.category[i] === Number(number);
  return data.tiles.map((_, i) => [has(i) ? mark.on : mark.off, "circle"]);
}

function drawKey() {
  const [kind, number] = colour.value.split(" ");
  const one = kind && (kind === "label" ? data.names : data.categories)[number];
  const rows = kind ? [[mark.on, "circle", one], [mark.off, "circle", `not ${one}`]]
    : data.categories.map((name, c) => [...look(c), name]);
  document.getElementById("key").replaceChildren(...rows.map(([ink, shape, name]) => {
    const entry = document.createElement("span"), dot = document.createElement("b");
    [dot.textContent, dot.style.color] = [shapes[shape], ink];
    entry.append(dot, name);
    return entry;
  }));
}

function layout() {
  const still = innerWidth < 600; // a finger that scrolls must not pan a map
  return {
    template: "none", height: 380, margin: { l: 4, r: 4, t: 4, b: 4 }, hovermode: "closest", dragmode: still ? false : "pan",
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false,
    xaxis: { visible: false }, yaxis: { visible: false, scaleanchor: "x" },
  };
}

function draw() {
  drawKey();
  const [colours, symbols] = [0, 1].map((part) => looks().map((l) => l[part]));
  return Promise.all(elements.map((element) => {
    const points = data.arms[element.dataset.arm][projection.value];
    const marker = { size: 6, opacity: 0.85, color: colours, symbol: symbols };
    const trace = { x: points.map((p) => p[0]), y: points.map((p) => p[1]), mode: "markers", hoverinfo: "none", marker };
    const options = { responsive: true, displayModeBar: false, scrollZoom: innerWidth >= 600, doubleClick: "reset" };
    return Plotly.react(element, [trace], layout(), options);
  }));
}

function show(event) {
  const i = event.points[0].pointNumber, side = 2 * data.side_px;
  const place = [i % data.columns, Math.floor(i / data.columns)].map((n) => `${-n * side}px`).join(" ");
  const picture = document.createElement("i");
  picture.style.background = `url(${sheet.src}) ${place} / ${data.columns * side}px auto`;
  const names = data.labels[i].map((k) => data.names[k]).join(", ") || "no label";
  tip.replaceChildren(picture, `${data.tiles[i]}: ${names}`);
  tip.style.display = "block";
  const box = tip.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(event.event.clientX + 14, innerWidth - box.width - 8))}px`;
  tip.style.top = `${Math.max(4, Math.min(event.event.clientY + 14, innerHeight - box.height - 8))}px`;
}

draw().then(() => {
  for (const element of elements) {
    element.on("plotly_hover", show);
    element.on("plotly_unhover", () => { tip.style.display = "none"; });
  }
  root.dataset.ready = "yes";
});
projection.addEventListener("change", draw);
colour.addEventListener("change", draw);
addEventListener("beforeprint", () => {
  root.dataset.print = "yes"; // the page at the paper's width and in its colours
  document.querySelectorAll("details").forEach((element) => { element.open = true; });
  elements.forEach((element) => Plotly.relayout(element, { width: element.clientWidth }));
});
addEventListener("afterprint", () => {
  delete root.dataset.print;
  elements.forEach((element) => Plotly.relayout(element, { width: null, autosize: true }));
});
