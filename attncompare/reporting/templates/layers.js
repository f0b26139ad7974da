// Inside the models: attention of every block and head, activations of every stage and its strongest channels.

const inside = {model: link.get("inside") || "", layer: whole("layer", -1), part: whole("part", 0), drawing: 0};  // layer -1: the last one

/** The maps of a layer, each from 0 to 1. */
const decodedLayers = new WeakMap();
function layerMaps(layer) {
  const [h, w] = layer.grid;
  const split = all => layer.index.map((_, i) => ({values: Float32Array.from(all.subarray(i * h * w, (i + 1) * h * w), v => v / 255), h, w}));
  if (!decodedLayers.has(layer)) decodedLayers.set(layer, gray(layer.picture).then(split));
  return decodedLayers.get(layer);
}

const partName = (layer, part) => layer.kind === "channel" ? `channel ${layer.index[part]}` : layer.index[part] < 0 ? "mean of the heads" : `head ${layer.index[part]}`;
const amount = (layer, part) => layer.kind === "channel" ? `mean ${layer.mean[part]}` : `peak ${(100 * layer.peak[part]).toFixed(1)} %`;

/** A picture under one map of a layer. */
function layerStack(entry, model, layer, maps, part) {
  const [H, W] = model.size, canvas = el("canvas", {className: "map", role: "img"});
  canvas.setAttribute("aria-label", `${partName(layer, part)} of ${layer.layer} in ${model.model} on ${entry.image}`);
  paint(canvas, enlarge(maps[part], H, W), H, W, [0, 1], layer.signed[part]);
  return el("div", {className: "stack"}, el("img", {src: entry.pictures[model.picture], alt: ""}), canvas);
}

async function drawLayers(models) {
  const drawing = ++inside.drawing, entry = state.entry;
  const name = fillSelect(pick("inside-model"), models.map(one => one.model), inside.model);
  const model = models.find(one => one.model === name);
  const layers = model ? model.layers : [];
  ["layer", "part", "layer-play"].forEach(id => { pick(id).disabled = !layers.length; });
  if (!layers.length) {
    pick("inside-view").replaceChildren(el("p", {className: "dim"}, model ? model.no_layers : whyNothing()));
    pick("part").replaceChildren();
    pick("layer-words").textContent = "";
    return;
  }
  const at = inside.layer < 0 || inside.layer >= layers.length ? layers.length - 1 : inside.layer, layer = layers[at];
  const part = Math.min(inside.part, layer.index.length - 1);
  const maps = await layerMaps(layer);
  if (drawing !== inside.drawing) return;
  pick("layer").max = layers.length - 1;
  pick("layer").value = at;
  pick("layer-words").textContent = `${layer.kind === "channel" ? "stage" : "block"} ${at + 1} of ${layers.length}: ${layer.layer}`;
  pick("part").replaceChildren(...layer.index.map((_, i) => new Option(`${partName(layer, i)} (${amount(layer, i)})`, i)));
  pick("part").value = part;
  const big = el("figure", {className: "big"}, layerStack(entry, model, layer, maps, part));
  big.append(el("figcaption", {className: "caption"}, el("b", {}, partName(layer, part)), ` ${amount(layer, part)}, ${layer.grid.join(" × ")} places`));
  const strip = layer.index.map((_, i) => {
    const open = el("button", {type: "button", className: "tile", "aria-pressed": i === part});
    open.append(layerStack(entry, model, layer, maps, i), el("span", {className: "caption"}, partName(layer, i)));
    open.addEventListener("click", () => choosePart(i));
    return open;
  });
  pick("inside-view").replaceChildren(big, el("div", {className: "gallery"}, ...strip));
}

const redrawLayers = () => drawLayers(modelsShown(state.entry));
function choosePart(part) {
  inside.part = part;
  remember("part", part || null);
  redrawLayers();
}

function startLayers() {
  pick("inside-model").addEventListener("change", () => {
    Object.assign(inside, {model: pick("inside-model").value, layer: -1, part: 0});
    remember("inside", inside.model);
    remember("layer", null);
    remember("part", null);
    redrawLayers();
  });
  pick("layer").addEventListener("input", () => {
    inside.layer = Number(pick("layer").value);
    remember("layer", inside.layer);
    redrawLayers();
  });
  pick("part").addEventListener("change", () => choosePart(Number(pick("part").value)));
  play(pick("layer-play"), pick("layer"), 600);
}

if (data.images.length) startBrowser();
else startCharts();
