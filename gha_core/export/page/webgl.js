"use strict";
// Gaussian splatting in WebGL 2: one quad per Gaussian, from far to near.

const VERTEX = `#version 300 es
precision highp float;
uniform highp sampler2D gaussians;
uniform mat3 turn;      // stage -> camera: x right, y down, z forward
uniform vec3 shift;
uniform vec2 size;      // of the picture, px
uniform float focal;    // px
in vec2 corner;         // of the quad, -1..1
in uint index;          // of the Gaussian
out vec2 place;         // in standard deviations
out vec4 shade;

vec4 texel(uint number) {
  uint at = index * ${TEXELS}u + number;
  return texelFetch(gaussians, ivec2(at % ${TEXTURE_WIDTH}u, at / ${TEXTURE_WIDTH}u), 0);
}

void main() {
  vec4 first = texel(0u);
  vec3 local = turn * first.xyz + shift;
  float opacity = first.w;
  gl_Position = vec4(2.0, 2.0, 2.0, 1.0);   // outside: not drawn
  if (local.z < 0.05 || opacity < 1.0 / 255.0) return;

  // The image of the 3D Gaussian, to first order about its centre (Zwicker et al., 2001).
  vec4 a = texel(1u);
  vec2 b = texel(2u).xy;
  mat3 covariance = mat3(a.x, a.y, a.z, a.y, a.w, b.x, a.z, b.x, b.y);
  vec2 ray = local.xy / local.z;
  vec2 limit = 1.3 * 0.5 * size / focal;
  vec2 bounded = clamp(ray, -limit, limit);
  vec3 u = vec3(1.0, 0.0, -bounded.x) * turn, v = vec3(0.0, 1.0, -bounded.y) * turn;
  float pixels = focal / local.z;
  float uu = dot(u, covariance * u) * pixels * pixels + 0.3;
  float uv = dot(u, covariance * v) * pixels * pixels;
  float vv = dot(v, covariance * v) * pixels * pixels + 0.3;

  // Along its axes, as far as it adds a level of 8 bits.
  float middle = 0.5 * (uu + vv), spread = length(vec2(0.5 * (uu - vv), uv));
  vec2 axis = abs(uv) > 1e-6 ? normalize(vec2(uv, middle + spread - uu)) : (uu >= vv ? vec2(1, 0) : vec2(0, 1));
  float reach = sqrt(2.0 * log(255.0 * opacity));
  vec2 major = axis * sqrt(middle + spread), minor = vec2(-axis.y, axis.x) * sqrt(max(middle - spread, 0.1));
  place = corner * reach;
  vec2 pixel = 0.5 * size + focal * ray + place.x * major + place.y * minor;
  gl_Position = vec4(2.0 * pixel.x / size.x - 1.0, 1.0 - 2.0 * pixel.y / size.y, 0.0, 1.0);
  shade = vec4(clamp(texel(3u).rgb, 0.0, 1.0), opacity);
}`;

const FRAGMENT = `#version 300 es
precision mediump float;
in highp vec2 place;
in vec4 shade;
out vec4 colour;

void main() {
  float alpha = min(shade.a * exp(-0.5 * dot(place, place)), 0.999);
  if (alpha < 1.0 / 255.0) discard;
  colour = vec4(shade.rgb * alpha, alpha);
}`;

class WebGLRenderer {
  mostPixels = 4e6;
  busy = false;

  constructor(canvas, gaussians) {
    const gl = (this.gl = canvas.getContext("webgl2", { antialias: false, depth: false, alpha: false }));
    this.gaussians = gaussians;
    this.order = new FarToNear(gaussians);
    this.program = program(gl, VERTEX, FRAGMENT);
    gl.useProgram(this.program);
    this.uniforms = Object.fromEntries(
      ["turn", "shift", "size", "focal"].map((name) => [name, gl.getUniformLocation(this.program, name)]),
    );

    const corner = gl.getAttribLocation(this.program, "corner");
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ARRAY_BUFFER, new Float32Array([-1, -1, 1, -1, -1, 1, 1, 1]), gl.STATIC_DRAW);
    gl.enableVertexAttribArray(corner);
    gl.vertexAttribPointer(corner, 2, gl.FLOAT, false, 0, 0);
    const index = gl.getAttribLocation(this.program, "index");
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    gl.enableVertexAttribArray(index);
    gl.vertexAttribIPointer(index, 1, gl.UNSIGNED_INT, 0, 0);
    gl.vertexAttribDivisor(index, 1);

    gl.bindTexture(gl.TEXTURE_2D, gl.createTexture());
    const rows = gaussians.texels.length / (4 * TEXTURE_WIDTH);
    gl.texStorage2D(gl.TEXTURE_2D, 1, gl.RGBA32F, TEXTURE_WIDTH, rows);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  }

  // After `gaussians.update`.
  upload() {
    const { gl } = this, { texels } = this.gaussians;
    const rows = texels.length / (4 * TEXTURE_WIDTH);
    gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, TEXTURE_WIDTH, rows, gl.RGBA, gl.FLOAT, texels);
  }

  // view: {turn [9] row by row, shift [3], focal: in heights of the picture}; background: [3];
  // shown: called when the picture is there.
  draw(view, background, shown) {
    const { gl, uniforms } = this;
    const { width, height } = gl.canvas;
    gl.bufferData(gl.ARRAY_BUFFER, this.order.sort(view), gl.STREAM_DRAW);
    gl.viewport(0, 0, width, height);
    gl.clearColor(...background, 1);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.uniformMatrix3fv(uniforms.turn, true, view.turn);
    gl.uniform3fv(uniforms.shift, view.shift);
    gl.uniform2f(uniforms.size, width, height);
    gl.uniform1f(uniforms.focal, view.focal * height);
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, this.gaussians.count);
    shown();
  }
}

// Whether a graphics card does the work: WebGL without one takes a second for a picture.
function hasGraphicsCard() {
  const gl = document.createElement("canvas").getContext("webgl2");
  if (!gl) return false;
  const named = gl.getExtension("WEBGL_debug_renderer_info");
  const name = gl.getParameter(named ? named.UNMASKED_RENDERER_WEBGL : gl.RENDERER);
  gl.getExtension("WEBGL_lose_context")?.loseContext();
  return !/swiftshader|llvmpipe|software|basic render/i.test(name);
}

function program(gl, ...sources) {
  const made = gl.createProgram();
  [gl.VERTEX_SHADER, gl.FRAGMENT_SHADER].forEach((kind, number) => {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, sources[number]);
    gl.compileShader(shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
    gl.attachShader(made, shader);
  });
  gl.linkProgram(made);
  if (!gl.getProgramParameter(made, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(made));
  return made;
}
