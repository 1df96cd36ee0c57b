// From a picture to the 32 x 32 pixels that the network takes, as predict.py does it.

import * as ort from "./ort.wasm.bundle.min.mjs";

const MOST_PIXELS = 89_478_485; // of a picture, as Pillow has it

function fail(message) {
  throw new Error(message);
}

// The picture in a file. An error says in a sentence why there is none.
export async function openPicture(file) {
  const image = Object.assign(new Image(), { src: URL.createObjectURL(file) });
  await new Promise((onload, onerror) => Object.assign(image, { onload, onerror }))
    .catch(() => fail("This browser cannot read that picture."))
    .finally(() => URL.revokeObjectURL(image.src)); // else the page keeps the file
  if (image.naturalWidth * image.naturalHeight > MOST_PIXELS)
    fail("That picture has more than 89 million pixels: too many for this page.");
  return image;
}

// The largest square at the centre of an image or a video, as a bitmap.
export function centreSquare(source) {
  const width = source.videoWidth ?? source.naturalWidth;
  const height = source.videoHeight ?? source.naturalHeight;
  const side = Math.min(width, height);
  const corner = [(width - side) >> 1, (height - side) >> 1];
  return createImageBitmap(source, ...corner, side, side, { colorSpaceConversion: "none" })
    .catch(() => fail("That picture is damaged."));
}

// A square bitmap, over white -> a tensor of 1 x 3 x 32 x 32 bytes, by the session of shrink.onnx.
export async function shrink(square, shrinker) {
  const side = square.width;
  const context = new OffscreenCanvas(side, side).getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, side, side);
  context.drawImage(square, 0, 0);
  const rgba = new Uint8Array(context.getImageData(0, 0, side, side).data.buffer);
  return (await shrinker.run({ rgba: new ort.Tensor("uint8", rgba, [side, side, 4]) })).pixels;
}
