"use strict";
// The panel beside the picture: one slider per coefficient, and the player of clips.

const DEGREES = 180 / Math.PI;
const TURNS = ["nod", "turn", "tilt"]; // about +x, +y and +z

// An element with attributes and children.
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

class Sliders {
  // touched: called when a person moves a slider. Values are in `expression` and `pose`.
  constructor(panel, description, expression, pose, touched) {
    this.expression = expression;
    this.pose = pose;
    this.rows = [];
    for (const { name, members } of description.groups) {
      const group = this.#group(panel, name);
      for (const index of members) {
        const label = description.expressions[index];
        this.#row(group, label, 0, description.farthest[index], 0.01, () => expression[index], (value) => (expression[index] = value), touched);
      }
    }
    const head = this.#group(panel, "Head");
    TURNS.forEach((label, axis) => {
      const write = (value) => (pose[axis] = value / DEGREES);
      this.#row(head, label, -35, 35, 0.5, () => pose[axis] * DEGREES, write, touched);
    });
  }

  // Shows the values as they are now; what did not change is not touched.
  refresh() {
    for (const { input, output, read } of this.rows) {
      const value = read();
      const text = value.toFixed(input.max > 1 ? 0 : 2);
      if (output.value === text) continue;
      input.value = value;
      output.value = text;
    }
  }

  #group(panel, name) {
    const group = element("details", { open: "" }, element("summary", {}, name));
    panel.append(group);
    return group;
  }

  #row(group, label, min, max, step, read, write, touched) {
    const input = element("input", { type: "range", min, max, step, "aria-label": label, "data-name": label });
    input.value = read();
    const output = element("output", {}, "");
    input.addEventListener("input", () => {
      write(Number(input.value));
      touched();
    });
    output.value = read().toFixed(max > 1 ? 0 : 2);
    group.append(element("label", {}, element("span", {}, spaced(label)), input, output));
    this.rows.push({ input, output, read });
  }
}

// "jawOpen" -> "jaw open"
function spaced(name) {
  return name.replace(/[A-Z]/g, (letter) => ` ${letter.toLowerCase()}`);
}

class Player {
  // clips: [{name, rate, frames}], values: all frames one after the other, expression then pose.
  constructor(elements, clips, values, expression, pose, changed) {
    Object.assign(this, { ...elements, clips, values, expression, pose, changed });
    this.playing = false;
    this.time = 0;
    this.width = expression.length + pose.length;
    clips.forEach(({ name }, index) => this.choice.append(element("option", { value: index }, name)));
    this.choice.addEventListener("change", () => this.#seek(0));
    this.button.addEventListener("click", () => (this.playing ? this.stop() : this.play()));
    this.timeline.addEventListener("input", () => {
      this.stop();
      this.#seek(Number(this.timeline.value) * this.#length());
    });
  }

  play() {
    this.playing = true;
    this.button.textContent = "Pause";
    this.last = undefined;
    this.changed();
  }

  stop() {
    this.playing = false;
    this.button.textContent = "Play";
  }

  // Called before each picture, with the clock in milliseconds.
  advance(now) {
    if (!this.playing) return;
    const passed = this.last === undefined ? 0 : (now - this.last) / 1000;
    this.last = now;
    this.#seek((this.time + passed) % this.#length());
  }

  #clip() {
    return this.clips[this.choice.value];
  }

  #length() {
    return this.#clip().frames / this.#clip().rate;
  }

  // Between two frames the values change linearly.
  #seek(time) {
    const { first, frames, rate } = this.#clip();
    this.time = time;
    const place = clamp(time * rate, 0, frames - 1);
    const before = Math.floor(place), after = Math.min(before + 1, frames - 1), share = place - before;
    const a = (first + before) * this.width, b = (first + after) * this.width;
    const at = (k) => this.values[a + k] + share * (this.values[b + k] - this.values[a + k]);
    for (let k = 0; k < this.expression.length; k++) this.expression[k] = at(k);
    for (let k = 0; k < this.pose.length; k++) this.pose[k] = at(this.expression.length + k);
    this.timeline.value = time / this.#length();
    this.changed();
  }
}
