"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const MEGA = 1e6;

// The browser decodes the whole file, with 4 bytes a pixel.
const MOST_DECODED = 100 * MEGA;
// Of lr at once: the largest canvas on an iPhone.
const MOST = 2 ** 24;

let worker = null;
let picture = null;  // {file, url, width, height}
let part = null;  // {left, top, width, height} of the picture, all of it unless `cutting`
let cutting = false;
let latest = null;  // the file chosen last
let state = "empty";  // or chosen, running, done
let alpha = null;  // of the part if it is not opaque: {values, width, height}
let pieces = [];  // of sr, those of each network: {blob, image, left, top, width, height}
let view = {scale: 0, center: [0, 0], position: 50};

/* Choosing */
async function choose(file) {
  if (!file) return;
  latest = file;
  if (state === "running" || $("download").disabled) stop();
  forgetResult();
  if (picture) URL.revokeObjectURL(picture.url);
  show("empty");
  const url = URL.createObjectURL(file);
  try {
    const [width, height] = await measured(file, url);
    if (latest !== file) return URL.revokeObjectURL(url);
    picture = {file, url, width, height};
  } catch (error) {
    URL.revokeObjectURL(url);
    if (latest === file) fail(error.message);
    return;
  }
  $("before").firstElementChild.src = url;
  load();
  const large = picture.width * picture.height > MOST;
  setPart(large);
  show("chosen");
  if (large) {
    fail(`${file.name} has ${megapixels(picture)}, too many to upscale at once: drag on the photo to choose a part of at most ${megapixels({width: MOST, height: 1})}.`);
  }
}

// Finds the width and height without decoding, or throws one sentence.
async function measured(file, url) {
  if (!file.size) throw new Error(`${file.name} is empty.`);
  const start = new TextDecoder().decode(await file.slice(0, 1000).arrayBuffer());
  if (file.type === "image/svg+xml" || /^\s*<(\?xml|!doctype svg|!--|svg)/i.test(start)) {
    throw new Error(`${file.name} is a drawing (SVG), which has no pixels: choose a JPEG, PNG, WebP or AVIF.`);
  }
  const image = new Image();
  await new Promise((resolve, reject) => {
    image.onload = resolve;
    image.onerror = () => reject(new Error(
      `${file.name} is not a photo that this browser can read: choose a JPEG, PNG, WebP or AVIF.`));
    image.src = url;
  });
  const {naturalWidth: width, naturalHeight: height} = image;
  if (width * height > MOST_DECODED) {
    throw new Error(`${file.name} has ${width}x${height} pixels: crop or shrink it to at most ${MOST_DECODED / MEGA} megapixels first.`);
  }
  return [width, height];
}

const megapixels = ({width, height}) => `${(width * height / MEGA).toFixed(2)} megapixels`;

function fail(message) {
  $("error").textContent = message;
  $("error").hidden = false;
}

function forgetResult() {
  $("error").hidden = true;
  pieces.flat().forEach(({image}) => URL.revokeObjectURL(image.src));
  pieces = [];
  alpha = null;
  URL.revokeObjectURL($("after").dataset.mask);
  $("after").dataset.mask = $("after").style.maskImage = "";
  $("after").replaceChildren();
}

/* Running */
function load() {
  if (worker) return;
  worker = new Worker("worker.js");
  worker.onmessage = ({data: {event, ...given}}) => ({translucent, piece, finished, saved, failed})[event](given);
  worker.onerror = (event) => failed({message: event.message || "The worker cannot be started: reload the page."});
  worker.postMessage({task: "load", ...data});
}

function start() {
  load();
  $("error").hidden = true;
  pieces = data.models.map(() => []);
  $("after").replaceChildren(...data.models.map(() => document.createElement("div")));
  for (const layer of $("after").children) layer.className = "layer";
  show("running");
  $("progress").removeAttribute("value");
  $("status").textContent = "Loading the network";
  worker.postMessage({task: "upscale", file: picture.file, ...part});
}

// Ends the worker at once, which frees its memory. The next task starts another one.
function stop() {
  worker?.terminate();
  worker = null;
  $("download").disabled = false;
}

function cancel() {
  stop();
  forgetResult();
  show("chosen");
}

