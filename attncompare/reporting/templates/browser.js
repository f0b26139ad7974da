// The image browser: which image, target, models and methods are shown, and how.

const state = {
  image: 0, target: 0, models: new Set(data.models), methods: new Set(data.methods), view: "overlay",
  opacity: 55, entry: null, step: 1, problem: null,
};
const VIEWS = {overlay: () => state.opacity / 100, map: () => 1, image: () => 0};

// ---- one image's data: inside this file, or in a file beside it that is read when it is asked for

const KEPT = 5;  // images that stay in memory with what was drawn of them
const known = new Map();  // number -> promise of the data; the last asked for is the last
const waiting = new Map();
function receive(number, entry) {
  waiting.get(number)?.(entry);
  waiting.delete(number);
}
function read(number) {
  const inside = pick("entry-" + number);
  if (inside) return Promise.resolve(JSON.parse(inside.textContent));
  return new Promise((resolve, reject) => {
    const missing = () => reject(new Error(`${data.beside}/${number}.js is missing beside this page`));
    const script = el("script", {src: `${data.beside}/${number}.js`, onerror: missing, onload: () => script.remove()});
    waiting.set(number, resolve);
    document.head.append(script);
  });
}
function load(number) {
  const entry = known.get(number) ?? read(number);
  known.delete(number);
  known.set(number, entry);
  for (const old of [...known.keys()].slice(0, -KEPT)) known.delete(old);
  entry.catch(() => known.delete(number));  // it may be there the next time
  return entry;
}

/** Once per entry: its models' pictures, decoded, so that they are shown in the frame that first needs them. */
const decodedPhotos = new WeakMap();
function photos(entry) {
  const decode = model => Object.assign(new Image(), {src: entry.pictures[model.picture]}).decode();
  // A picture that cannot be decoded is no reason to show nothing: its place shows its words.
  if (!decodedPhotos.has(entry)) decodedPhotos.set(entry, Promise.allSettled(entry.models.map(decode)));
  return decodedPhotos.get(entry);
}

/** Once per map: its values on the image. */
const enlargedMaps = new WeakMap();
function fullMap(map, [H, W]) {
  if (!enlargedMaps.has(map)) enlargedMaps.set(map, decodeMap(map).then(small => enlarge(small, H, W)));
  return enlargedMaps.get(map);
}

// ---- pickers

function fillChoices(id, names, chosen, param) {
  const box = pick(id), all = el("button", {type: "button", className: "small", textContent: "all"});
  const none = el("button", {type: "button", className: "small", textContent: "none"});
  const marks = names.map(name => el("input", {type: "checkbox", value: name, checked: chosen.has(name)}));
  const changed = () => {
    chosen.clear();
    marks.filter(mark => mark.checked).forEach(mark => chosen.add(mark.value));
    pick(id + "-count").textContent = `${chosen.size} of ${names.length}`;
    remember(param, chosen.size === names.length ? null : chosen.size ? [...chosen] : [""]);
  };
  marks.forEach(mark => mark.addEventListener("change", () => { changed(); draw(); }));
  all.addEventListener("click", () => { marks.forEach(mark => { mark.checked = true; }); changed(); draw(); });
  none.addEventListener("click", () => { marks.forEach(mark => { mark.checked = false; }); changed(); draw(); });
  box.append(all, none, ...marks.map(mark => el("label", {}, mark, " " + mark.value)));
  changed();
}

/** On the pictures alone: a property of the whole page would have every chart in it styled again. */
function setOpacity() {
  for (const id of ["view", "inside-view"]) pick(id).style.setProperty("--opacity", VIEWS[state.view]());
}
function setView(view) {
  state.view = view;
  document.querySelectorAll("button.view").forEach(one => one.setAttribute("aria-pressed", one.dataset.view === view));
  remember("view", view === "overlay" ? null : view);
  setOpacity();
}
function setImage(number, step = 1) {
  state.step = step;
  state.image = (number + data.images.length) % data.images.length;
  state.target = 0;
  pick("image").value = state.image;
  const targets = data.images[state.image].targets;
  pick("target").replaceChildren(...targets.map((one, i) => new Option(one.label, i)));
  pick("target-picker").hidden = targets.length < 2;
  remember("image", data.images[state.image].name);
  remember("target", null);
}

// ---- what lies in the window is drawn at once, the rest as soon as there is time

let drawing = 0;
const inWindow = one => {
  const box = one.getBoundingClientRect();
  return box.bottom > 0 && box.top < innerHeight;
};
const aMoment = (pause = 0) => new Promise(done => setTimeout(done, pause));

