"use strict";
// The camera: it circles a point. On stage +x is right, +y up, +z towards the viewer.

class Orbit {
  constructor(canvas, start, changed) {
    this.start = start; // {target [3], yaw, pitch (rad), distance, focal (heights of the picture)}
    this.changed = changed;
    this.reset();
    const pointers = new Map();
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      pointers.set(event.pointerId, event);
    });
    for (const end of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(end, (event) => pointers.delete(event.pointerId));
    }
    canvas.addEventListener("pointermove", (event) => {
      const last = pointers.get(event.pointerId);
      if (!last) return;
      pointers.set(event.pointerId, event);
      const dx = event.clientX - last.clientX, dy = event.clientY - last.clientY;
      if (pointers.size === 2) this.#pinch([...pointers.values()], event, last);
      else if (event.buttons & 2 || event.shiftKey) this.#pan(dx, dy, canvas.clientHeight);
      else this.#turn(dx, dy);
      this.changed();
    });
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.#zoom(Math.exp(0.001 * event.deltaY));
      this.changed();
    }, { passive: false });
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("dblclick", () => {
      this.reset();
      this.changed();
    });
  }

  reset() {
    Object.assign(this, this.start, { target: [...this.start.target] });
  }

  // Rotation (rows right, down, forward) and shift from stage to camera.
  view() {
    const { right, down, forward } = this.#axes();
    const turn = [...right, ...down, ...forward];
    const eye = this.target.map((value, axis) => value - this.distance * forward[axis]);
    const shift = [right, down, forward].map((row) => -dot(row, eye));
    return { turn: new Float32Array(turn), shift: new Float32Array(shift), focal: this.focal };
  }

  #axes() {
    const [sy, cy, sp, cp] = [Math.sin(this.yaw), Math.cos(this.yaw), Math.sin(this.pitch), Math.cos(this.pitch)];
    return { right: [cy, 0, -sy], down: [sp * sy, -cp, sp * cy], forward: [-sy * cp, -sp, -cy * cp] };
  }

  #turn(dx, dy) {
    this.yaw -= 0.008 * dx;
    this.pitch = clamp(this.pitch + 0.008 * dy, -1.4, 1.4);
  }

  #pan(dx, dy, height) {
    const { right, down } = this.#axes();
    const scale = this.distance / (this.focal * height);
    this.target = this.target.map((value, axis) => value - scale * (dx * right[axis] + dy * down[axis]));
  }

  #pinch([first, second], event, last) {
    const other = first.pointerId === event.pointerId ? second : first;
    const apart = (one) => Math.hypot(one.clientX - other.clientX, one.clientY - other.clientY);
    this.#zoom(apart(last) / Math.max(apart(event), 1));
  }

  #zoom(factor) {
    this.distance = clamp(this.distance * factor, 0.15 * this.start.distance, 4 * this.start.distance);
  }
}

function dot(a, b) {
  return a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
}
