// The measured page, or a worker of one: it holds one model and answers commands, as kdexport/bench/worker.py does in a
// process. What drives it calls `kdexport.command({do, ...})`; bytes go over as base64. Between commands it does nothing.

const SAMPLE_STEPS = 50; // a sample is this many steps of the clock at least: it is then known to 2 %
const STEPS = 12; // of the clock that are looked at
const WARM_UP_MIN_MS = 300; // V8 compiles WASM a second time, with optimization, while it runs
const WARM_UP_MAX_MS = 3000;
const WARM_AGAIN_MAX_MS = 500; // before a round's turns: others were loaded and warmed up since
const BLOCK_MS = 10;
const STABLE = 0.02; // three blocks whose means differ by less are alike
const REWARM_MS = 2; // at the start of a turn: other pages have used the caches since the last one
const PATIENCE_MS = 3000; // while threads of WASM sleep, browsers do not answer what memory they hold
const MIB = 2 ** 20;

// The smallest function that uses a 128-bit register (i8x16.splat): valid where SIMD is there.
const SIMD = new Uint8Array([
  0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 8, 1, 6, 0, 65, 0, 253, 15, 11,
]);

// The page's WASM memories, seen as they are made: the runtime does not hand out its own.
const memories = [];
WebAssembly.Memory = new Proxy(WebAssembly.Memory, {
  construct(target, parameters) {
    const memory = new target(...parameters);
    memories.push(memory);
    return memory;
  },
});

// What the runtime logs while someone listens: it says there where each operator runs, and nowhere else.
let listening = null;
for (const name of ["log", "info", "debug", "warn", "error"]) {
  const original = console[name].bind(console);
  console[name] = (...words) => (listening ? listening.push(...words.join(" ").split("\n")) : original(...words));
}

const ARRAYS = {
  float32: Float32Array, float64: Float64Array, int8: Int8Array, int16: Int16Array, int32: Int32Array,
  int64: BigInt64Array, uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, uint64: BigUint64Array,
  bool: Uint8Array, float16: globalThis.Float16Array ?? Uint16Array,
};

const state = { ort: null, session: null, feeds: null, run: null, step: 0, calls: 1 };

/** The clock's resolution in ms: the smallest step that it makes. Browsers coarsen it, and some add noise. */
function clockStep() {
  let smallest = Infinity;
  for (let count = 0; count < STEPS; count += 1) {
    const before = performance.now();
    let after = before;
    while (after === before) after = performance.now();
    smallest = Math.min(smallest, after - before);
  }
  return Number(smallest.toFixed(6)); // 0.1 comes as 0.09999999776
}

/** Milliseconds per call of `calls` calls in a row, and of all of them together. */
async function timed(run, calls) {
  const before = performance.now();
  for (let count = 0; count < calls; count += 1) await run();
  const spent = performance.now() - before;
  return [spent / calls, spent];
}

/** Run until three blocks in a row take the same time per call, for `least` ms at least and `most` at most. */
async function warmUp(run, least, most) {
  const means = [];
  const start = performance.now();
  for (;;) {
    let calls = 0;
    const before = performance.now();
    let spent = 0;
    while (spent < Math.max(BLOCK_MS, SAMPLE_STEPS * state.step)) {
      await run();
      calls += 1;
      spent = performance.now() - before;
    }
    means.push(spent / calls);
    const last = means.slice(-3);
    const stable = last.length === 3 && Math.max(...last) <= Math.min(...last) * (1 + STABLE);
    const all = performance.now() - start;
    if ((stable && all >= least) || all >= most) return { stable, call_ms: means.at(-1) };
  }
}

async function bytesOf(name) {
  const answer = await fetch(name);
  if (!answer.ok) throw new Error(`${name}: ${answer.status}`);
  return answer.arrayBuffer();
}

function base64(buffer) {
  const bytes = new Uint8Array(buffer);
  let text = "";
  for (let start = 0; start < bytes.length; start += 0x8000) {
    text += String.fromCharCode(...bytes.subarray(start, start + 0x8000));
  }
  return btoa(text);
}

