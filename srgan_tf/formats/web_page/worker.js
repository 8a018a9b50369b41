// Upscales pictures in tiles with LiteRT.js and joins the tiles to PNG files, off the page's thread.
//
// A classic worker, because LiteRT.js loads its WebAssembly with importScripts, which module workers
// lack.
"use strict";

// Height and width of the largest tile, except for networks with wide margins. Larger ones waste less
// on margins and need more memory, here 0.5 GB.
const TILE = 256;

let settings;  // the page's models, margin and runtime
let litert;  // a promise of the runtime
let accelerator;

self.onmessage = async ({data: {task, ...given}}) => {
  try {
    await {load, upscale, png}[task](given);
  } catch (error) {
    const trouble = task === "png" ? "The PNG cannot be written" : "The network cannot run here";
    const message = error instanceof Problem ? error.message :
      `${trouble} (${error?.message ?? error}): try a smaller part or another browser.`;
    postMessage({event: "failed", message});
  }
};

// An error whose message is a sentence for the user; others come from the runtime.
class Problem extends Error {}

async function load(given) {
  settings = given;
  litert = loadRuntime();
  litert.catch(() => {});  // `upscale` reports it
}

async function fetched(url) {
  const response = await fetch(url).catch(() => null);
  if (!response?.ok) throw new Problem(`${url} cannot be loaded: check the connection and the server.`);
  return response;
}

