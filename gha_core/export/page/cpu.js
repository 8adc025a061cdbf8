"use strict";
// Gaussian splatting without a graphics card: from near to far, each pixel until it is opaque. The
// picture is cut into bands, each drawn by a worker.

const LEFT = 0.01; // a pixel through which less of what lies behind can be seen is finished
const TILE = 3; // pixels are counted in squares of 2 ** TILE
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
    const address = URL.createObjectURL(new Blob([source.join("\n"), "\nserveBands();"]));
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
    this.bands = [];
    this.waiting = count;
    this.workers.forEach((worker, index) => {
      const top = Math.round((height * index) / count), bottom = Math.round((height * (index + 1)) / count);
      worker.postMessage({ view, background, width, height, top, bottom });
    });
  }

  #arrived({ pixels, width, top }) {
    this.bands.push([new ImageData(pixels, width), top]);
    if (--this.waiting) return;
    for (const [image, row] of this.bands) this.context.putImageData(image, 0, row);
    this.shown();
  }
}

// What a worker does.
function serveBands() {
  let band;
  onmessage = ({ data }) => {
    if (data.texels) {
      band ??= new Band(data);
      band.gaussians.texels = data.texels;
    } else if (data.bottom > data.top) {
      const pixels = band.draw(data);
      postMessage({ pixels, width: data.width, top: data.top }, [pixels.buffer]);
    } else {
      postMessage({ pixels: new Uint8ClampedArray(4), width: 1, top: -1 });
    }
  };
}

// Some rows of the picture.
class Band {
  constructor(gaussians) {
    this.gaussians = gaussians; // {count, texels}
    this.order = new FarToNear(gaussians);
  }

  // [rows, width, 4] bytes.
  draw({ view, background, width, height, top, bottom }) {
    Object.assign(this, { width, height, top, bottom });
    const size = 4 * width * (bottom - top);
    if (this.light?.length !== size) this.light = new Float32Array(size); // red, green, blue, alpha
    this.light.fill(0);
    this.#openAll();
    const order = this.order.sort(view);
    for (let i = order.length - 1; i >= 0; i--) this.#splat(order[i], view);
    return this.#over(background);
  }

  #splat(index, { turn, shift, focal }) {
    const { width, height } = this;
    const { texels } = this.gaussians, at = 4 * TEXELS * index;
    const x = texels[at], y = texels[at + 1], z = texels[at + 2], opacity = texels[at + 3];
    const depth = turn[6] * x + turn[7] * y + turn[8] * z + shift[2];
    if (depth < 0.05 || opacity < 1 / 255) return;
    const f = focal * height, pixels = f / depth;
    const rayX = (turn[0] * x + turn[1] * y + turn[2] * z + shift[0]) / depth;
    const rayY = (turn[3] * x + turn[4] * y + turn[5] * z + shift[1]) / depth;
    const centreX = 0.5 * width + f * rayX, centreY = 0.5 * height + f * rayY;

    // The image of the 3D Gaussian, to first order about its centre (Zwicker et al., 2001).
    const limitX = (0.65 * width) / f, limitY = (0.65 * height) / f;
    const boundX = clamp(rayX, -limitX, limitX), boundY = clamp(rayY, -limitY, limitY);
    const u0 = turn[0] - boundX * turn[6], u1 = turn[1] - boundX * turn[7], u2 = turn[2] - boundX * turn[8];
    const v0 = turn[3] - boundY * turn[6], v1 = turn[4] - boundY * turn[7], v2 = turn[5] - boundY * turn[8];
    const xx = texels[at + 4], xy = texels[at + 5], xz = texels[at + 6];
    const yy = texels[at + 7], yz = texels[at + 8], zz = texels[at + 9];
    const w0 = xx * u0 + xy * u1 + xz * u2, w1 = xy * u0 + yy * u1 + yz * u2, w2 = xz * u0 + yz * u1 + zz * u2;
    const s = pixels * pixels;
    const uu = s * (u0 * w0 + u1 * w1 + u2 * w2) + 0.3;
    const uv = s * (v0 * w0 + v1 * w1 + v2 * w2);
    const vv = s * (
      v0 * (xx * v0 + xy * v1 + xz * v2) + v1 * (xy * v0 + yy * v1 + yz * v2) + v2 * (xz * v0 + yz * v1 + zz * v2)
    ) + 0.3;
    const determinant = uu * vv - uv * uv;
    const a = vv / determinant, b = -uv / determinant, c = uu / determinant;