async function tensor(value) {
  const buffer = await bytesOf(value.url);
  return new state.ort.Tensor(value.type, new ARRAYS[value.type](buffer), value.dims);
}

async function tensors(values) {
  const made = {};
  for (const value of values) made[value.name] = await tensor(value);
  return made;
}

/** The type of an input, as ONNX Runtime names it elsewhere. */
const kind = (type) => (type === "float32" ? "tensor(float)" : type === "float64" ? "tensor(double)" : `tensor(${type})`);

function heapMib() {
  return memories.length ? Math.max(...memories.map((memory) => memory.buffer.byteLength)) / MIB : null;
}

/** What the browser says of the page's memory; it does so only where the page is isolated. */
async function pageMib() {
  if (!globalThis.crossOriginIsolated || !performance.measureUserAgentSpecificMemory) return null;
  const patience = new Promise((resolve) => setTimeout(resolve, PATIENCE_MS, null));
  const found = await Promise.race([performance.measureUserAgentSpecificMemory(), patience]);
  return found ? found.bytes / MIB : null;
}

/** The runtime's files where they lie beside this page, under their own names. */
function beside(provider) {
  const folder = new URL(".", location.href).href;
  return { folder, module: `${folder}${provider === "webgpu" ? "ort.webgpu.min.mjs" : "ort.wasm.min.mjs"}` };
}

async function runtime(task) {
  if (state.ort) return;
  if (task.threads > 1 && !globalThis.crossOriginIsolated) {
    throw new Error("this page is not cross-origin isolated: WASM has one thread in it");
  }
  const files = task.runtime ?? beside(task.provider);
  state.ort = await import(files.module);
  state.ort.env.wasm.numThreads = task.threads;
  state.ort.env.wasm.wasmPaths = files.glue ? { mjs: files.glue } : files.folder;
  if (files.wasm) state.ort.env.wasm.wasmBinary = await bytesOf(files.wasm);
}

function options(task, verbose) {
  const found = { executionProviders: [task.provider], logSeverityLevel: verbose ? 0 : 3 };
  if (verbose) state.ort.env.logLevel = "verbose";
  if (task.external.length) {
    found.externalData = task.external.map((file) => ({ path: file.path, data: state.external[file.path] }));
  }
  return found;
}

async function open(task, verbose = false) {
  return state.ort.InferenceSession.create(new Uint8Array(state.model), options(task, verbose));
}

/** Fetch the model before the clock starts: loading is then what the runtime does, as elsewhere. */
async function fetched(task) {
  state.model = await bytesOf(task.model);
  state.external = {};
  for (const file of task.external) state.external[file.path] = new Uint8Array(await bytesOf(file.url));
}

/** The lines of the runtime's verbose log that say where the operators run. */
async function placementLog(task) {
  listening = [];
  try {
    await (await open(task, true)).release();
    return listening.slice(listening.findIndex((line) => line.includes("Node placements")));
  } finally {
    listening = null;
    state.ort.env.logLevel = "error";
  }
}

