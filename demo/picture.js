// From a picture to the 32 x 32 pixels that the network takes, as predict.py does it.

export const SIZE = 32; // pixels, height and width
const MOST_PIXELS = 89_478_485; // of a picture, as Pillow has it
const STRIP = 256; // rows that are read at a time, so that a large picture needs little memory

// The picture in a file. An error says in a sentence why there is none.
export async function openPicture(file) {
  const image = Object.assign(new Image(), { src: URL.createObjectURL(file) });
  try {
    await new Promise((resolve, reject) => Object.assign(image, { onload: resolve, onerror: reject }));
  } catch {
    throw new Error("That is no picture that this browser can read.");
  }
  if (image.naturalWidth * image.naturalHeight > MOST_PIXELS)
    throw new Error("That picture has more than 89 million pixels: too many for this page.");
  return image;
}

// The largest square at the centre of an image or a video, as a bitmap.
export async function centreSquare(source) {
  const width = source.videoWidth ?? source.naturalWidth;
  const height = source.videoHeight ?? source.naturalHeight;
  const side = Math.min(width, height);
  const corner = [(width - side) >> 1, (height - side) >> 1];
  return createImageBitmap(source, ...corner, side, side, { colorSpaceConversion: "none" }).catch(() => {
    throw new Error("That picture is damaged.");
  });
}

// The cubic kernel with a = -0.5 (Keys 1981), which is Pillow's.
function cubic(x) {
  x = Math.abs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}

// For each of SIZE pixels: the first of the `side` pixels that it is made of, and their weights.
function makeTaps(side) {
  const scale = side / SIZE;
  const stretch = Math.max(scale, 1); // the kernel is as wide as what it sums up, against aliasing
  return Array.from({ length: SIZE }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - 2 * stretch + 0.5));
    const last = Math.min(side, Math.trunc(centre + 2 * stretch + 0.5));
    const weights = Array.from({ length: last - first }, (_, k) => cubic((first + k + 0.5 - centre) / stretch));
    const total = weights.reduce((a, b) => a + b);
    return { first, weights: weights.map((weight) => weight / total) };
  });
}

function weighted(weights, bytes, start, step) {
  let sum = 0;
  for (let k = 0; k < weights.length; k++) sum += weights[k] * bytes[start + k * step];
  return sum;
}

// A square bitmap, over white -> 3 x SIZE x SIZE bytes: a plane each of red, green and blue.
export function shrink(square) {
  const side = square.width;
  const taps = makeTaps(side);
  const narrow = new Uint8ClampedArray(side * SIZE * 3); // rows of SIZE pixels; rounded, as Pillow does
  const context = new OffscreenCanvas(side, STRIP).getContext("2d", { willReadFrequently: true });
  for (let top = 0; top < side; top += STRIP) {
    context.fillStyle = "white";
    context.fillRect(0, 0, side, STRIP);
    context.drawImage(square, 0, -top);
    const strip = context.getImageData(0, 0, side, STRIP).data; // red, green, blue, alpha
    for (let y = 0; y < Math.min(STRIP, side - top); y++)
      taps.forEach(({ first, weights }, x) => {
        for (let c = 0; c < 3; c++)
          narrow[((top + y) * SIZE + x) * 3 + c] = weighted(weights, strip, (y * side + first) * 4 + c, 4);
      });
  }
  const pixels = new Uint8ClampedArray(3 * SIZE * SIZE);
  taps.forEach(({ first, weights }, y) => {
    for (let x = 0; x < SIZE; x++)
      for (let c = 0; c < 3; c++)
        pixels[(c * SIZE + y) * SIZE + x] = weighted(weights, narrow, (first * SIZE + x) * 3 + c, SIZE * 3);
  });
  return new Uint8Array(pixels.buffer);
}
