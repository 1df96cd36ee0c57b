// The page: pictures come in by click, drop, paste and camera; the network's answer is shown.

import * as ort from "./ort.wasm.bundle.min.mjs";
import { SIZE, centreSquare, openPicture, shrink } from "./picture.js";

const TOP = 3; // classes shown
const TINT = [255, 96, 16]; // red, green, blue of what speaks for a class
const $ = (id) => document.getElementById(id);
const press = (buttons, pressed) => buttons.forEach((b) => b.setAttribute("aria-pressed", b === pressed));

function make(tag, properties, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

// Fill a canvas of side x side pixels; `colour` gives red, green, blue and alpha by the pixel's index.
function paint(canvas, side, colour) {
  const image = new ImageData(side, side);
  for (let i = 0; i < side * side; i++) image.data.set(colour(i), 4 * i);
  Object.assign(canvas, { width: side, height: side }).getContext("2d").putImageData(image, 0, 0);
}

// Tint what speaks for class `k`: its class activation map, over the grey square.
function drawMap(maps, k) {
  const side = Math.sqrt(maps.length / network.classes.length);
  const map = maps.subarray(k * side * side, (k + 1) * side * side);
  const most = Math.max(...map, 1e-12);
  paint($("tint"), side, (i) => [...TINT, (225 * Math.max(map[i], 0)) / most]);
  $("where").textContent = `What speaks for ${network.classes[k]}`;
}

function drawPicture(square, pixels) {
  paint($("seen"), SIZE, (i) => [pixels[i], pixels[i + SIZE ** 2], pixels[i + 2 * SIZE ** 2], 255]);
  const side = Math.min(square.width, 512);
  Object.assign($("looked"), { width: side, height: side, className: side < 128 ? "pixels" : "" });
  $("looked").getContext("2d").drawImage(square, 0, 0, side, side);
}

// A button a class, the likeliest first, which shows the map of its class.
function makeBars(logits, maps) {
  const exponentials = [...logits].map((logit) => Math.exp(logit - Math.max(...logits)));
  const sum = exponentials.reduce((a, b) => a + b);
  const likeliest = [...logits.keys()].sort((a, b) => logits[b] - logits[a]).slice(0, TOP);
  const bars = likeliest.map((k) => {
    const percent = `${((100 * exponentials[k]) / sum).toFixed(1)}%`;
    const track = make("span", { className: "track" }, make("span"));
    track.firstChild.style.width = percent;
    const onclick = () => (press(bars, bar), drawMap(maps, k));
    const bar = make("button", { onclick }, make("b", {}, network.classes[k]), track, percent);
    return bar;
  });
  return bars;
}

async function classify(source) {
  const square = await centreSquare(source);
  const pixels = shrink(square);
  const start = performance.now();
  const outputs = await run(pixels);
  const milliseconds = performance.now() - start;
  const [logits, maps] = [outputs.logits.data, outputs.maps.data];
  drawPicture(square, pixels);
  $("bars").replaceChildren(...makeBars(logits, maps));
  $("bars").firstChild.click();
  $("best").textContent = $("bars").firstChild.firstChild.textContent;
  $("time").textContent = `One pass took ${milliseconds.toFixed(1)} ms.`;
  $("result").hidden = false;
  window.dispatchEvent(new CustomEvent("classified", { detail: { pixels, logits, maps, milliseconds } }));
}

let queue = Promise.resolve(); // a session runs one pass at a time
function show(open, sample) {
  press(samples, sample);
  $("status").textContent = "";
  queue = queue.then(open).then(classify).catch((error) => ($("status").textContent = error.message));
  return queue;
}
const showFile = (file) => file && show(() => openPicture(file));

ort.env.wasm.numThreads = 1; // more would need headers that not every host sends
const network = await (await fetch("network.json")).json();
const session = await ort.InferenceSession.create(network.file).catch((error) => {
  $("status").textContent = `The network cannot run here: ${error.message}`;
  throw error;
});
const run = (pixels) => session.run({ pixels: new ort.Tensor("uint8", pixels, [1, 3, SIZE, SIZE]) });

const samples = network.classes.map((name, label) => {
  const image = make("img", { src: `samples/${label}.png`, alt: "" });
  const onclick = () => show(() => image.decode().then(() => image), button);
  const button = make("button", { onclick }, image, name);
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
  try {
    $("video").srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    $("viewfinder").showModal();
  } catch {
    $("status").textContent = "There is no camera, or this page may not use it.";
  }
};
$("take").onclick = () => show(() => $("video")).then(() => $("viewfinder").close());
$("cancel").onclick = () => $("viewfinder").close();
$("viewfinder").onclose = () => $("video").srcObject.getTracks().forEach((track) => track.stop());

$("parameters").textContent = network.parameters.toLocaleString("en");
$("size").textContent = ` (${Math.round(network.bytes / 1000)} KB)`;
await run(new Uint8Array(3 * SIZE * SIZE)); // the first pass is slow
samples[0].click();
