"use strict";
// From the text in the page to typed arrays.

// The bytes of a base64 text whose content is gzip.
async function inflate(base64) {
  const packed = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return await new Response(stream).arrayBuffer();
}

// name -> typed array, as the page's description lists them.
function typedArrays(buffer, listed) {
  const kinds = { int8: Int8Array, float32: Float32Array };
  return Object.fromEntries(
    listed.map(({ name, kind, start, length }) => [name, new kinds[kind](buffer, start, length)]),
  );
}
