// Maps in the page: from a picture of levels to values, to colors, and to the order in which a protocol changes pixels.

/** The bytes that base64 stands for. */
function bytes(text) {
  const letters = atob(text), out = new Uint8Array(letters.length);
  for (let i = 0; i < out.length; i++) out[i] = letters.charCodeAt(i);
  return out;
}
const floats = text => new Float32Array(bytes(text).buffer);

/** A decoded picture, from its data: URI; not by an <img>, which waits for the next frames of the page. */
function picture(uri) {
  const [kind, content] = uri.slice("data:".length).split(";base64,");
  return createImageBitmap(new Blob([bytes(content)], {type: kind}), {colorSpaceConversion: "none"});
}

/** Once per size: a canvas to read pixels from, and pixels to write. */
const readers = {}, writers = {};
function reader(w, h) {
  const context = readers[[w, h]] ??= new OffscreenCanvas(w, h).getContext("2d", {willReadFrequently: true});
  context.globalCompositeOperation = "copy";  // nothing stays of the picture before
  return context;
}

/** RGBA of a picture. */
function pixels(image) {
  const context = reader(image.width, image.height);
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, image.width, image.height);
}

/** The first channel of a gray picture. */
async function gray(uri) {
  const rgba = new Uint32Array(pixels(await picture(uri)).data.buffer), out = new Uint8Array(rgba.length);
  for (let i = 0; i < out.length; i++) out[i] = rgba[i];  // the lowest byte, which is red
  return out;
}

/** {values, h, w} of a map: every place has a level, every level a value; more than 256 levels come in two planes. */
async function decodeMap(map) {
  const [h, w] = map.grid, [low, high] = map.scale, places = h * w;
  const value = map.values ? floats(map.values) : Float32Array.from({length: 256}, (_, i) => low + i / 255 * (high - low));
  const planes = map.levels.startsWith("data:") ? await gray(map.levels) : bytes(map.levels);
  const values = new Float32Array(places), two = value.length > 256;
  for (let i = 0; i < places; i++) values[i] = value[two ? planes[i] * 256 + planes[places + i] : planes[i]];
  return {values, h, w};
}

/** Where each of `to` places lies between two of `from` places: bilinear, without aligned corners. */
function between(from, to) {
  const low = new Int32Array(to), high = new Int32Array(to), share = new Float64Array(to);
  for (let i = 0; i < to; i++) {
    const at = Math.max(0, (i + 0.5) * from / to - 0.5);
    low[i] = Math.min(Math.floor(at), from - 1);
    high[i] = Math.min(low[i] + 1, from - 1);
    share[i] = at - low[i];
  }
  return {low, high, share};
}

/** A map on a grid of another size, as float32: first every row, then between the rows. */
function enlarge({values, h, w}, H, W) {
  if (h === H && w === W) return values;
  const out = new Float32Array(H * W), wide = new Float64Array(h * W), rows = between(h, H), columns = between(w, W);
  for (let y = 0, i = 0; y < h; y++) {
    for (let x = 0; x < W; x++, i++) {
      const across = columns.share[x];
      wide[i] = (1 - across) * values[y * w + columns.low[x]] + across * values[y * w + columns.high[x]];
    }
  }
  for (let y = 0, i = 0; y < H; y++) {
    const top = rows.low[y] * W, bottom = rows.high[y] * W, down = rows.share[y];
    for (let x = 0; x < W; x++, i++) out[i] = (1 - down) * wide[top + x] + down * wide[bottom + x];
  }
  return out;
}

/** The 256 colors of a scale as opaque pixels. */
const palettes = {};
function palette(name) {
  if (!palettes[name]) {
    const rgba = new Uint8Array(1024).fill(255);
    for (let i = 0; i < 256; i++) rgba.set(COLORS[name].subarray(3 * i, 3 * i + 3), 4 * i);
    palettes[name] = new Uint32Array(rgba.buffer);
  }
  return palettes[name];
}

/** Color a map (H, W) on a canvas: from scale[0] to scale[1] along 256 colors. */
function paint(canvas, values, H, W, scale, signed) {
  const colors = palette(signed ? "diverging" : "sequential"), context = canvas.getContext("2d");
  canvas.width = W;
  canvas.height = H;
  const image = writers[[W, H]] ??= new ImageData(W, H), out = new Uint32Array(image.data.buffer), span = scale[1] - scale[0];
  for (let i = 0; i < values.length; i++) {
    const at = 256 * (values[i] - scale[0]) / span;
    out[i] = colors[at < 0 ? 0 : at < 256 ? at | 0 : 255];
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

const TIES = 2 ** 21;  // pixels of the largest picture whose order can be told; 32 bits of value and 21 of tie make 53
/** The places of a map, the largest values first (sign -1: the smallest), equal ones by `ties`. */
function orderOf(values, sign, ties) {
  const places = values.length, keys = new Float64Array(places), place = new Uint32Array(places);
  const one = new Float32Array(1), bits = new Uint32Array(one.buffer);
  for (let i = 0; i < places; i++) {
    one[0] = -sign * values[i] + 0;  // -0 becomes 0
    const rising = bits[0] >>> 31 ? ~bits[0] >>> 0 : bits[0] + 2 ** 31;  // unsigned numbers in the order of the values
    keys[i] = rising * TIES + ties[i];
    place[ties[i]] = i;
  }
  keys.sort();
  for (let i = 0; i < places; i++) keys[i] = place[keys[i] % TIES];
  return keys;
}

/** The step, 1 to n, at which each pixel changes: after step k round(k U / n) have, the largest values first. */
function changeSteps(values, {steps, sign, ties}) {
  const units = values.length, step = new Uint16Array(units), order = orderOf(values, sign, ties);
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
