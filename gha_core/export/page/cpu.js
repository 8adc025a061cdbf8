"use strict";
// Gaussian splatting without a graphics card: from near to far, each pixel until it is opaque. Of
// n workers each draws every n-th row, so that all have the same work.

const LEFT = 0.05; // a pixel through which less of what lies behind can be seen is finished
const FAINT = 0.015; // a Gaussian is drawn as far as it covers so much of a pixel
const SPAN = 3; // unfinished pixels are counted in pieces of rows, 2 ** SPAN wide
// exp(-q / 2) for q = 0 .. 12 in steps of 1 / PER_UNIT.
const PER_UNIT = 256;
const FALL = Float32Array.from({ length: 12 * PER_UNIT }, (_, i) => Math.exp((-0.5 * (i + 0.5)) / PER_UNIT));

class CPURenderer {
  mostPixels = 512 * 640;

  constructor(canvas, gaussians) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d", { alpha: false });
    this.gaussians = gaussians;
    this.waiting = 0; // for so many workers
    // A worker has no page: it gets the scripts as text.
    const source = [...document.querySelectorAll("script[data-worker]")].map((script) => script.textContent);
    const address = URL.createObjectURL(new Blob([source.join("\n"), "\nserveRows();"]));
    const count = clamp(navigator.hardwareConcurrency || 2, 1, 8);
    this.workers = Array.from({ length: count }, () => new Worker(address));
    for (const worker of this.workers) worker.onmessage = ({ data }) => this.#arrived(data);
    this.upload();
  }

  get busy() {
    return this.waiting > 0;
  }

  // After `gaussians.update`.
  upload() {
    const { texels, count } = this.gaussians;
    for (const worker of this.workers) worker.postMessage({ texels, count });
  }

  // view: {turn [9] row by row, shift [3], focal: in heights of the picture}; background: [3];
  // shown: called when the picture is there.
  draw(view, background, shown) {
    const { width, height } = this.canvas, count = this.workers.length;
    this.shown = shown;
    this.image = new ImageData(width, height);
    this.waiting = count;
    this.workers.forEach((worker, top) => {
      worker.postMessage({ view, background, width, height, top, every: count });
    });
  }

  #arrived({ pixels, top, every }) {
    const { data, width } = this.image, size = 4 * width;
    for (let start = 0, row = top; start < pixels.length; start += size, row += every) {
      data.set(pixels.subarray(start, start + size), row * size);
    }
    if (--this.waiting) return;
    this.context.putImageData(this.image, 0, 0);
    this.shown();
  }
}

// What a worker does.
function serveRows() {
  let rows;
  onmessage = ({ data }) => {
    if (data.texels) {
      rows ??= new Rows(data);
      rows.gaussians.texels = data.texels;
    } else {
      const pixels = rows.draw(data);
      postMessage({ pixels, top: data.top, every: data.every }, [pixels.buffer]);
    }
  };
}

// Every so many rows of the picture, from `top` on.
class Rows {
  constructor(gaussians) {
    this.gaussians = gaussians; // {count, texels}
    this.order = new FarToNear(gaussians);
  }

  // [rows, width, 4] bytes.
  draw({ view, background, width, height, top, every }) {
    const count = Math.max(0, Math.ceil((height - top) / every));
    Object.assign(this, { width, height, top, every, count });
    this.#clear();
    const order = this.order.sort(view);
    for (let i = order.length - 1; i >= 0; i--) this.#splat(order[i], view);
    return this.#over(background);
  }