function translucent({mask, alpha: found}) {
  alpha = found;
  const url = URL.createObjectURL(mask);
  $("after").dataset.mask = url;
  $("after").style.maskImage = `url(${url})`;
}

function piece({layer, blob, left, top, width, height, done, total, accelerator, seconds}) {
  const image = new Image();
  image.src = URL.createObjectURL(blob);
  image.alt = "";
  $("after").children[layer].append(image);
  pieces[layer].push({blob, image, left, top, width, height});
  $("progress").value = done / total;
  $("status").textContent = `Tile ${done} of ${total} on the ${processor(accelerator)}, ${duration(seconds * (total - done) / done)} left`;
  draw();
}

const processor = (accelerator) => accelerator === "webgpu" ? "GPU" : "CPU";

function duration(seconds) {
  if (seconds < 90) return `${Math.ceil(seconds)} s`;
  return seconds < 5400 ? `${Math.ceil(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

function finished({seconds, accelerator}) {
  show("done");
  $("status").textContent = `${4 * part.width}x${4 * part.height} pixels in ${duration(seconds)} on the ${processor(accelerator)}`;
}

function failed({message}) {
  if (state === "running") cancel();
  else {
    stop();
    if (state === "done") $("status").textContent = "";
  }
  fail(message);
}

/* The result as a file */
function download() {
  load();
  $("error").hidden = true;
  $("download").disabled = true;
  $("status").textContent = "Writing the PNG";
  worker.postMessage({
    task: "png", width: 4 * part.width, height: 4 * part.height, detail: +$("detail").value,
    alpha, layers: pieces.map((layer) => layer.map(({blob, left, top, width, height}) => ({blob, left, top, width, height}))),
  });
}

function saved({blob}) {
  $("download").disabled = false;
  $("status").textContent = `${(blob.size / MEGA).toFixed(1)} MB written`;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = picture.file.name.replace(/\.\w+$/, "") + "_x4.png";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/* The view */
function show(next) {
  const focused = document.activeElement;
  state = next;
  $("work").hidden = state === "empty";
  $("drop").classList.toggle("small", state !== "empty");
  for (const [id, states] of Object.entries({
    start: "chosen", cut: "chosen", cancel: "running", progress: "running", download: "done",
    slide: "done", divider: "done", dial: data.models.length > 1 ? "done" : "",
  })) $(id).hidden = state !== states;
  document.querySelectorAll(".name").forEach((name) => { name.hidden = state !== "done"; });
  if (state === "empty") return;
  $("title").textContent = picture.file.name;
  $("status").textContent = "";
  view = {scale: 0, center: [0, 0], position: state === "running" ? 0 : 50};
  draw();
  // The button that was pressed is hidden now, and the keyboard would start over at the top.
  if (focused.hidden) $({chosen: "start", running: "cancel", done: "download"}[state]).focus();
}

// While a part is being chosen the stage shows the whole picture, later the part.
const shown = () => state === "chosen" ? {left: 0, top: 0, width: picture.width, height: picture.height} : part;

function draw() {
  if (state === "empty") return;
  const {left, top, width, height} = shown(), pixel = 1 / devicePixelRatio;
  const sizes = [4 * width, 4 * height];
  const snap = (length) => Math.round(length / pixel) * pixel;  // no seam falls between two pixels
  const style = getComputedStyle($("work"));
  const room = Math.min(
    ($("work").clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight)) / sizes[0],
    Math.max(innerHeight * 0.62, 240) / sizes[1]);
  // At most 1:1, but small pictures in whole multiples up to 480 pixels.
  const multiple = clamp(Math.floor(room / pixel), 1, Math.ceil(480 / pixel / sizes[0]));
  const fit = room < pixel ? room : multiple * pixel;
  const scale = view.scale = Math.max(view.scale, fit);
  view.fit = fit;
  const stage = sizes.map((size) => snap(size * fit));
  view.center = view.center.map((c, i) => {
    const half = stage[i] / scale / 2;
    return scale === fit ? sizes[i] / 2 : clamp(c, half, sizes[i] - half);
  });
  const [x, y] = stage.map((size, i) => snap(size / 2 - view.center[i] * scale));
  view.origin = [x, y];
  place($("stage"), {width: stage[0], height: stage[1]});
  $("stage").classList.toggle("zoomed", scale > fit);
  place($("before").firstElementChild, {left: x - 4 * left * scale, top: y - 4 * top * scale,
    width: 4 * picture.width * scale, height: 4 * picture.height * scale});
  for (const {image, ...piece} of pieces.flat()) {
    const [l, t] = [snap(piece.left * scale), snap(piece.top * scale)];
    place(image, {left: x + l, top: y + t, width: snap((piece.left + piece.width) * scale) - l,
      height: snap((piece.top + piece.height) * scale) - t});
  }
  const after = $("after");
  after.classList.toggle("shrunk", scale < pixel);
  after.style.clipPath = `inset(0 0 0 ${view.position}%)`;
  $("before").style.clipPath = state === "done" ? `inset(0 ${100 - view.position}% 0 0)` : "";
  after.style.maskPosition = `${x}px ${y}px`;
  after.style.maskSize = `${sizes[0] * scale}px ${sizes[1] * scale}px`;
  if (after.children[1]) after.children[1].style.opacity = $("detail").value;
  const [faithful, detailed] = data.models.map(({name}) => name);
  $("detail-text").textContent = `${(+$("detail").value).toFixed(2)}, between ${faithful} and ${detailed}`;
  $("divider").style.left = view.position + "%";
  $("slide").value = view.position;
  $("level").textContent = `${Math.round(100 * scale / pixel)}%`;
  $("one").disabled = fit > pixel;
  const boxed = cutting && state === "chosen";
  $("stage").classList.toggle("cutting", boxed);
  $("part").hidden = !boxed;
  $("stage").setAttribute("aria-label", boxed ? "The part to upscale: arrow keys move it, with Shift they resize it" :
    `${state === "chosen" ? "The photo" : "Before and after"}: arrow keys move, plus and minus zoom, 0 shows all`);
  $("zoom").hidden = boxed;  // there a drag draws the box and could not move the picture
  if (state !== "chosen") return;
  $("cut").setAttribute("aria-pressed", cutting);
  place($("part"), {left: x + 4 * part.left * scale, top: y + 4 * part.top * scale,
    width: 4 * part.width * scale, height: 4 * part.height * scale});
  $("start").textContent = cutting ? "Upscale this part" : "Upscale";
  $("start").disabled = part.width * part.height > MOST;
  $("status").textContent = `${part.width}x${part.height} to ${4 * part.width}x${4 * part.height} pixels (${megapixels({width: 4 * part.width, height: 4 * part.height})})`;
}

function place(element, lengths) {
  for (const [name, length] of Object.entries(lengths)) element.style[name] = `${length}px`;
}

function zoomBy(factor, point) {
  const scale = clamp(view.scale * factor, view.fit, Math.max(8, view.fit));
  if (point) {  // keeps what is under the pointer in place
    const box = $("stage").getBoundingClientRect();
    const offset = [point.clientX - box.left - box.width / 2, point.clientY - box.top - box.height / 2];
    view.center = view.center.map((c, i) => c + offset[i] * (1 / view.scale - 1 / scale));
  }
  view.scale = scale;
  draw();
}

/* Choosing a part */
// Makes the part the whole picture, or a box to begin with.
function setPart(on) {
  cutting = on;
  view.scale = 0;
  const {width, height} = picture;
  part = {left: 0, top: 0, width, height};
  if (on) {  // half of each side, in the middle, and no more than can be upscaled
    const share = Math.min(0.5, Math.sqrt(MOST / (width * height)));
    const [w, h] = [width, height].map((side) => Math.max(1, Math.floor(side * share)));
    part = {left: (width - w) >> 1, top: (height - h) >> 1, width: w, height: h};
  }
}

// Spans a box between two points of the picture.
function span([x, y], [u, v]) {
  const [left, right] = [x, u].map((a) => clamp(Math.round(a), 0, picture.width)).sort((a, b) => a - b);
  const [top, bottom] = [y, v].map((a) => clamp(Math.round(a), 0, picture.height)).sort((a, b) => a - b);
  if (right > left && bottom > top) part = {left, top, width: right - left, height: bottom - top};
  draw();
}

function movePart(x, y, grow) {
  const {left, top, width, height} = part;
  if (grow) span([left, top], [Math.max(left + width + x, left + 1), Math.max(top + height + y, top + 1)]);
  else {
    part.left = clamp(left + x, 0, picture.width - width);
    part.top = clamp(top + y, 0, picture.height - height);
    draw();
  }
}

/* Listening */
function listen() {
  for (const id of ["file", "camera"]) {
    $(id).addEventListener("change", () => { choose($(id).files[0]); $(id).value = ""; });
  }
  addEventListener("dragover", (event) => { event.preventDefault(); $("drop").classList.add("over"); });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").classList.remove("over"); });
  addEventListener("drop", (event) => {
    event.preventDefault();
    $("drop").classList.remove("over");
    choose(event.dataTransfer.files[0]);
  });
  addEventListener("paste", (event) => choose(event.clipboardData.files[0]));
  addEventListener("resize", draw);
  const actions = {
    start, cancel, download, cut: () => { setPart(!cutting); draw(); }, in: () => zoomBy(2), out: () => zoomBy(0.5),
    one: () => { view.scale = 1 / devicePixelRatio; draw(); },
  };
  for (const [id, action] of Object.entries(actions)) $(id).addEventListener("click", action);
  $("slide").addEventListener("input", () => { view.position = +$("slide").value; draw(); });
  $("detail").addEventListener("input", draw);

  const stage = $("stage");
  let drag = null;
  const point = (event) => {  // in pixels of the picture
    const box = stage.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top].map((at, i) => (at - view.origin[i]) / view.scale / 4);
  };
  const move = (event) => {
    if (drag.kind === "cut") span(drag.from, point(event));
    else if (drag.kind === "pan") {
      view.center = [drag.center[0] - (event.clientX - drag.x) / view.scale,
                     drag.center[1] - (event.clientY - drag.y) / view.scale];
    } else if (state === "done") {
      const box = stage.getBoundingClientRect();
      view.position = clamp(100 * (event.clientX - box.left) / box.width, 0, 100);
    }
    draw();
  };
  stage.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    const kind = cutting && state === "chosen" ? "cut" : view.scale > view.fit && event.target !== $("divider") ? "pan" : "slide";
    drag = {kind, x: event.clientX, y: event.clientY, center: view.center, from: point(event)};
    stage.setPointerCapture(event.pointerId);
    if (kind === "slide" && event.pointerType === "mouse") move(event);
  });
  stage.addEventListener("pointermove", (event) => { if (drag) move(event); });
  for (const end of ["pointerup", "pointercancel"]) stage.addEventListener(end, () => { drag = null; });
  stage.addEventListener("dblclick", (event) => { if (!$("zoom").hidden) zoomBy(event.shiftKey ? 0.5 : 2, event); });
  stage.addEventListener("wheel", (event) => {
    if (!event.ctrlKey || $("zoom").hidden) return;  // a plain wheel scrolls the page
    event.preventDefault();
    zoomBy(event.deltaY < 0 ? 2 : 0.5, event);
  }, {passive: false});
  stage.addEventListener("keydown", (event) => {
    const arrow = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
    const zoom = {"+": 2, "=": 2, "-": 0.5, "0": 0}[event.key];
    if (zoom !== undefined && !$("zoom").hidden) zoomBy(zoom);
    else if (!arrow) return;
    else if (cutting && state === "chosen") {
      const step = Math.ceil(Math.max(picture.width, picture.height) / 100);
      movePart(...arrow.map((a) => a * step), event.shiftKey);
    } else if (view.scale > view.fit) {
      view.center = view.center.map((c, i) => c + arrow[i] * 40 / view.scale);
      draw();
    } else if (state === "done" && arrow[0]) {
      view.position = clamp(view.position + 2 * arrow[0], 0, 100);
      draw();
    } else return;
    event.preventDefault();
  });
}

$("networks").textContent = `Networks: ${data.models.map(({name}) => name).join(" and ")}. ` +
  "The first use loads the network and LiteRT.js.";
show("empty");
if (location.protocol === "file:") {
  fail("Browsers run networks only in pages from a server: run python serve.py in this page's folder.");
} else if (!self.OffscreenCanvas || !self.CompressionStream) {
  fail("This browser is too old for this page: it needs Chrome 92, Firefox 114 or Safari 16.4, or later.");
} else listen();
