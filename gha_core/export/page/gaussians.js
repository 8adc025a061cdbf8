"use strict";
// The baked avatar: what each Gaussian is at given coefficients. Lengths are head lengths.

// Channels of what a Gaussian learned, each an array over all Gaussians.
const PLACE = 0, TURN = 3, SIZE = 6, OPACITY = 9, COLOUR = 10, CHANNELS = 13;
const CARRIED_CHANNELS = 6; // place and turn
// Per Gaussian in the texture: (x, y, z, opacity), (xx, xy, xz, yy), (yz, zz, -, -), (r, g, b, -).
const TEXELS = 4;
const TEXTURE_WIDTH = 1024;
// What of a channel's change nobody sees while the avatar moves: lengths, radians, logarithms of sizes,
// logits of opacity, shares of a colour.
const UNSEEN = [2e-4, 2e-4, 2e-4, 0.02, 0.02, 0.02, 0.02, 0.02, 0.02, 0.03, 2e-3, 2e-3, 2e-3];
const SMALLEST_SIZE = Math.log(2e-4), LARGEST_SIZE = Math.log(0.2);

class Gaussians {
  constructor(description, arrays) {
    this.count = description.gaussians;
    this.moving = description.moving; // how many, from the front, any expression moves
    this.expressions = description.expressions.length;
    this.arrays = arrays;
    const { rest, learned, posed, learnedScale, posedScale } = arrays;
    this.learned = Float32Array.from(rest);
    this.carried = new Float32Array(CARRIED_CHANNELS * this.moving);
    this.byExpression = new Sum(this.learned, this.count, learned, learnedScale, this.moving, this.expressions);
    this.byPose = new Sum(this.learned, this.count, posed, posedScale, this.count, 6);
    this.carriers = Array.from({ length: this.expressions }, (_, k) => carriedBy(k, arrays, this.moving));
    this.applied = new Float32Array(this.expressions); // coefficients that are in `carried`
    const rows = Math.ceil((this.count * TEXELS) / TEXTURE_WIDTH);
    this.texels = new Float32Array(rows * TEXTURE_WIDTH * 4);
  }

  // Fills `texels` for coefficients [E] and the head's pose [6]: a rotation vector, an offset.
  // Exactly, or leaving out what nobody sees in a picture that is soon replaced.
  update(expression, pose, exactly) {
    const { low, high } = this.arrays, e = this.expressions;
    const seen = (value, k) => clamp(value, low[k], high[k]);
    this.byExpression.bring(expression.map(seen), exactly);
    this.byPose.bring(pose.map((value, k) => seen(value, e + k)), exactly);
    this.#carry(expression);
    this.#place(pose);
  }