  #clear() {
    const { width, count } = this, size = 4 * width * count;
    this.columns = Math.ceil(width / (1 << SPAN));
    if (this.light?.length !== size) {
      this.light = new Float32Array(size); // red, green, blue, and what is seen of what lies behind
      this.open = new Uint8Array(this.columns * count); // unfinished pixels of each piece
    }
    const { light, open, columns } = this;
    light.fill(0);
    for (let p = 3; p < size; p += 4) light[p] = 1;
    open.fill(1 << SPAN);
    const last = width - ((columns - 1) << SPAN);
    for (let piece = columns - 1; piece < open.length; piece += columns) open[piece] = last;
  }

  #splat(index, { turn, shift, focal }) {
    const { width, height, top, every } = this;
    const { texels } = this.gaussians, at = 4 * TEXELS * index;
    const x = texels[at], y = texels[at + 1], z = texels[at + 2], opacity = texels[at + 3];
    const depth = turn[6] * x + turn[7] * y + turn[8] * z + shift[2];
    if (depth < 0.05 || opacity < FAINT) return;
    const f = focal * height, pixels = f / depth, s = pixels * pixels;

    // The image of the 3D Gaussian, to first order about its centre (Zwicker et al., 2001).
    const rayY = (turn[3] * x + turn[4] * y + turn[5] * z + shift[1]) / depth;
    const limitY = (0.65 * height) / f, boundY = clamp(rayY, -limitY, limitY);
    const v0 = turn[3] - boundY * turn[6], v1 = turn[4] - boundY * turn[7], v2 = turn[5] - boundY * turn[8];
    const xx = texels[at + 4], xy = texels[at + 5], xz = texels[at + 6];
    const yy = texels[at + 7], yz = texels[at + 8], zz = texels[at + 9];
    const w0 = xx * v0 + xy * v1 + xz * v2, w1 = xy * v0 + yy * v1 + yz * v2, w2 = xz * v0 + yz * v1 + zz * v2;
    const vv = s * (v0 * w0 + v1 * w1 + v2 * w2) + 0.3;

    // Row by row, between the ends of the ellipse in which it is not faint.
    const reach = 2 * Math.log(opacity / FAINT), tall = Math.sqrt(reach * vv);
    const centreY = 0.5 * height + f * rayY;
    const first = Math.max(0, Math.ceil((centreY - tall - 0.5 - top) / every));
    const last = Math.min(this.count - 1, Math.floor((centreY + tall - 0.5 - top) / every));
    if (first > last) return;

    const rayX = (turn[0] * x + turn[1] * y + turn[2] * z + shift[0]) / depth;
    const limitX = (0.65 * width) / f, boundX = clamp(rayX, -limitX, limitX), centreX = 0.5 * width + f * rayX;
    const u0 = turn[0] - boundX * turn[6], u1 = turn[1] - boundX * turn[7], u2 = turn[2] - boundX * turn[8];
    const uv = s * (u0 * w0 + u1 * w1 + u2 * w2);
    const uu = s * (
      u0 * (xx * u0 + xy * u1 + xz * u2) + u1 * (xy * u0 + yy * u1 + yz * u2) + u2 * (xz * u0 + yz * u1 + zz * u2)
    ) + 0.3;
    const flat = 1 / (uu * vv - uv * uv);
    const a = vv * flat, b = -uv * flat, c = uu * flat, narrow = 1 / a, lean = b * narrow;
    const red = clamp(texels[at + 12], 0, 1), green = clamp(texels[at + 13], 0, 1), blue = clamp(texels[at + 14], 0, 1);
    const { light, open, columns } = this, edge = width - 1, step = 2 * a * PER_UNIT;
    for (let row = first; row <= last; row++) {
      const dy = top + row * every + 0.5 - centreY;
      const inside = a * reach - dy * dy * flat;
      if (inside < 0) continue;
      const half = Math.sqrt(inside) * narrow, middle = centreX - lean * dy - 0.5;
      let left = Math.max(0, Math.ceil(middle - half)), right = Math.min(edge, Math.floor(middle + half));
      const pieces = row * columns, start = row * width;
      while (left <= right && open[pieces + (left >> SPAN)] === 0) left = ((left >> SPAN) + 1) << SPAN;
      while (left <= right && open[pieces + (right >> SPAN)] === 0) right = ((right >> SPAN) << SPAN) - 1;
      const dx = left + 0.5 - centreX;
      // q and its growth from pixel to pixel, in steps of the table.
      let q = (a * dx * dx + 2 * b * dx * dy + c * dy * dy) * PER_UNIT;
      let growth = (a * (2 * dx + 1) + 2 * b * dy) * PER_UNIT;
      const end = 4 * (start + right);
      for (let p = 4 * (start + left); p <= end; p += 4) {
        const through = light[p + 3];
        if (through > LEFT) {
          const weight = opacity * FALL[q | 0] * through, rest = through - weight;
          light[p] += weight * red;
          light[p + 1] += weight * green;
          light[p + 2] += weight * blue;
          light[p + 3] = rest;
          if (rest <= LEFT) open[pieces + (((p >> 2) - start) >> SPAN)]--;
        }
        q += growth;
        growth += step;
      }
    }
  }

  #over([red, green, blue]) {
    const { light } = this, pixels = new Uint8ClampedArray(light.length);
    for (let p = 0; p < pixels.length; p += 4) {
      // Behind a finished pixel is more of the same.
      const left = light[p + 3], finished = left <= LEFT;
      const scale = finished ? 255 / (1 - left) : 255, through = finished ? 0 : 255 * left;
      pixels[p] = scale * light[p] + through * red;
      pixels[p + 1] = scale * light[p + 1] + through * green;
      pixels[p + 2] = scale * light[p + 2] + through * blue;
      pixels[p + 3] = 255;
    }
    return pixels;
  }
}
