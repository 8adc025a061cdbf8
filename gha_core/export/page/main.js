"use strict";
// Puts the parts of the page together.

const BACKGROUNDS = { dark: [0.09, 0.1, 0.12], grey: [0.5, 0.5, 0.5], white: [1, 1, 1] };

async function main() {
  const find = (name) => document.getElementById(name);
  const description = JSON.parse(find("description").textContent);
  const buffer = await inflate(find("data").textContent);
  find("data").remove();
  const arrays = typedArrays(buffer, description.arrays);
  const gaussians = new Gaussians(description, arrays);
  const canvas = find("picture");
  // "#webgl" or "#cpu" at the end of the address choose the renderer.
  const card = location.hash ? location.hash === "#webgl" : hasGraphicsCard();
  const renderer = card ? new WebGLRenderer(canvas, gaussians) : new CPURenderer(canvas, gaussians);
  const expression = new Float32Array(gaussians.expressions), pose = new Float32Array(6);

  // The coefficients moved; the camera did; Gaussians are ready to be drawn; they are not exact; the
  // screen can show another picture.
  let moved = true, dirty = true, ready = false, rough = false, due = false;
  let refreshed = 0, background = BACKGROUNDS.dark;
  const redraw = () => (dirty = true);
  const changed = () => (moved = true);
  const orbit = new Orbit(canvas, description.camera, redraw);
  const player = new Player(
    { button: find("play"), choice: find("clip"), timeline: find("timeline") },
    description.clips, arrays.clips, expression, pose, changed,
  );
  const sliders = new Sliders(find("sliders"), description, expression, pose, () => {
    player.stop();
    changed();
  });
  find("player").hidden = description.clips.length === 0;
  find("reset").addEventListener("click", () => {
    player.stop();
    expression.fill(0);
    pose.fill(0);
    orbit.reset();
    changed();
  });
  find("background").addEventListener("change", (event) => {
    background = BACKGROUNDS[event.target.value];
    redraw();
  });
  new ResizeObserver(() => {
    const pixels = canvas.clientWidth * canvas.clientHeight;
    const ratio = Math.min(window.devicePixelRatio, 2, Math.sqrt(renderer.mostPixels / pixels));
    canvas.width = Math.max(1, Math.round(canvas.clientWidth * ratio));
    canvas.height = Math.max(1, Math.round(canvas.clientHeight * ratio));
    redraw();
  }).observe(canvas);

  const meter = new Meter(find("speed"));
  function frame(now) {
    requestAnimationFrame(frame);
    due = true;
    advance(now);
    // Drawing 55 sliders takes as long as drawing the avatar.
    if (now - refreshed > 250) {
      sliders.refresh();
      refreshed = now;
    }
  }
  // While a picture is drawn, the next one's Gaussians are got ready.
  function advance(now) {
    player.advance(now);
    if ((moved && !ready) || (rough && !moved && !renderer.busy)) {
      rough = moved;
      gaussians.update(expression, pose, !rough);
      ready = true;
      moved = false;
    }
    if (!due || renderer.busy) return;
    const asked = ready || dirty;
    document.body.dataset.state = asked ? "drawing" : "resting";
    if (ready) renderer.upload();
    ready = dirty = due = false; // before `draw`, which may call `shown` at once
    if (asked) renderer.draw(orbit.view(), background, shown);
  }
  function shown() {
    const now = performance.now();
    meter.count(now);
    advance(now);
  }
  requestAnimationFrame(frame);
}

// Pictures per second while the avatar moves.
class Meter {
  constructor(output) {
    this.output = output;
    this.times = [];
    this.pictures = 0;
  }

  count(now) {
    document.body.dataset.pictures = ++this.pictures;
    if (now - this.times.at(-1) > 500) this.times = []; // it rested
    this.times.push(now);
    if (this.times.length > 20) this.times.shift();
    const span = now - this.times[0];
    if (span > 200) this.output.value = `${Math.round((1000 * (this.times.length - 1)) / span)} fps`;
  }
}

main().catch((error) => {
  const notice = document.getElementById("notice");
  notice.textContent = error.message;
  notice.hidden = false;
  console.error(error);
});