/** Do jobs [element, async function], those in the window first; an older call stops when `draw` is called again. */
async function inOrder(jobs) {
  const mine = drawing, now = jobs.map(([element]) => inWindow(element));
  await Promise.all(jobs.filter((_, i) => now[i]).map(([, job]) => job()));
  return async () => {
    for (const [, job] of jobs.filter((_, i) => !now[i])) {
      await aMoment();
      if (mine !== drawing) return;
      await job();
    }
  };
}

// ---- tiles

/** A name that may break behind its underscores. */
const breakable = name => name.split(/(?<=_)/).flatMap(part => [part, el("wbr")]);

/** A picture and a map above it, which `paintMap` draws. */
function stack(entry, model, map) {
  const label = `where ${map.method} sees the evidence of ${model.model} in ${entry.image}`;
  const canvas = el("canvas", {className: "map", role: "img", "aria-label": label, width: model.size[1], height: model.size[0]});
  return el("div", {className: "stack"}, el("img", {src: entry.pictures[model.picture], alt: "", decoding: "sync"}), canvas);
}

/** The scores of a map, in the order of the run's metrics, and what its method reports of itself. */
function scoresOf(map) {
  const names = new Set([...Object.keys(data.arrows), ...Object.keys(map.scores)].filter(name => name in map.scores));
  return [...names].map(name => `${name}${data.arrows[name] ?? ""} ${map.scores[name].toFixed(3)}`);
}

const pairOf = (model, map) => JSON.stringify([model.model, map.method]);
/** Once per map: its tile. A tile is never used for another map, so that none can show the map of another image. */
const tiles = new WeakMap();
function tile(entry, model, map) {
  if (!tiles.has(map)) tiles.set(map, newTile(entry, model, map));
  return tiles.get(map);
}
function newTile(entry, model, map) {
  const open = el("button", {type: "button", className: "tile", "data-pair": pairOf(model, map)});
  open.title = [...scoresOf(map), "A click takes the image apart by this map."].join("\n");
  const lines = scoresOf(map).slice(0, 2).map(line => el("span", {className: "dim"}, line));
  open.append(stack(entry, model, map), el("span", {className: "caption"}, el("b", {}, ...breakable(map.method)), ...lines));
  open.addEventListener("click", () => { choosePair(model.model, map.method); pick("apart").scrollIntoView({block: "nearest"}); });
  return open;
}

/** Draw the map of a tile, once. */
const painted = new WeakMap();
function paintMap(entry, model, map) {
  const canvas = tile(entry, model, map).querySelector("canvas");
  const draw = async () => paint(canvas, await fullMap(map, model.size), ...model.size, map.scale, map.signed);
  if (!painted.has(map)) painted.set(map, draw());
  return painted.get(map);
}
/**
 * Draw the maps whose places are in the window now, while these still show the image before: all change in one frame,
 * and no frame between is laid out and painted with cards that are empty yet.
 */
function paintSeen(entry) {
  const seen = new Set([...document.querySelectorAll("#view button.tile")].filter(inWindow).map(one => one.dataset.pair));
  const maps = modelsShown(entry).flatMap(model => mapsShown(model).map(map => [model, map]));
  return Promise.all(maps.filter(([model, map]) => seen.has(pairOf(model, map))).map(([model, map]) => paintMap(entry, model, map)));
}
const mapsShown = model => model.maps.filter(map => state.methods.has(map.method));
const modelsShown = entry => entry.models.filter(model => state.models.has(model.model));

function refusals(model) {
  const hidden = model.missing.filter(one => state.methods.has(one.method));
  if (!hidden.length) return [];
  const items = hidden.map(one => el("li", {}, el("b", {}, one.method), ` (${one.status}): ${one.reason}`));
  const count = word => hidden.filter(one => (one.status === "failed") === (word === "failed")).length;
  const words = ["refused", "failed"].filter(count).map(word => `${count(word)} ${word}`).join(", ");
  return [el("details", {open: count("failed") > 0}, el("summary", {}, `${words}, with reasons`), el("ul", {}, ...items))];
}

function modelSection(entry, model) {
  const sure = model.score === null ? "" : model.class ? ` (probability ${model.score.toFixed(2)})` : ` (similarity ${model.score.toFixed(2)})`;
  const explains = model.class ? `explains “${model.class}”${sure}` : `explains its own embedding${sure}`;
  const photo = el("img", {src: entry.pictures[model.picture], alt: `the image ${entry.image}`, decoding: "sync"});
  const plain = el("figure", {className: "tile"}, el("div", {className: "stack"}, photo));
  plain.append(el("figcaption", {className: "caption"}, el("b", {}, "image")));
  const shown = mapsShown(model).map(map => tile(entry, model, map));
  shown.forEach(one => one.removeAttribute("aria-pressed"));  // which one is, `drawApart` says
  return [el("h3", {}, model.model, el("span", {className: "dim"}, " " + explains)), el("div", {className: "gallery"}, plain, ...shown), ...refusals(model)];
}

