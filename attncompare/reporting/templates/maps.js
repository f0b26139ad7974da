// Maps in the page: from a picture of levels to values, to colours, and to the order in which a protocol changes pixels.

const bytes = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
const floats = text => new Float32Array(bytes(text).buffer);

/** A decoded picture as an Image element. */
async function picture(uri) {
  const image = new Image();
  image.src = uri;
  await image.decode();
  return image;
}

/** RGBA of a picture, at its own size or another. */
function pixels(image, w = image.naturalWidth, h = image.naturalHeight) {
  const context = new OffscreenCanvas(w, h).getContext("2d", {willReadFrequently: true});
  context.drawImage(image, 0, 0, w, h);
  return context.getImageData(0, 0, w, h);
}

/** The first channel of a grey picture. */
async function grey(uri) {
  const rgba = pixels(await picture(uri)).data;
  return Uint8Array.from({length: rgba.length / 4}, (_, i) => rgba[4 * i]);
}

/** {values, h, w} of a map: every place has a level, every level a value; more than 256 levels come in two planes. */
async function decodeMap(map) {
  const [h, w] = map.grid, value = floats(map.values), planes = await grey(map.png), places = h * w;
  const level = value.length <= 256 ? i => planes[i] : i => planes[i] * 256 + planes[places + i];
  return {values: Float32Array.from({length: places}, (_, i) => value[level(i)]), h, w};
}

/** Where each of `to` places lies between two of `from` places: bilinear, without aligned corners. */
function between(from, to) {
  return Array.from({length: to}, (_, i) => {
    const at = Math.max(0, (i + 0.5) * from / to - 0.5), low = Math.min(Math.floor(at), from - 1);
    return [low, Math.min(low + 1, from - 1), at - low];
  });
}

/** A map on a grid of another size, as float32. */
function enlarge({values, h, w}, H, W) {
  if (h === H && w === W) return values;
  const out = new Float32Array(H * W), columns = between(w, W);
  between(h, H).forEach(([top, bottom, down], y) => {
    for (let x = 0; x < W; x++) {
      const [left, right, across] = columns[x];
      const above = (1 - across) * values[top * w + left] + across * values[top * w + right];
      const below = (1 - across) * values[bottom * w + left] + across * values[bottom * w + right];
      out[y * W + x] = (1 - down) * above + down * below;
    }
  });
  return out;
}

/** Colour a map (H, W) on a canvas: from scale[0] to scale[1] along 256 colours. */
function paint(canvas, values, H, W, scale, signed) {
  const colours = COLOURS[signed ? "diverging" : "sequential"], context = canvas.getContext("2d");
  canvas.width = W;
  canvas.height = H;
  const image = context.createImageData(W, H), rgba = image.data, span = scale[1] - scale[0];
  for (let i = 0; i < values.length; i++) {
    const at = 3 * Math.min(255, Math.max(0, Math.floor(256 * (values[i] - scale[0]) / span)));
    rgba[4 * i] = colours[at];
    rgba[4 * i + 1] = colours[at + 1];
    rgba[4 * i + 2] = colours[at + 2];
    rgba[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

/** The cell of each of `length` places; border i lies at floor(i * length / cells). */
function cellsOf(length, cells) {
  const cell = new Uint16Array(length);
  for (let i = 1; i < cells; i++) cell.fill(i, Math.floor(i * length / cells));
  return cell;
}

/** Half to even, as Python's round. */
const round = x => x - Math.floor(x) === 0.5 ? 2 * Math.round(x / 2) : Math.round(x);

/** The step, 1 to n, at which each pixel changes: after step k round(k U / n) have, the largest values first. */
function changeSteps(values, {steps, sign, ties}) {
  const units = values.length, step = new Uint16Array(units), order = Uint32Array.from({length: units}, (_, i) => i);
  order.sort((a, b) => sign * (values[b] - values[a]) || ties[a] - ties[b]);
  for (let k = 1, rank = 0; k <= steps; k++) for (const end = round(k * units / steps); rank < end; rank++) step[order[rank]] = k;
  return step;
}

/** The step of each pixel from the step of each of cells x cells cells. */
function spreadCells(steps, cells, H, W) {
  const rows = cellsOf(H, cells), columns = cellsOf(W, cells);
  return Uint16Array.from({length: H * W}, (_, i) => steps[rows[Math.floor(i / W)] * cells + columns[i % W]]);
}

/** Draw the picture after k steps: what has changed shows `to`, the rest `from` (both ImageData). */
function drawChanged(canvas, from, to, steps, k) {
  canvas.width = from.width;
  canvas.height = from.height;
  const out = new ImageData(new Uint8ClampedArray(from.data), from.width);
  const source = new Uint32Array(to.data.buffer), target = new Uint32Array(out.data.buffer);
  for (let i = 0; i < steps.length; i++) if (steps[i] <= k) target[i] = source[i];
  canvas.getContext("2d").putImageData(out, 0, 0);
}
