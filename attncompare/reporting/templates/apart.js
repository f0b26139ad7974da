// Take the image apart: the curves of one map on the chosen image, and the very pictures they were scored on.

const apart = {model: link.get("of") || "", method: link.get("by") || "", step: whole("step", 0), drawing: 0};

function choosePair(model, method) {
  apart.model = model;
  apart.method = method;
  remember("of", model);
  remember("by", method);
  drawApart(modelsShown(state.entry));
}

function fillSelect(select, names, wanted) {
  select.replaceChildren(...names.map(name => new Option(name, name)));
  select.value = names.includes(wanted) ? wanted : names[0] ?? "";
  return select.value;
}

const curveOf = text => Float32Array.from(new Int16Array(bytes(text).buffer), value => value / 32767);
const LINES = ["", "6 4", "2 3"];

/** The curves as a drawing, with a line at the chosen step. */
function curveChart(curves, n, alt) {
  const W = 360, H = 200, left = 38, bottom = 34, top = 8, right = 8, space = "http://www.w3.org/2000/svg";
  const low = Math.min(0, ...curves.flatMap(one => [...one.scores])), high = Math.max(0.1, ...curves.flatMap(one => [...one.scores]));
  const x = share => left + share * (W - left - right), y = score => H - bottom - (score - low) / (high - low) * (H - bottom - top);
  const svg = document.createElementNS(space, "svg");
  const add = (tag, props, text) => {
    const made = document.createElementNS(space, tag);
    Object.entries(props).forEach(([name, value]) => made.setAttribute(name, value));
    if (text !== undefined) made.textContent = text;
    svg.append(made);
    return made;
  };
  svg.setAttribute("viewBox", `0 0 ${W} ${H}`);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", alt);
  for (const part of [0, 0.25, 0.5, 0.75, 1]) {
    const score = low + part * (high - low);
    add("line", {x1: left, x2: W - right, y1: y(score), y2: y(score), class: "grid"});
    add("text", {x: left - 5, y: y(score) + 4, "text-anchor": "end"}, score.toFixed(2));
    add("text", {x: x(part), y: H - bottom + 14, "text-anchor": part === 1 ? "end" : "middle"}, `${100 * part} %`);
  }
  add("text", {x: x(0.5), y: H - 4, "text-anchor": "middle"}, "share of the image that has changed");
  curves.forEach((one, i) => {
    const points = [...one.scores].map((score, k) => `${x(k / n)},${y(score)}`).join(" ");
    add("polyline", {points, class: "curve line" + i, "stroke-dasharray": LINES[i % 3]});
  });
  const cursor = add("line", {y1: top, y2: H - bottom, class: "cursor"});
  const dots = curves.map((_, i) => add("circle", {r: 4, class: "dot line" + i}));
  const move = k => {
    cursor.setAttribute("x1", x(k / n));
    cursor.setAttribute("x2", x(k / n));
    dots.forEach((dot, i) => {
      dot.setAttribute("cx", x(k / n));
      dot.setAttribute("cy", y(curves[i].scores[Math.min(k, curves[i].scores.length - 1)]));
    });
  };
  return {svg, move};
}

/** Once per picture of an entry: its pixels. */
const decodedPictures = new WeakMap();
function pixelsOf(entry, number) {
  if (!decodedPictures.has(entry)) decodedPictures.set(entry, new Map());
  const known = decodedPictures.get(entry);
  if (!known.has(number)) known.set(number, picture(entry.pictures[number]).then(image => pixels(image)));
  return known.get(number);
}

/** What both kinds of curves start from and end at, as ImageData. */
function ends(entry, model, how) {
  const number = name => name === "image" ? model.picture : model.baselines[name];
  return Promise.all([how.from, how.to].map(name => pixelsOf(entry, number(name))));
}

/** Once per map and kind of curve: at which step each pixel changes; of cells the page is told, pixels it orders itself. */
const knownSteps = new WeakMap();
function stepsOf(run, model, map, how) {
  if (!knownSteps.has(map)) knownSteps.set(map, {});
  return knownSteps.get(map)[how.measure] ??= findSteps(run, model, map, how);
}
async function findSteps(run, model, map, how) {
  const [H, W] = model.size;
  if (run.cells) return spreadCells(new Uint16Array(bytes(map.cells[how.measure]).buffer), run.cells, H, W);
  const ties = new Uint32Array(bytes(run.ties[H * W]).buffer);
  return changeSteps(await fullMap(map, model.size), {steps: model.steps, sign: how.sign, ties});
}

