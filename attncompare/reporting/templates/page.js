// What every part of the page shares: its data, its state in the link, the theme, the tables and the charts.

const data = JSON.parse(document.getElementById("data").textContent);
const COLORS = {sequential: bytes(data.colors.sequential), diverging: bytes(data.colors.diverging)};
const pick = id => document.getElementById(id);

/** An element with properties, attributes (aria-*, data-*, role) and children. */
function el(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name in made && !name.includes("-")) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// ---- the state of the page, kept in the link

const link = new URLSearchParams(location.hash.slice(1));
/** A whole number of the link, at least 0, or what stands for anything else that was written there. */
const whole = (name, otherwise) => /^\d{1,6}$/.test(link.get(name) ?? "") ? Number(link.get(name)) : otherwise;
let writing = 0, leaving = false;
/** Keep a value, or several, in the link; null takes it out. Browsers count changes of the link: a slider makes few. */
function remember(name, value) {
  link.delete(name);
  if (Array.isArray(value)) value.forEach(one => link.append(name, one));
  else if (value !== null) link.set(name, value);
  clearTimeout(writing);
  writing = setTimeout(() => { if (!leaving) history.replaceState(null, "", "#" + link); }, 50);
}
// Another link was put into the address of this page; what the page itself writes there does not come by here.
addEventListener("hashchange", () => { leaving = true; location.reload(); });

// ---- light and dark

const THEMES = ["auto", "light", "dark"];
function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  pick("theme").textContent = "theme: " + theme;
  document.querySelectorAll(".chart.drawn").forEach(chart => Plotly.relayout(chart, themed({})));
}
function themed(layout) {
  const look = getComputedStyle(document.documentElement);
  const line = look.getPropertyValue("--line").trim();
  return {...layout, "font.color": look.getPropertyValue("--fg").trim(), "xaxis.gridcolor": line, "yaxis.gridcolor": line};
}
pick("theme").addEventListener("click", () => {
  const next = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % 3];
  setTheme(next);
  remember("theme", next === "auto" ? null : next);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTheme(document.documentElement.dataset.theme));
setTheme(THEMES.includes(link.get("theme")) ? link.get("theme") : "auto");

// ---- tables: a click on a head sorts by it, best first

document.querySelectorAll("table.sortable").forEach((table, number) => {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0], written = [...body.rows], asked = whole("sort-" + number, -1);
  const sort = column => {
    const head = heads[column];
    const sign = head.dataset.better === "higher" ? -1 : 1;
    const value = row => row.cells[column].dataset.value === "" ? Infinity : sign * parseFloat(row.cells[column].dataset.value);
    const key = column ? value : row => row.cells[0].textContent.trim();
    const rows = written.map(row => [key(row), row]);  // ties stay as written, whatever was clicked before
    rows.sort(([a], [b]) => (a > b) - (a < b)).forEach(([, row]) => body.append(row));
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", sign < 0 ? "descending" : "ascending");
  };
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    sort(column);
    remember("sort-" + number, String(column));
  }));
  if (asked in heads) sort(asked);
});

// ---- charts: the library and each chart start when they come near the window

function startPlotly() {
  if (window.Plotly) return;
  document.head.append(el("script", {textContent: pick("plotly").textContent}));
}
function drawChart(box, size = {autosize: true}) {
  startPlotly();
  const group = data.charts[box.dataset.chart], chart = group[box.dataset.variant || 0];
  const layout = {...chart.layout, ...size}, hidden = hiddenIn(box.closest(".group"));
  box.setAttribute("aria-label", chart.alt);
  box.closest(".chartbox").querySelector("h4").textContent = chart.heading;
  const traces = chart.data.map(trace => ({...trace, visible: !hidden.has(trace.name)}));
  Plotly.react(box, traces, layout, {responsive: true, displaylogo: false, displayModeBar: false});
  Plotly.relayout(box, themed({}));
  box.classList.add("drawn");
}
const near = new IntersectionObserver(seen => seen.filter(one => one.isIntersecting).forEach(one => {
  near.unobserve(one.target);
  drawChart(one.target);
}), {rootMargin: "300px"});
/** To be called when the page has its height: before, every chart is near the window. */
const startCharts = () => document.querySelectorAll(".chart").forEach(box => near.observe(box));
document.querySelectorAll("select.variants").forEach(select => {
  const box = pick(select.dataset.box), asked = whole(box.id, 0);
  if (asked in select.options) box.dataset.variant = select.value = asked;
  select.addEventListener("change", () => {
    box.dataset.variant = select.value;
    remember(box.id, select.value === "0" ? null : select.value);
    drawChart(box);
  });
});

// ---- on paper: every chart, light, as wide as its place there

const PAPER = {one: 690, of_two: 340};  // pixels of A4 between its margins, and of half of it; report.css has them too
let themeOnScreen = null;
addEventListener("beforeprint", () => {
  if (themeOnScreen !== null) return;
  themeOnScreen = document.documentElement.dataset.theme;
  setTheme("light");
  document.querySelectorAll(".chart").forEach(box => {
    const alone = box.closest(".charts").children.length === 1;
    drawChart(box, {autosize: false, width: alone ? PAPER.one : PAPER.of_two});
  });
});
addEventListener("afterprint", () => {
  document.querySelectorAll(".chart").forEach(box => drawChart(box));
  setTheme(themeOnScreen ?? document.documentElement.dataset.theme);
  themeOnScreen = null;
});

// ---- one legend for all charts of a group: its buttons hide and show methods

const DASHES = {solid: "", dash: "6 3", dot: "2 3", dashdot: "6 3 2 3", longdash: "10 3", longdashdot: "10 3 2 3"};
const SYMBOLS = {circle: "●", diamond: "◆", "triangle-up": "▲", cross: "✚", x: "✖", star: "★", "square-open": "□", "circle-open": "○", "diamond-open": "◇"};
function hiddenIn(group) {
  const off = group.querySelectorAll("button.trace[aria-pressed=false]");
  return new Set([...off].map(one => one.dataset.name));
}
document.querySelectorAll("button.trace").forEach(button => {
  const {name, color, dash, symbol} = button.dataset, group = button.closest(".group"), hides = "hide-" + group.dataset.number;
  const key = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  key.setAttribute("viewBox", "0 0 30 12");
  key.setAttribute("aria-hidden", "true");
  const line = document.createElementNS(key.namespaceURI, "line"), mark = document.createElementNS(key.namespaceURI, "text");
  Object.entries({x1: 0, x2: 30, y1: 6, y2: 6, stroke: color, "stroke-width": 2, "stroke-dasharray": DASHES[dash]}).forEach(([name, value]) => line.setAttribute(name, value));
  Object.entries({x: 15, y: 10, "text-anchor": "middle", fill: color}).forEach(([name, value]) => mark.setAttribute(name, value));
  mark.textContent = SYMBOLS[symbol];
  key.append(group.dataset.kind === "points" ? mark : line);
  button.prepend(key);
  button.setAttribute("aria-pressed", !link.getAll(hides).includes(name));
  button.addEventListener("click", () => {
    button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") === "false");
    const hidden = [...hiddenIn(group)];
    remember(hides, hidden.length ? hidden : null);
    group.querySelectorAll(".chart.drawn").forEach(box => drawChart(box));
  });
});
