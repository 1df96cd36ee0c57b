// The page: pictures come in by click, drop, paste and camera; the network's answer is shown.

import * as ort from "./ort.wasm.bundle.min.mjs";
import { centreSquare, openPicture, shrink } from "./picture.js";

const TOP = 3; // classes shown
const TINT = [255, 96, 16]; // red, green, blue of what speaks for a class
const $ = (id) => document.getElementById(id);
const say = (message) => ($("status").textContent = message);
const press = (all, pressed) => all.forEach((b) => b.setAttribute("aria-pressed", b === pressed));

function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// Fill a canvas of side x side pixels; `colour` gives red, green, blue and alpha by their index.
function paint(canvas, side, colour) {
  const image = new ImageData(side, side);
  for (let i = 0; i < side * side; i++) image.data.set(colour(i), 4 * i);
  Object.assign(canvas, { width: side, height: side }).getContext("2d").putImageData(image, 0, 0);
}

// Tint the evidence for class `k`: its class activation map, over the grey square.
function drawMap({ data, dims }, k) {
  const side = dims[3];
  const map = data.subarray(k * side * side, (k + 1) * side * side);
  const most = Math.max(...map, 1e-12);
  paint($("tint"), side, (i) => [...TINT, (225 * Math.max(map[i], 0)) / most]);
  $("where").textContent = `Evidence for ${network.classes[k]}`;
}

function drawPicture(square, { data, dims }) {
  const [side, plane] = [dims[3], dims[3] ** 2];
  paint($("seen"), side, (i) => [data[i], data[i + plane], data[i + 2 * plane], 255]);
  const size = Math.min(square.width, 512);
  const className = size < 128 ? "pixels" : "";
  Object.assign($("looked"), { width: size, height: size, className });
  $("looked").getContext("2d").drawImage(square, 0, 0, size, size);
}

// One button per class, the likeliest first, which shows the map of its class.
function makeBars(logits, maps) {
  const exponentials = logits.map((logit) => Math.exp(logit - Math.max(...logits)));
  const sum = exponentials.reduce((a, b) => a + b);
  const likeliest = [...logits.keys()].sort((a, b) => logits[b] - logits[a]).slice(0, TOP);
  const bars = likeliest.map((k) => {
    const value = exponentials[k] / sum;
    const parts = [make("b", {}, network.classes[k]), make("progress", { value })];
    const bar = make("button", {}, ...parts, `${(100 * value).toFixed(1)}%`);
    bar.onclick = () => (press(bars, bar), drawMap(maps, k));
    return bar;
  });
  return bars;
}

async function classify(source) {
  const square = await centreSquare(source);
  const pixels = await shrink(square, shrinker);
  const start = performance.now();
  const { logits, maps } = await session.run({ pixels });
  const milliseconds = performance.now() - start;
  drawPicture(square, pixels);
  $("bars").replaceChildren(...makeBars(logits.data, maps));
  $("bars").firstChild.click();
  $("best").textContent = $("bars").querySelector("b").textContent;
  $("time").textContent = `Inference took ${milliseconds.toFixed(1)} ms.`;
  $("result").hidden = false;
  const detail = { pixels: pixels.data, logits: logits.data, maps: maps.data, milliseconds };
  window.dispatchEvent(new CustomEvent("classified", { detail }));
}

let queue = Promise.resolve(); // a session runs one pass at a time
function show(open, sample) {
  press(samples, sample);
  say("");
  queue = queue.then(open).then(classify).catch((error) => say(error.message));
  return queue;
}
const showFile = (file) => file && show(() => openPicture(file));

window.onerror = (message) => say(`The network cannot run here: ${message}`);
ort.env.wasm.numThreads = 1; // more would need headers that not every host sends
const network = await (await fetch("network.json")).json();
const shrinker = await ort.InferenceSession.create("shrink.onnx");
const session = await ort.InferenceSession.create("network.onnx");
const nothing = await createImageBitmap(new ImageData(1, 1));
await session.run({ pixels: await shrink(nothing, shrinker) }); // the first pass is slow

const samples = network.classes.map((name, label) => {
  const image = make("img", { src: `samples/${label}.png`, alt: "" });
  const button = make("button", {}, image, name);
  button.onclick = () => show(() => image.decode().then(() => image), button);
  return button;
});
$("samples").append(...samples);
$("choose").onclick = () => $("file").click();
$("file").onchange = () => {
  showFile($("file").files[0]);
  $("file").value = ""; // so that the same file can be chosen again
};
document.onpaste = (event) => showFile(event.clipboardData.files[0]);
for (const type of ["dragover", "dragleave", "drop"])
  window.addEventListener(type, (event) => {
    event.preventDefault();
    document.body.classList.toggle("dropping", type === "dragover");
    if (type === "drop") showFile(event.dataTransfer.files[0]);
  });

$("camera").onclick = async () => {
  const camera = { video: { facingMode: "environment" } };
  $("camera").disabled = true; // while the browser asks for permission, one request is enough
  $("video").srcObject = await navigator.mediaDevices?.getUserMedia(camera).catch(() => null);
  $("camera").disabled = false;
  if ($("video").srcObject) $("viewfinder").showModal();
  else say("There is no camera, or this page may not use it.");
};
$("video").oncanplay = () => ($("take").disabled = false);
$("take").onclick = () => show(() => $("video")).then(() => $("viewfinder").close());
$("cancel").onclick = () => $("viewfinder").close();
$("viewfinder").onclose = () => {
  $("take").disabled = true;
  $("video").srcObject.getTracks().forEach((track) => track.stop());
};

$("parameters").textContent = network.parameters.toLocaleString("en");
$("size").textContent = `(${Math.round(network.bytes / 1000)} KB)`;
samples[0].click();