const kindsOf = (run, map) => run.curves.filter(how => how.measure in map.curves);
/** Where the curves of one map start and end, and the step of each pixel. */
function changesOf(run, entry, model, map) {
  return Promise.all(kindsOf(run, map).map(async how => {
    const [from, to] = await ends(entry, model, how);
    return {how, from, to, scores: curveOf(map.curves[how.measure]), steps: await stepsOf(run, model, map, how)};
  }));
}

/** What `drawApart` needs of an image that is not shown yet. */
async function prepareApart(run, entry) {
  const models = modelsShown(entry), model = models.find(one => one.model === apart.model) ?? models[0];
  const map = model?.maps.find(one => one.method === apart.method) ?? model?.maps[0];
  if (map && Object.keys(model.baselines).length) await changesOf(run, entry, model, map);
}

function sayApart(words) {
  pick("apart-view").replaceChildren(el("p", {className: "dim"}, words));
  ["apart-scores", "apart-note", "step-words"].forEach(id => { pick(id).textContent = ""; });
  ["step", "step-play"].forEach(id => { pick(id).disabled = true; });
  apart.show = null;
}

/** Everything below “take the image apart” for the chosen image and pair. */
async function drawApart(models) {
  const run = state.run, drawing = ++apart.drawing, entry = state.entry;
  const name = fillSelect(pick("apart-model"), models.map(one => one.model), apart.model);
  const model = models.find(one => one.model === name);
  const method = fillSelect(pick("apart-method"), model ? model.maps.map(one => one.method) : [], apart.method);
  const map = model?.maps.find(one => one.method === method);
  document.querySelectorAll("button.tile").forEach(one => one.setAttribute("aria-pressed", one.dataset.pair === JSON.stringify([name, method])));
  if (!map) return sayApart(whyNothing());
  if (!kindsOf(run, map).length) return sayApart("This run scored no deletion or insertion of this map.");
  if (!Object.keys(model.baselines).length) return sayApart("This run was made by an earlier version; run the benchmark again to see its pictures.");
  const n = model.steps;
  const parts = (await changesOf(run, entry, model, map)).map(one => ({
    ...one, canvas: el("canvas", {role: "img"}), words: el("figcaption", {className: "caption"}),
  }));
  if (drawing !== apart.drawing) return;  // another image or pair was chosen meanwhile
  const alt = parts.map(one => `${one.how.name} of ${method} on ${name}: area ${map.scores[one.how.measure] ?? "not defined"}`).join("; ");
  const chart = curveChart(parts, n, alt), last = parts[0].scores.length - 1;
  const show = k => {
    chart.move(k);
    pick("step-words").textContent = `step ${k} of ${n}: ${(100 * k / n).toFixed(0)} % changed`;
    parts.forEach((one, i) => {
      drawChanged(one.canvas, one.from, one.to, one.steps, k);
      const words = `${one.how.name}: score ${one.scores[k].toFixed(3)}`;
      one.canvas.setAttribute("aria-label", `${entry.image} after ${k} of ${n} steps of ${words}`);
      one.words.replaceChildren(el("i", {className: "key line" + i}), words);
    });
  };
  ["step", "step-play"].forEach(id => { pick(id).disabled = false; });
  pick("step").max = last;
  pick("step").value = apart.step = Math.min(apart.step, last);
  apart.show = show;
  pick("apart-view").replaceChildren(...parts.map(one => el("figure", {}, one.canvas, one.words)), el("figure", {className: "wide"}, chart.svg));
  pick("apart-scores").textContent = `${method} on ${name}: ${scoresOf(map).join(", ")}`;
  pick("apart-note").textContent = run.note + (model.kept ? ` The picture is kept as a ${model.kept}.` : "");
  show(apart.step);
}

function startApart() {
  pick("apart-model").addEventListener("change", () => choosePair(pick("apart-model").value, apart.method));
  pick("apart-method").addEventListener("change", () => choosePair(pick("apart-model").value, pick("apart-method").value));
  pick("step").addEventListener("input", () => {
    apart.step = Number(pick("step").value);
    remember("step", apart.step || null);
    apart.show?.(apart.step);
  });
  play(pick("step-play"), pick("step"), 250);
}

/** A button that moves a slider on and starts again at its end. */
function play(button, slider, pause) {
  let timer = 0;
  const stop = () => { clearInterval(timer); timer = 0; button.textContent = "▶ play"; };
  button.addEventListener("click", () => {
    if (timer) return stop();
    button.textContent = "❚❚ stop";
    timer = setInterval(() => {
      if (slider.disabled) return stop();
      slider.value = Number(slider.value) >= Number(slider.max) ? slider.min : Number(slider.value) + 1;
      slider.dispatchEvent(new Event("input"));
    }, pause);
  });
}
