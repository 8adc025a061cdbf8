"use strict";
// The baked avatar: what each Gaussian is at given coefficients. Lengths are head lengths.

// Channels of what a Gaussian learned, each an array over all Gaussians.
const PLACE = 0, TURN = 3, SIZE = 6, OPACITY = 9, COLOUR = 10, CHANNELS = 13;
const CARRIED_CHANNELS = 6; // place and turn
// Per Gaussian in the texture: (x, y, z, opacity), (xx, xy, xz, yy), (yz, zz, -, -), (r, g, b, -).
const TEXELS = 4;
const TEXTURE_WIDTH = 1024;
const SMALLEST_CHANGE = 0.004; // of a coefficient: less nobody sees
const SMALLEST_SIZE = Math.log(2e-4), LARGEST_SIZE = Math.log(0.2);

class Gaussians {
  constructor(description, arrays) {
    this.count = description.gaussians;
    this.moving = description.moving; // how many, from the front, any expression moves
    this.expressions = description.expressions.length;
    this.arrays = arrays;
    this.learned = Float32Array.from(arrays.rest);
    this.carried = new Float32Array(CARRIED_CHANNELS * this.moving);
    this.applied = new Float64Array(2 * this.expressions + 6); // coefficients that are in these sums
    const rows = Math.ceil((this.count * TEXELS) / TEXTURE_WIDTH);
    this.texels = new Float32Array(rows * TEXTURE_WIDTH * 4);
  }

  // Fills `texels` for coefficients [E] and the head's pose [6]: a rotation vector, an offset.
  update(expression, pose) {
    this.#sum(expression, pose);
    this.#place(pose);
  }

  #sum(expression, pose) {
    const { low, high, learned, learnedScale, carried, carriedScale, posed, posedScale } = this.arrays;
    const e = this.expressions;
    for (let k = 0; k < e; k++) {
      const seen = clamp(expression[k], low[k], high[k]);
      this.#apply(k, seen, this.learned, this.count, learned, this.moving, k, CHANNELS, learnedScale);
      this.#apply(e + k, expression[k], this.carried, this.moving, carried, this.moving, k, CARRIED_CHANNELS, carriedScale);
    }
    for (let k = 0; k < 6; k++) {
      const seen = clamp(pose[k], low[e + k], high[e + k]);
      this.#apply(2 * e + k, seen, this.learned, this.count, posed, this.count, k, CHANNELS, posedScale);
    }
  }

  // sum[channel][row] += change * scale[k][channel] * bytes[k][channel][row], where the coefficient
  // has changed so much that anybody could see it.
  #apply(slot, value, sum, stride, bytes, rows, k, channels, scale) {
    const change = value - this.applied[slot];
    if (Math.abs(change) < SMALLEST_CHANGE && (value !== 0 || change === 0)) return;
    this.applied[slot] = value;
    for (let channel = 0; channel < channels; channel++) {
      const factor = change * scale[k * channels + channel];
      if (factor === 0) continue;
      const start = (k * channels + channel) * rows;
      const from = bytes.subarray(start, start + rows);
      const to = sum.subarray(channel * stride, channel * stride + rows);
      for (let i = 0; i < rows; i++) to[i] += factor * from[i];
    }
  }

  #place(pose) {
    const { count, moving, learned, carried, texels } = this;
    const { means, quaternions, body } = this.arrays;
    const head = fromRotationVector(pose[0], pose[1], pose[2]);
    const h = toMatrix(head);
    const [tx, ty, tz] = [pose[3], pose[4], pose[5]];
    for (let i = 0; i < count; i++) {
      const stays = body[i];
      let x = means[3 * i], y = means[3 * i + 1], z = means[3 * i + 2];
      let rx = learned[(TURN + 0) * count + i] - stays * pose[0];
      let ry = learned[(TURN + 1) * count + i] - stays * pose[1];
      let rz = learned[(TURN + 2) * count + i] - stays * pose[2];
      if (i < moving) {
        x += carried[i];
        y += carried[moving + i];
        z += carried[2 * moving + i];
        rx += carried[3 * moving + i];
        ry += carried[4 * moving + i];
        rz += carried[5 * moving + i];
      }
      // What belongs to the torso stays where it is while the head moves.
      const dx = x - tx, dy = y - ty, dz = z - tz;
      x += stays * (h[0] * dx + h[3] * dy + h[6] * dz - x) + learned[i];
      y += stays * (h[1] * dx + h[4] * dy + h[7] * dz - y) + learned[count + i];
      z += stays * (h[2] * dx + h[5] * dy + h[8] * dz - z) + learned[2 * count + i];

      const at = 4 * TEXELS * i;
      texels[at] = h[0] * x + h[1] * y + h[2] * z + tx;
      texels[at + 1] = h[3] * x + h[4] * y + h[5] * z + ty;
      texels[at + 2] = h[6] * x + h[7] * y + h[8] * z + tz;
      texels[at + 3] = 1 / (1 + Math.exp(-learned[OPACITY * count + i]));

      // Rotation of the Gaussian: at rest, then its turn, then the head.
      const [a, b, c, d] = fromRotationVector(rx, ry, rz);
      const [e, f, g, k] = product(
        head, product([a, b, c, d], quaternions.subarray(4 * i, 4 * i + 4)),
      );
      const sx = size(learned[SIZE * count + i]);
      const sy = size(learned[(SIZE + 1) * count + i]);
      const sz = size(learned[(SIZE + 2) * count + i]);
      const m0 = (1 - 2 * (g * g + k * k)) * sx, m1 = 2 * (f * g - e * k) * sy, m2 = 2 * (f * k + e * g) * sz;
      const m3 = 2 * (f * g + e * k) * sx, m4 = (1 - 2 * (f * f + k * k)) * sy, m5 = 2 * (g * k - e * f) * sz;
      const m6 = 2 * (f * k - e * g) * sx, m7 = 2 * (g * k + e * f) * sy, m8 = (1 - 2 * (f * f + g * g)) * sz;
      texels[at + 4] = m0 * m0 + m1 * m1 + m2 * m2;
      texels[at + 5] = m0 * m3 + m1 * m4 + m2 * m5;
      texels[at + 6] = m0 * m6 + m1 * m7 + m2 * m8;
      texels[at + 7] = m3 * m3 + m4 * m4 + m5 * m5;
      texels[at + 8] = m3 * m6 + m4 * m7 + m5 * m8;
      texels[at + 9] = m6 * m6 + m7 * m7 + m8 * m8;
      texels[at + 12] = learned[COLOUR * count + i];
      texels[at + 13] = learned[(COLOUR + 1) * count + i];
      texels[at + 14] = learned[(COLOUR + 2) * count + i];
    }
  }
}

function size(logarithm) {
  return Math.exp(clamp(logarithm, SMALLEST_SIZE, LARGEST_SIZE));
}

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

// Quaternions are w, x, y, z.
function fromRotationVector(x, y, z) {
  const angle = Math.hypot(x, y, z);
  const sine = angle > 1e-9 ? Math.sin(angle / 2) / angle : 0.5;
  return [Math.cos(angle / 2), sine * x, sine * y, sine * z];
}

function product([aw, ax, ay, az], [bw, bx, by, bz]) {
  return [
    aw * bw - ax * bx - ay * by - az * bz,
    aw * bx + ax * bw + ay * bz - az * by,
    aw * by - ax * bz + ay * bw + az * bx,
    aw * bz + ax * by - ay * bx + az * bw,
  ];
}

function toMatrix([w, x, y, z]) {
  return [
    1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
    2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
    2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
  ];
}