async function loadRuntime() {
  const {core, wasm_utils: utils} = settings.runtime;
  const from = (folder, file) => new URL(`${folder}/${file}`, self.location).href;
  // Import maps do not reach workers, so the one bare import is replaced.
  const source = (await (await fetched(from(core, "dist/index.js"))).text())
    .replace(/(["'])@litertjs\/wasm-utils\1/, JSON.stringify(from(utils, "dist/index.js")));
  const runtime = await import(URL.createObjectURL(new Blob([source], {type: "text/javascript"})));
  const threads = self.crossOriginIsolated && await runtime.supportsFeature("relaxedSimd");
  // LiteRT reports what it does on stderr, which would be errors in the console.
  self.Module = {locateFile: (file) => from(core, `wasm/${file}`), printErr: console.debug};
  if (threads) {
    // Threads start from this script. As a blob it may come from another origin.
    const script = await fetched(from(core, "wasm/litert_wasm_threaded_internal.js"));
    self.Module.mainScriptUrlOrBlob = await script.blob();
  }
  await runtime.loadLiteRt(from(core, "wasm"), {threads});
  accelerator = runtime.getWebGpuDevice() ? "webgpu" : "wasm";
  return runtime;
}

// Sets the height and width in a .tflite file that leaves them open: LiteRT.js cannot resize. Every
// tensor of pictures states its size as a multiple of the input's.
function withSize(file, height, width) {
  const view = new DataView(file.slice(0));
  const follow = (at) => at + view.getUint32(at, true);
  const field = (table, number) => {  // where a FlatBuffers table keeps a field, 0 if nowhere
    const layout = table - view.getInt32(table, true), slot = 4 + 2 * number;
    const offset = slot < view.getUint16(layout, true) && view.getUint16(layout + slot, true);
    return offset && table + offset;
  };
  const [SUBGRAPHS, TENSORS, SHAPE, SHAPE_SIGNATURE] = [2, 0, 0, 7];
  const graph = follow(follow(field(follow(0), SUBGRAPHS)) + 4);
  const tensors = follow(field(graph, TENSORS));
  for (let i = 1; i <= view.getUint32(tensors, true); i++) {
    const tensor = follow(tensors + 4 * i), signature = field(tensor, SHAPE_SIGNATURE);
    if (!signature) continue;
    for (const [axis, side] of [[1, height], [2, width]]) {
      const place = 4 + 4 * axis, at = follow(field(tensor, SHAPE)) + place;
      const size = view.getInt32(at, true) * side;
      view.setInt32(at, size, true);
      view.setInt32(follow(signature) + place, size, true);
    }
  }
  return new Uint8Array(view.buffer);
}

// Cuts one axis as srgan_tf/upscaling.py does: where tiles start, and [first, end) of what each fills.
function spans(length, margin) {
  const most = Math.max(TILE, 4 * margin);
  if (length <= most) return {size: length, tiles: [{start: 0, first: 0, end: length}]};
  const inner = length - 2 * margin;
  const count = Math.ceil(inner / (most - 2 * margin));
  const size = Math.ceil(inner / count) + 2 * margin;
  const starts = Array.from({length: count}, (_, i) => Math.min(i * (size - 2 * margin), length - size));
  const fills = [0, ...starts.slice(1).map((start) => start + margin), length];
  return {size, tiles: starts.map((start, i) => ({start, first: fills[i], end: fills[i + 1]}))};
}

async function upscale({file, left, top, width, height}) {
  const runtime = await litert;
  let bitmap;
  try {
    // Whole: given a part, browsers take it from the picture before EXIF's orientation.
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Problem(`${file.name} cannot be decoded: it is damaged, or too large for this device.`);
  }
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", {willReadFrequently: true});
  context.drawImage(bitmap, -left, -top);
  bitmap.close();
  const rgba = context.getImageData(0, 0, width, height).data;
  await separateAlpha(rgba, width, height);
  const rows = spans(height, settings.margin), columns = spans(width, settings.margin);
  const total = settings.models.length * rows.tiles.length * columns.tiles.length;
  let done = 0, start;
  for (const [layer, {file: url}] of settings.models.entries()) {
    const model = withSize(await (await fetched(url)).arrayBuffer(), rows.size, columns.size);
    let network = await compile(runtime, model);
    start ??= performance.now();
    for (const row of rows.tiles) {
      for (const column of columns.tiles) {
        const lr = tile(rgba, width, column.start, row.start, columns.size, rows.size);
        let sr;
        try {
          sr = await run(runtime, network, lr, rows.size, columns.size);
        } catch (error) {
          if (accelerator === "wasm") throw error;
          accelerator = "wasm";
          network = await compile(runtime, model);
          sr = await run(runtime, network, lr, rows.size, columns.size);
        }
        const blob = await picture(sr, 4 * columns.size, 4 * (column.first - column.start),
          4 * (row.first - row.start), 4 * (column.end - column.first), 4 * (row.end - row.first));
        done++;
        postMessage({event: "piece", layer, blob, left: 4 * column.first, top: 4 * row.first,
          width: 4 * (column.end - column.first), height: 4 * (row.end - row.first),
          done, total, accelerator, seconds: (performance.now() - start) / 1000});
      }
    }
    network.delete();
  }
  postMessage({event: "finished", accelerator, seconds: (performance.now() - start) / 1000});
}

// The page masks the result with alpha, which is upscaled once a file is written. The network sees
// visible colors only.
async function separateAlpha(rgba, width, height) {
  const values = new Uint8Array(width * height);
  for (let i = 0; i < values.length; i++) values[i] = rgba[4 * i + 3];
  if (values.every((value) => value === 255)) return;
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d").putImageData(new ImageData(rgba, width, height), 0, 0);
  postMessage({event: "translucent", mask: await canvas.convertToBlob(), alpha: {values, width, height}});
  fill(rgba, width, height);
}

// Replaces the colors that alpha hides in place, as srgan_tf/photos/transparency.py does and explains.
// A browser decodes them as black.
function fill(rgba, width, height) {
  const [LEVELS, FAINT, AROUND] = [6, 1 / 4, 8];
  // Means of alpha, and of colors times alpha, from half the picture's size down.
  const empty = (columns, rows) => ({values: new Float32Array(4 * columns * rows), columns, rows});
  const levels = [empty(...[width, height].map((side) => 2 ** (LEVELS - 1) * Math.ceil(side / 2 ** LEVELS)))];
  const across = Math.ceil(width / AROUND), down = Math.ceil(height / AROUND);
  const largest = new Uint8Array(across * down);  // alpha in each cell of AROUND by AROUND
  for (let y = 0, from = 0; y < height; y++) {
    for (let x = 0; x < width; x++, from += 4) {
      const to = 4 * ((y >> 1) * levels[0].columns + (x >> 1)), alpha = rgba[from + 3];
      for (let c = 0; c < 3; c++) levels[0].values[to + c] += rgba[from + c] * alpha / 255 / 4;
      levels[0].values[to + 3] += alpha / 255 / 4;
      const cell = Math.floor(y / AROUND) * across + Math.floor(x / AROUND);
      largest[cell] = Math.max(largest[cell], alpha);
    }
  }
  while (levels.length < LEVELS) {
    const {values, columns, rows} = levels.at(-1), next = empty(columns / 2, rows / 2);
    for (let i = 0; i < values.length; i++) {
      const x = (i >> 2) % columns, y = Math.floor((i >> 2) / columns);
      next.values[4 * ((y >> 1) * next.columns + (x >> 1)) + (i & 3)] += values[i] / 4;
    }
    levels.push(next);
  }
  // Cells with little alpha take the rest from the coarser level.
  const around = new Float32Array(4);
  for (let n = LEVELS - 1; n >= 0; n--) {
    const {values, columns} = levels[n];
    for (let i = 0; i < values.length; i += 4) {
      const most = Math.max(values[i + 3], FAINT), rest = 1 - values[i + 3] / most;
      if (levels[n + 1]) doubled(levels[n + 1], (i >> 2) % columns, Math.floor((i >> 2) / columns), around);
      for (let c = 0; c < 4; c++) values[i + c] = values[i + c] / most + rest * around[c];
    }
  }
  for (let y = 0, to = 0; y < height; y++) {
    for (let x = 0; x < width; x++, to += 4) {
      if (rgba[to + 3] >= 255 * FAINT) continue;
      let most = 0;
      const column = Math.floor(x / AROUND), row = Math.floor(y / AROUND);
      for (let v = Math.max(row - 1, 0); v <= Math.min(row + 1, down - 1); v++) {
        for (let u = Math.max(column - 1, 0); u <= Math.min(column + 1, across - 1); u++) {
          most = Math.max(most, largest[v * across + u]);
        }
      }
      const share = Math.min(rgba[to + 3] / Math.max(FAINT * most, 1e-9), 1);
      doubled(levels[0], x, y, around);
      for (let c = 0; c < 3; c++) {
        const mean = around[c] / Math.max(around[3], 1e-9);
        rgba[to + c] = mean + share * (rgba[to + c] - mean);
      }
    }
  }
}

// Writes the pixel (x, y) of a level after bilinear upscaling by 2.
function doubled({values, columns, rows}, x, y, pixel) {
  const beside = (at, length) => Math.min(Math.max((at >> 1) + (at & 1 ? 1 : -1), 0), length - 1);
  const [left, right] = [x >> 1, beside(x, columns)], [near, far] = [y >> 1, beside(y, rows)];
  for (let c = 0; c < 4; c++) {
    const line = (row) => 0.75 * values[4 * (row * columns + left) + c] + 0.25 * values[4 * (row * columns + right) + c];
    pixel[c] = 0.75 * line(near) + 0.25 * line(far);
  }
}

async function compile(runtime, model) {
  if (accelerator === "webgpu") {
    try {
      return await runtime.loadAndCompile(model, {accelerator, gpuOptions: {precision: "fp32"}});
    } catch {
      accelerator = "wasm";
    }
  }
  return await runtime.loadAndCompile(model, {accelerator});
}

// [height, width, 3] of a picture in [0, 1].
function tile(rgba, stride, left, top, width, height) {
  const lr = new Float32Array(height * width * 3);
  for (let y = 0, to = 0; y < height; y++) {
    for (let from = 4 * ((top + y) * stride + left), end = from + 4 * width; from < end; from += 4) {
      for (let c = 0; c < 3; c++) lr[to++] = rgba[from + c] / 255;
    }
  }
  return lr;
}

async function run(runtime, network, lr, height, width) {
  const given = new runtime.Tensor(lr, [1, height, width, 3]);
  const [result] = await network.run(given);
  const sr = await result.data();
  given.delete();
  result.delete();
  return sr;
}

// A PNG of a part of sr in [-1, 1].
async function picture(sr, stride, left, top, width, height) {
  const image = new ImageData(width, height);
  for (let y = 0, to = 0; y < height; y++) {
    for (let x = 0, from = 3 * ((top + y) * stride + left); x < width; x++) {
      for (let c = 0; c < 3; c++) image.data[to++] = (sr[from++] + 1) * 127.5;  // rounds and clips
      image.data[to++] = 255;
    }
  }
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d").putImageData(image, 0, 0);
  return await canvas.convertToBlob();
}
// How alpha is upscaled: for each of 4 * length pixels, the first of at most 4 and their weights.
// Bicubic as Pillow and upscale.py do it, with a = -0.5 and weights that sum to 1 at the border.
function bicubic(length) {
  const cubic = (x) => x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
  return Array.from({length: 4 * length}, (_, i) => {
    const center = (i + 0.5) / 4;
    const first = Math.max(0, Math.floor(center - 1.5)), end = Math.min(length, Math.floor(center + 2.5));
    const weights = Array.from({length: end - first}, (_, k) => cubic(Math.abs(first + k + 0.5 - center)));
    const sum = weights.reduce((a, b) => a + b);
    return {first, weights: weights.map((weight) => weight / sum)};
  });
}

// Joins tiles to a PNG, a row of tiles at a time, so that the picture is never in memory whole.
async function png({layers, width, height, detail, alpha}) {
  const channels = alpha ? 4 : 3;
  const stream = new CompressionStream("deflate");
  const writer = stream.writable.getWriter();
  const parts = [header(width, height, channels)];
  const compressed = (async () => {
    const reader = stream.readable.getReader();
    for (let read; !(read = await reader.read()).done;) parts.push(chunk("IDAT", read.value));
  })();
  const shares = layers.length > 1 ? [1 - detail, detail] : [1];
  const columns = alpha && bicubic(alpha.width), rows = alpha && bicubic(alpha.height);
  let above = new Uint8Array(width * channels);
  for (let top = 0; top < height;) {
    const band = layers.map((layer) => layer.filter((piece) => piece.top === top));
    const lines = band[0][0].height;
    const pixels = new Uint8ClampedArray(lines * width * channels);
    for (const i of band[0].keys()) {
      await blend(pixels, width, channels, band.map((pieces) => pieces[i]), shares);
    }
    if (alpha) for (let y = 0; y < lines; y++) opacity(pixels, y * width, alpha, rows[top + y], columns);
    // PNG's filter 2: the difference from the line above.
    const filtered = new Uint8Array(lines * (1 + width * channels));
    for (let y = 0, to = 0; y < lines; y++) {
      const line = pixels.subarray(y * width * channels, (y + 1) * width * channels);
      filtered[to++] = 2;
      for (let i = 0; i < line.length; i++) filtered[to++] = line[i] - above[i];
      above = line;
    }
    await writer.write(filtered);
    top += lines;
  }
  await writer.close();
  await compressed;
  parts.push(chunk("IEND", new Uint8Array()));
  postMessage({event: "saved", blob: new Blob(parts, {type: "image/png"})});
}

// Decodes the same tile of each network and writes the blend of them in its place.
async function blend(pixels, stride, channels, tiles, shares) {
  const {left, width, height} = tiles[0];
  const decoded = [];
  for (const [i, {blob}] of tiles.entries()) {
    if (!shares[i]) continue;
    const context = new OffscreenCanvas(width, height).getContext("2d");
    const bitmap = await createImageBitmap(blob);
    context.drawImage(bitmap, 0, 0);
    bitmap.close();
    decoded.push([shares[i], context.getImageData(0, 0, width, height).data]);
  }
  const [[share, first], [rest, second] = [0, first]] = decoded;
  for (let y = 0, from = 0; y < height; y++) {
    for (let x = 0, to = (y * stride + left) * channels; x < width; x++, from += 4, to += channels) {
      for (let c = 0; c < 3; c++) pixels[to + c] = share * first[from + c] + rest * second[from + c];
    }
  }
}

// Writes a line of upscaled alpha; `start` is the line's first pixel.
function opacity(pixels, start, {values, width}, row, columns) {
  const line = new Float32Array(width);
  row.weights.forEach((weight, k) => {
    for (let x = 0; x < width; x++) line[x] += weight * values[(row.first + k) * width + x];
  });
  columns.forEach(({first, weights}, x) => {
    pixels[4 * (start + x) + 3] = weights.reduce((sum, weight, k) => sum + weight * line[first + k], 0);
  });
}

function header(width, height, channels) {
  const fields = new DataView(new ArrayBuffer(13));
  fields.setUint32(0, width);
  fields.setUint32(4, height);
  fields.setUint8(8, 8);  // bits
  fields.setUint8(9, channels === 4 ? 6 : 2);
  return new Blob([new Uint8Array([137, 80, 78, 71, 13, 10, 26, 10]), chunk("IHDR", new Uint8Array(fields.buffer))]);
}

const CRC = Uint32Array.from({length: 256}, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

// Blobs, which the browser may keep on disk.
function chunk(type, bytes) {
  const name = new TextEncoder().encode(type);
  let crc = 0xffffffff;
  for (const part of [name, bytes]) {
    for (const byte of part) crc = CRC[(crc ^ byte) & 255] ^ (crc >>> 8);
  }
  const [length, check] = [bytes.length, ~crc].map((value) => {
    const field = new DataView(new ArrayBuffer(4));
    field.setUint32(0, value);
    return field.buffer;
  });
  return new Blob([length, name, bytes, check]);
}