// ---- everything that depends on the image, the models or the methods

/** What was chosen, or null when another image was chosen while it was read. */
async function chosenEntry(mine) {
  const chosen = data.images[state.image], target = chosen.targets[state.target] || chosen.targets[0];
  let entry, problem = null;
  pick("view").setAttribute("aria-busy", true);
  try {
    entry = await load(target.entry);
    if (mine !== drawing) return null;
    await Promise.all([photos(entry), paintSeen(entry)]);
  } catch (error) {
    problem = error.message;
    entry = {image: chosen.image, pictures: {}, models: []};
  }
  if (mine !== drawing) return null;
  pick("view").removeAttribute("aria-busy");
  state.entry = entry;
  state.problem = problem;
  state.run = data.runs[target.run];
  return entry;
}
/** Why no model is shown. */
function whyNothing() {
  return state.problem ?? (state.models.size ? "No model that is chosen above has maps of this image." : "No model is chosen above.");
}

/** A job that draws a part of the page, hidden until then where it is outside the window: it still shows another image. */
function part(id, job) {
  const element = pick(id);
  element.style.visibility = inWindow(element) ? "" : "hidden";
  return [element, async () => { await job(); element.style.visibility = ""; }];
}

/** Resolves when what lies in the window has been drawn. */
async function draw() {
  const mine = ++drawing, entry = await chosenEntry(mine);
  if (!entry) return;
  const models = modelsShown(entry), nothing = el("p", state.problem ? {role: "alert"} : {className: "dim"}, whyNothing());
  pick("view").replaceChildren(...(models.length ? models.flatMap(model => modelSection(entry, model)) : [nothing]));
  const maps = models.flatMap(model => mapsShown(model).map(map => [tile(entry, model, map), () => paintMap(entry, model, map)]));
  const rest = await inOrder([...maps, part("apart-view", () => drawApart(models)), part("inside-view", () => drawLayers(models))]);
  ahead(mine).then(rest).then(() => prepare(mine));
}

function startBrowser() {
  data.images.forEach((one, i) => pick("image").add(new Option(one.name, i)));
  const chosen = (param, all) => {  // an empty name stands for none; a link of other names only is of another run
    const asked = link.getAll(param), found = asked.filter(name => all.includes(name));
    return new Set(found.length || asked.includes("") ? found : all);
  };
  state.models = chosen("model", data.models);
  state.methods = chosen("method", data.methods);
  const first = data.images.findIndex(one => [one.name, one.image].includes(link.get("image")));
  const target = whole("target", 0);
  setImage(Math.max(0, first));
  if (target in data.images[state.image].targets) pick("target").value = state.target = target;
  if (target) remember("target", String(target));
  fillChoices("models", data.models, state.models, "model");
  fillChoices("methods", data.methods, state.methods, "method");
  state.opacity = pick("opacity").value = Math.min(100, whole("opacity", state.opacity));
  setView(Object.hasOwn(VIEWS, link.get("view")) ? link.get("view") : "overlay");

  pick("image").addEventListener("change", () => { setImage(Number(pick("image").value)); draw(); });
  pick("target").addEventListener("change", () => { state.target = Number(pick("target").value); remember("target", pick("target").value); draw(); });
  pick("before").addEventListener("click", () => { setImage(state.image - 1, -1); draw(); });
  pick("after").addEventListener("click", () => { setImage(state.image + 1); draw(); });
  document.querySelectorAll("button.view").forEach(one => one.addEventListener("click", () => setView(one.dataset.view)));
  pick("opacity").addEventListener("input", () => {
    state.opacity = Number(pick("opacity").value);
    remember("opacity", pick("opacity").value);
    setView("overlay");
  });
  addEventListener("keydown", event => {
    const step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if (!step || event.altKey || event.ctrlKey || event.metaKey || ["INPUT", "SELECT"].includes(event.target.tagName)) return;
    setImage(state.image + step, step);
    draw();
  });
  startApart();
  startLayers();
  for (const [id, name] of [["scale-plain", "sequential"], ["scale-signed", "diverging"]]) {
    paint(pick(id), Float32Array.from({length: 256}, (_, i) => i), 1, 256, [0, 255], name === "diverging");
  }
  draw().finally(startCharts);
}
