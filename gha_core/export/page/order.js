"use strict";
// The order of drawing.

class FarToNear {
  constructor(gaussians) {
    this.gaussians = gaussians;
    this.indices = new Uint32Array(gaussians.count);
    this.depths = new Float32Array(gaussians.count);
    this.keys = new Uint16Array(gaussians.count);
    this.starts = new Uint32Array(65537);
  }

  // Sorts `indices` for a view: a counting sort by 16 bits of depth.
  sort({ turn }) {
    const { depths, keys, starts, indices } = this, { count, texels } = this.gaussians;
    let near = Infinity, far = -Infinity;
    for (let i = 0, at = 0; i < count; i++, at += 4 * TEXELS) {
      const depth = turn[6] * texels[at] + turn[7] * texels[at + 1] + turn[8] * texels[at + 2];
      depths[i] = depth;
      if (depth < near) near = depth;
      if (depth > far) far = depth;
    }
    const scale = 65535 / Math.max(far - near, 1e-9);
    starts.fill(0);
    for (let i = 0; i < count; i++) {
      const key = ((far - depths[i]) * scale) | 0;
      keys[i] = key;
      starts[key + 1]++;
    }
    for (let key = 0; key < 65536; key++) starts[key + 1] += starts[key];
    for (let i = 0; i < count; i++) indices[starts[keys[i]]++] = i;
    return indices;
  }
}
