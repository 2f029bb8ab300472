// What makes a worker of measure.js, which stands before it in one file: it answers one command after the other.

let last = Promise.resolve();
globalThis.addEventListener("message", ({ data }) => {
  last = last.then(async () => globalThis.postMessage(await globalThis.kdexport.command(data)));
});