    // Row by row, between the ends of the ellipse in which it adds a level of 8 bits.
    const reach = 2 * Math.log(255 * opacity), tall = Math.sqrt(reach * vv);
    const first = Math.max(this.top, Math.ceil(centreY - tall - 0.5));
    const last = Math.min(this.bottom - 1, Math.floor(centreY + tall - 0.5));
    const red = clamp(texels[at + 12], 0, 1), green = clamp(texels[at + 13], 0, 1), blue = clamp(texels[at + 14], 0, 1);
    const wide = Math.sqrt(reach * uu);
    if (first > last || this.#hidden(first, last, Math.max(0, centreX - wide), Math.min(width - 1, centreX + wide))) return;
    const { light, open, columns } = this, step = 2 * a * PER_UNIT;
    for (let row = first; row <= last; row++) {
      const dy = row + 0.5 - centreY;
      const inside = a * reach - dy * dy / determinant;
      if (inside < 0) continue;
      const half = Math.sqrt(inside) / a, middle = centreX - (b * dy) / a;
      const left = Math.max(0, Math.ceil(middle - half - 0.5));
      const right = Math.min(width - 1, Math.floor(middle + half - 0.5));
      const dx = left + 0.5 - centreX;
      // q and its growth from pixel to pixel, in steps of the table.
      let q = (a * dx * dx + 2 * b * dx * dy + c * dy * dy) * PER_UNIT;
      let growth = (a * (2 * dx + 1) + 2 * b * dy) * PER_UNIT;
      const start = (row - this.top) * width, end = 4 * (start + right);
      for (let p = 4 * (start + left); p <= end; p += 4) {
        const through = 1 - light[p + 3];
        if (through > LEFT) {
          const weight = opacity * FALL[q | 0] * through;
          light[p] += weight * red;
          light[p + 1] += weight * green;
          light[p + 2] += weight * blue;
          light[p + 3] += weight;
          if (through - weight <= LEFT) open[((row - this.top) >> TILE) * columns + (((p >> 2) - start) >> TILE)]--;
        }
        q += growth;
        growth += step;
      }
    }
  }

  #openAll() {
    const { width, top, bottom } = this, side = 1 << TILE;
    this.columns = (width >> TILE) + 1;
    const rows = ((bottom - top) >> TILE) + 1;
    this.open = new Uint8Array(this.columns * rows); // pixels that are not finished
    for (let row = 0; row < rows; row++) {
      const tall = clamp(bottom - top - row * side, 0, side);
      for (let column = 0; column < this.columns; column++) {
        this.open[row * this.columns + column] = tall * clamp(width - column * side, 0, side);
      }
    }
  }

  // Whether all pixels from here to there are finished.
  #hidden(first, last, left, right) {
    const { open, columns, top } = this;
    for (let row = (first - top) >> TILE; row <= (last - top) >> TILE; row++) {
      for (let column = left >> TILE; column <= right >> TILE; column++) {
        if (open[row * columns + column]) return false;
      }
    }
    return true;
  }

  #over([red, green, blue]) {
    const { light } = this, pixels = new Uint8ClampedArray(light.length);
    for (let p = 0; p < pixels.length; p += 4) {
      const through = 1 - light[p + 3];
      pixels[p] = 255 * (light[p] + through * red);
      pixels[p + 1] = 255 * (light[p + 1] + through * green);
      pixels[p + 2] = 255 * (light[p + 2] + through * blue);
      pixels[p + 3] = 255;
    }
    return pixels;
  }
}