  #carry(expression) {
    const { carried, applied } = this;
    for (let k = 0; k < this.expressions; k++) {
      const change = expression[k] - applied[k], { rows, shares, scale } = this.carriers[k];
      if (change === 0) continue;
      applied[k] = expression[k];
      const f0 = change * scale[0], f1 = change * scale[1], f2 = change * scale[2];
      const f3 = change * scale[3], f4 = change * scale[4], f5 = change * scale[5];
      for (let n = 0, from = 0; n < rows.length; n++, from += CARRIED_CHANNELS) {
        const to = CARRIED_CHANNELS * rows[n];
        carried[to] += f0 * shares[from];
        carried[to + 1] += f1 * shares[from + 1];
        carried[to + 2] += f2 * shares[from + 2];
        carried[to + 3] += f3 * shares[from + 3];
        carried[to + 4] += f4 * shares[from + 4];
        carried[to + 5] += f5 * shares[from + 5];
      }
    }
  }

  #place(pose) {
    const { count, moving, learned, carried, texels } = this;
    const { means, quaternions, body } = this.arrays;
    const [nod, yaw, tilt, tx, ty, tz] = pose;
    const [hw, hx, hy, hz] = fromRotationVector(nod, yaw, tilt);
    const [h0, h1, h2, h3, h4, h5, h6, h7, h8] = toMatrix([hw, hx, hy, hz]);
    for (let i = 0; i < count; i++) {
      const stays = body[i];
      let x = means[3 * i], y = means[3 * i + 1], z = means[3 * i + 2];
      let rx = learned[TURN * count + i] - stays * nod;
      let ry = learned[(TURN + 1) * count + i] - stays * yaw;
      let rz = learned[(TURN + 2) * count + i] - stays * tilt;
      if (i < moving) {
        const from = CARRIED_CHANNELS * i;
        x += carried[from];
        y += carried[from + 1];
        z += carried[from + 2];
        rx += carried[from + 3];
        ry += carried[from + 4];
        rz += carried[from + 5];
      }
      // What belongs to the torso stays where it is while the head moves.
      const dx = x - tx, dy = y - ty, dz = z - tz;
      x += stays * (h0 * dx + h3 * dy + h6 * dz - x) + learned[i];
      y += stays * (h1 * dx + h4 * dy + h7 * dz - y) + learned[count + i];
      z += stays * (h2 * dx + h5 * dy + h8 * dz - z) + learned[2 * count + i];

      const at = 4 * TEXELS * i;
      texels[at] = h0 * x + h1 * y + h2 * z + tx;
      texels[at + 1] = h3 * x + h4 * y + h5 * z + ty;
      texels[at + 2] = h6 * x + h7 * y + h8 * z + tz;
      texels[at + 3] = 1 / (1 + Math.exp(-learned[OPACITY * count + i]));

      // Rotation of the Gaussian: at rest, then its turn, then the head. Products of quaternions are
      // written out: arrays would take longer than all else.
      const angle = Math.sqrt(rx * rx + ry * ry + rz * rz);
      const sine = angle > 1e-9 ? Math.sin(0.5 * angle) / angle : 0.5;
      const aw = Math.cos(0.5 * angle), ax = sine * rx, ay = sine * ry, az = sine * rz;
      const bw = quaternions[4 * i], bx = quaternions[4 * i + 1], by = quaternions[4 * i + 2], bz = quaternions[4 * i + 3];
      const cw = aw * bw - ax * bx - ay * by - az * bz, cx = aw * bx + ax * bw + ay * bz - az * by;
      const cy = aw * by - ax * bz + ay * bw + az * bx, cz = aw * bz + ax * by - ay * bx + az * bw;
      const e = hw * cw - hx * cx - hy * cy - hz * cz, f = hw * cx + hx * cw + hy * cz - hz * cy;
      const g = hw * cy - hx * cz + hy * cw + hz * cx, k = hw * cz + hx * cy - hy * cx + hz * cw;
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

// What some coefficients do to all channels: sum[channel][row] += coefficient[k] * scale[k][channel] *
// bytes[k][channel][row], kept up to date by differences.
class Sum {
  constructor(sum, stride, bytes, scale, rows, coefficients) {
    Object.assign(this, { sum, stride, bytes, scale, rows, coefficients });
    this.applied = new Float32Array(coefficients * CHANNELS); // what is in each channel
  }

  bring(values, exactly) {
    const { applied, scale, rows, bytes, stride } = this;
    for (let channel = 0; channel < CHANNELS; channel++) {
      const to = this.sum.subarray(channel * stride, channel * stride + rows), factors = [], changes = [];
      for (let k = 0; k < this.coefficients; k++) {
        const at = k * CHANNELS + channel, factor = (values[k] - applied[at]) * scale[at];
        if (factor === 0 || (!exactly && 127 * Math.abs(factor) < UNSEEN[channel])) continue;
        applied[at] = values[k];
        factors.push(factor);
        changes.push(bytes.subarray(at * rows, (at + 1) * rows));
      }
      // Four at a time: half the work is to fetch the sum and to put it back.
      for (let n = 0; n < factors.length; n += 4) {
        const [a, b, c, d] = Array.from({ length: 4 }, (_, more) => changes[n + more] ?? changes[n]);
        const [fa, fb, fc, fd] = Array.from({ length: 4 }, (_, more) => factors[n + more] ?? 0);
        for (let i = 0; i < rows; i++) to[i] += fa * a[i] + fb * b[i] + fc * c[i] + fd * d[i];
      }
    }
  }
}

// What the face model does to Gaussians by a coefficient: it moves few.
function carriedBy(k, { carried, carriedScale }, moving) {
  const channels = Array.from({ length: CARRIED_CHANNELS }, (_, channel) => {
    const start = (k * CARRIED_CHANNELS + channel) * moving;
    return carried.subarray(start, start + moving);
  });
  const rows = Uint32Array.from({ length: moving }, (_, row) => row).filter((row) => channels.some((shares) => shares[row]));
  const shares = new Int8Array(CARRIED_CHANNELS * rows.length);
  rows.forEach((row, n) => channels.forEach((one, channel) => (shares[n * CARRIED_CHANNELS + channel] = one[row])));
  return { rows, shares, scale: carriedScale.subarray(k * CARRIED_CHANNELS, (k + 1) * CARRIED_CHANNELS) };
}

function size(logarithm) {
  return Math.exp(clamp(logarithm, SMALLEST_SIZE, LARGEST_SIZE));
}

function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

// Quaternions are w, x, y, z.
function fromRotationVector(x, y, z) {
  const angle = Math.sqrt(x * x + y * y + z * z);
  const sine = angle > 1e-9 ? Math.sin(angle / 2) / angle : 0.5;
  return [Math.cos(angle / 2), sine * x, sine * y, sine * z];
}

function toMatrix([w, x, y, z]) {
  return [
    1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
    2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
    2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
  ];
}