const commands = {
  /** What the browser is and can: asked before anything is timed. */
  async ready({ webgpu }) {
    state.step = clockStep();
    const found = webgpu ? await adapter() : null;
    return {
      gpu: Boolean(found),
      adapter: found,
      agent: navigator.userAgent,
      isolated: Boolean(globalThis.crossOriginIsolated),
      secure: globalThis.isSecureContext,
      simd: WebAssembly.validate(SIMD),
      cores: navigator.hardwareConcurrency ?? null,
      step_ms: state.step,
    };
  },

  async load(task) {
    await runtime(task);
    await fetched(task);
    const empty = await state.ort.InferenceSession.create(
      new Uint8Array(await bytesOf(task.empty)), { executionProviders: [task.provider], logSeverityLevel: 3 },
    );
    await empty.release(); // fetching and compiling the runtime itself is not the model's load
    const before = performance.now();
    state.session = await open(task);
    const loaded = performance.now() - before;
    return {
      load_ms: loaded,
      providers: [task.provider],
      placement: {},
      inputs: inputs(state.session),
    };
  },

  async prepare(task) {
    state.feeds = await tensors(task.inputs);
    const run = () => state.session.run(state.feeds);
    const before = performance.now();
    const outputs = await run();
    const first = performance.now() - before;
    const nan = [];
    for (const [name, value] of Object.entries(outputs)) {
      const floats = ["float32", "float64", "float16"].includes(value.type) && !(value.data instanceof Uint16Array);
      if (floats && value.data.length && !value.data.some((one) => Number.isFinite(one))) nan.push(name);
    }
    return commands.steady({ run, first, nan });
  },

  /** Warm a function up and find out how many calls make a sample; `busy_ms` stands in for a model of known length. */
  async steady({ run, first = 0, nan = [], busy_ms: busy = null }) {
    state.run = busy === null ? run : async () => {
      const end = performance.now() + busy - state.step / 4; // its steps are not exact in floating point
      while (performance.now() < end);
    };
    state.step = Math.max(state.step, clockStep());
    const warm = await warmUp(state.run, WARM_UP_MIN_MS, WARM_UP_MAX_MS);
    state.calls = Math.max(1, Math.ceil((SAMPLE_STEPS * state.step) / warm.call_ms));
    return {
      first_run_ms: first, stable: warm.stable, nan, memory: "cpu",
      calls_per_sample: state.calls, step_ms: state.step,
    };
  },

  /** Get warm again after a long rest: what lies behind a page (a GPU's process, its threads) went to sleep or to others. */
  async again() {
    await warmUp(state.run, 0, WARM_AGAIN_MAX_MS);
    return {};
  },

  /** Time samples for one turn: nanoseconds per call. */
  async turn({ budget_ns: budget }) {
    const samples = [];
    const rewarmed = performance.now() + REWARM_MS;
    while (performance.now() < rewarmed) await state.run();
    const end = performance.now() + budget / 1e6;
    while (samples.length === 0 || performance.now() < end) {
      const [call, spent] = await timed(state.run, state.calls);
      if (spent < SAMPLE_STEPS * state.step * 0.999) {
        state.calls = Math.ceil(state.calls * 1.25); // calls have become faster: this one is not known well enough
      } else {
        samples.push(Math.round(call * 1e6));
      }
    }
    return { samples, calls_per_sample: state.calls };
  },

  /** Run the loaded model, read what the browser says of memory; then where the operators are, in a second session. */
  async memory(task) {
    state.feeds = await tensors(task.inputs);
    for (let count = 0; count < task.runs; count += 1) await state.session.run(state.feeds);
    const heap = heapMib();
    const page = await pageMib();
    await state.session.release();
    return { wasm_heap: heap, page, log: await placementLog(task) };
  },

  /** One inference on other inputs, for its outputs. */
  async run(task) {
    const outputs = await state.session.run(await tensors(task.inputs));
    const values = [];
    for (const name of state.session.outputNames) {
      const value = outputs[name];
      const { data } = value;
      values.push({
        name, type: value.type, dims: value.dims,
        data: base64(data.buffer.slice(data.byteOffset, data.byteOffset + data.byteLength)),
      });
    }
    return { outputs: values };
  },
};

function inputs(session) {
  return session.inputMetadata.map((input) => ({ name: input.name, kind: kind(input.type), shape: input.shape }));
}

/** What the browser says of the GPU that WebGPU would use; null where there is none. */
async function adapter() {
  const found = await navigator.gpu?.requestAdapter();
  if (!found) return null;
  const { vendor, architecture, device, description } = found.info;
  const fallback = Boolean(found.info.isFallbackAdapter ?? found.isFallbackAdapter);
  return { vendor, architecture, device, description, fallback };
}

/** Answer one command; an error comes back as a text, also where the runtime throws a bare number. */
async function command(task) {
  try {
    return await commands[task.do](task);
  } catch (error) {
    if (typeof error === "number") return { error: `WasmException: ${error}` };
    return { error: error instanceof Error ? `${error.name}: ${error.message}` : String(error) };
  }
}

globalThis.kdexport = { command };
