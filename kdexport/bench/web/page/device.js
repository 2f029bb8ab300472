// The page that a phone opens: says what will be measured and what this browser has, measures by plan.js in workers,
// and hands the recording over: to the kdexport that serves it, or as a download. It keeps what is done in the tab's own
// storage, so that a page that was reloaded, or put to sleep, goes on where it stood.
import { Interrupted, conditions, halfWidth, measure, median, ratios, unsteadiness } from "./plan.js";

const PLAN_VERSION = 2; // as in site.py
const RETRY_MS = 2000;
const SEND_MS = 4000; // that a round waits for what was measured to be sent
const ANSWER_MS = 60000;
const UNKNOWN = 0.3; // half-width of a speed-up's interval, beyond which it says nothing
const UNSTEADY = 1.25; // as in recording.py
const NAMES = {
  "web:wasm": "WebAssembly, one thread",
  "web:wasm-threads": "WebAssembly, several threads",
  "web:webgpu": "WebGPU",
};

const at = (id) => document.getElementById(id);
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

let plan; // what plan.json says, its files replaced by blobs once they are here
let facts; // what this browser is and has
let record; // what is measured so far, as it is kept
let hidden = 0; // how often the page was hidden
let blobs = null;
let workerUrl = null;

function show(id, text) {
  at(id).textContent = text;
  at(id).hidden = !text;
}

/** Fetch, again and again while there is no network; an answer that is no file is an error. */
async function fetched(name, onBytes = () => {}, size = null) {
  for (;;) {
    try {
      const answer = await fetch(name, { cache: "no-store" });
      if (!answer.ok) throw new TypeError(`${name}: the server answers ${answer.status}`);
      const parts = [];
      const reader = answer.body.getReader();
      let bytes = 0;
      for (;;) {
        const { done, value } = await reader.read();
        if (done) break;
        parts.push(value);
        bytes += value.byteLength;
        onBytes(value.byteLength);
      }
      if (size === null || bytes === size) return parts;
      // Some answer every name that they do not have with a page of their own; some alter or cut off what they serve.
      throw new TypeError(`${name}: the server answers with another file, of ${bytes} bytes in place of ${size}`);
    } catch (error) {
      if (String(error.message).includes("the server answers")) throw error;
      show("note", "Waiting for the network.");
      await sleep(RETRY_MS);
    }
  }
}

/** A worker that holds measure.js: {ask, end}. A model that never returns ends with its worker. */
function worker(seconds = plan.settings.timeout_s) {
  const made = new Worker(workerUrl, { type: "module" });
  let waiting = null;
  const settle = (what, value) => {
    const [resolve, reject, timer] = waiting ?? [];
    waiting = null;
    clearTimeout(timer);
    (what ? resolve : reject)?.(value);
  };
  made.onmessage = ({ data }) => (data.error ? settle(false, new Error(data.error)) : settle(true, data));
  made.onerror = (event) => settle(false, new Error(event.message || "the worker could not be started"));
  return {
    ask: (task) =>
      new Promise((resolve, reject) => {
        const timer = setTimeout(() => {
          made.terminate();
          settle(false, new Error(`no answer within ${seconds} s (--timeout); it was ended`));
        }, seconds * 1000);
        waiting = [resolve, reject, timer];
        made.postMessage(task);
      }),
    end: () => {
      settle(false, new Interrupted());
      made.terminate();
    },
  };
}

async function workerCode() {
  const parts = [...(await fetched("measure.js")), "\n", ...(await fetched("worker.js"))];
  workerUrl = URL.createObjectURL(new Blob(parts, { type: "text/javascript" }));
}

/** What this browser has, and why not what it lacks. */
async function look() {
  const gpu = plan.devices.includes("web:webgpu");
  const place = worker(30);
  const found = await place.ask({ do: "ready", webgpu: gpu });
  place.end();
  const more = (await navigator.userAgentData?.getHighEntropyValues?.(["model", "platformVersion"]).catch(() => null)) ?? {};
  facts = {
    agent: found.agent.slice(0, 500), platform: more.platform || null, platform_version: more.platformVersion || null,
    model: more.model || null, cores: found.cores, secure: found.secure, isolated: found.isolated, simd: found.simd,
    adapter: found.adapter,
  };
  const insecure = `${location.protocol === "https:" ? "this connection is not secure" : "this page came over http"}: it needs https (kdexport bench --serve --https) or localhost (adb reverse)`;
  const lacks = {};
  if (!found.secure) lacks["web:wasm-threads"] = lacks["web:webgpu"] = insecure;
  else {
    if (!found.isolated) {
      lacks["web:wasm-threads"] = globalThis.SharedArrayBuffer
        ? "this page is not cross-origin isolated"
        : "the server does not send the two headers that threads need (Cross-Origin-Opener-Policy and -Embedder-Policy)";
    }
    if (gpu && !found.gpu) {
      lacks["web:webgpu"] = navigator.gpu ? "this browser offers no GPU adapter" : "this browser has no WebGPU";
    }
  }
  if (!found.simd) {
    for (const name of plan.devices) lacks[name] = "this browser's WebAssembly has no SIMD, which onnxruntime-web needs";
  }
  facts.lacks = lacks;
}

function guessedName() {
  if (facts.model) return facts.model;
  const agent = facts.agent;
  const system = [["iPhone", "iPhone"], ["iPad", "iPad"], ["Android", "Android"], ["CrOS", "Chromebook"],
    ["Windows", "Windows"], ["Macintosh", "Mac"], ["Linux", "Linux"]].find(([mark]) => agent.includes(mark))?.[1] ?? "device";
  const browser = [["Edg", "Edge"], ["SamsungBrowser", "Samsung Internet"], ["OPR", "Opera"], ["FxiOS", "Firefox"],
    ["Firefox", "Firefox"], ["CriOS", "Chrome"], ["Chrome", "Chrome"], ["Safari", "Safari"]]
    .find(([mark]) => agent.includes(mark))?.[1] ?? "browser";
  if (browser === "Safari" && system === "Linux") return "Linux, WebKit"; // the engine in a browser of another name
  return `${system}, ${browser}`;
}

const many = (count, what) => `${count} ${what}${count === 1 ? "" : "s"}`;

/** Two times in words, the unit once where both have the same: "10 to 20 seconds", "45 seconds to 2 minutes". */
function between(...seconds) {
  const [low, high] = seconds.map((one) => (one < 90 ? [Math.max(5, Math.round(one / 5) * 5), "second"] : [Math.round(one / 60), "minute"]));
  if (low[0] === high[0] && low[1] === high[1]) return `about ${many(...low)}`;
  return low[1] === high[1] ? `${low[0]} to ${many(...high)}` : `${many(...low)} to ${many(...high)}`;
}

const listed = (items) => (items.length < 2 ? `${items}` : `${items.slice(0, -1).join(", ")} and ${items.at(-1)}`);

const mib = (bytes) => (bytes < 2 ** 20 ? `${Math.max(1, Math.round(bytes / 1024))} KiB` : `${(bytes / 2 ** 20).toFixed(1)} MiB`);

function describe() {
  at("about").textContent = plan.sends
    ? `“${plan.name}”: the figures and the models’ outputs go to the computer that this address came from. Nothing else leaves this device.`
    : `“${plan.name}”: the figures and the models’ outputs stay on this device until you save them as a file.`;
  for (const model of plan.models) {
    const [row, name, size] = ["li", "bdi", "span"].map((tag) => document.createElement(tag));
    name.textContent = model.name;
    size.textContent = mib(model.size_bytes);
    row.append(name, size);
    at("models").append(row);
  }
  for (const device of plan.devices) {
    const [label, box, text, why] = ["label", "input", "span", "small"].map((tag) => document.createElement(tag));
    label.className = "choice";
    box.type = "checkbox";
    box.name = "device";
    box.value = device;
    box.disabled = Boolean(facts.lacks[device]);
    box.checked = !box.disabled;
    box.addEventListener("change", state);
    text.textContent = NAMES[device];
    why.textContent = facts.lacks[device] ? `Not here: ${facts.lacks[device]}.` : `${device}`;
    text.append(why);
    label.append(box, text);
    at("devices").append(label);
  }
  if (plan.devices.every((device) => facts.lacks[device])) {
    show("fault", `Nothing can be measured in this browser: ${facts.lacks[plan.devices[0]]}.`);
  }
  const webkit = facts.agent.includes("AppleWebKit/") && !facts.agent.includes("Chrome/"); // says 4 or 8 of every machine
  const step = facts.isolated ? "cross-origin isolated" : "not cross-origin isolated, so its clock is coarse";
  at("context").textContent = `${facts.secure ? "A secure context" : "No secure context"}, ${step}. ${
    facts.cores && !webkit ? many(facts.cores, "core") : "The number of cores is not told"}.`;
  at("name").value = guessedName();
  at("awake").textContent = navigator.wakeLock
    ? "The screen stays on meanwhile. Leave this page in front: while it is hidden nothing is measured."
    : "This page cannot keep the screen on (only https or localhost can): leave it in front, and let the screen not go dark. What is done is kept.";
  state();
}

const chosenDevices = () => [...document.querySelectorAll("input[name=device]:checked")].map((box) => box.value);

/** How long it takes, and whether there is anything to start. */
function state() {
  const chosen = chosenDevices();
  const counts = chosen.length * plan.batch_sizes.length * plan.models.length;
  const { min_seconds: least, max_seconds: most } = plan.settings;
  const batches = `${plan.batch_sizes.length > 1 ? "Batch sizes" : "Batch size"} ${listed(plan.batch_sizes)}`;
  at("long").textContent = counts
    ? `${batches}. Takes ${between(counts * (least + 4), counts * (most + 4))}, longer on a slow device; ${mib(bytesOf(needed(chosen)))} to load first.`
    : "";
  at("start").disabled = !chosen.length && !plan.required;
}

// --- What is kept, and handed over

const key = () => `kdexport ${plan.session}`;

function stored() {
  try {
    return JSON.parse(sessionStorage.getItem(key()));
  } catch {
    return null;
  }
}

function store() {
  try {
    sessionStorage.setItem(key(), JSON.stringify(record));
  } catch {
    // no room, or no storage in this window: it is measured all the same, a reload then begins anew
  }
}

function recording(complete) {
  const { results, device, started } = record;
  return {
    format: "kdexport recording", version: 1, session: plan.session, started, complete, device,
    results: results.map(({ proved, ...one }) => one),
  };
}

/** Send what is measured so far. Returns true where it was taken, false where there is no network, else the reason. */
async function send(complete) {
  try {
    const answer = await fetch("recording", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(recording(complete)),
      signal: AbortSignal.timeout?.(ANSWER_MS),
    });
    if (answer.ok) return true;
    if (answer.status === 503) return false;
    if (answer.status === 404) return "this address is no longer served: the measuring there has ended, or begun anew";
    return (await answer.json().catch(() => ({}))).error ?? `it answers ${answer.status}`;
  } catch {
    return false;
  }
}

function offerDownload() {
  const name = record.device.name.replace(/[^A-Za-z0-9._-]+/g, "-").replace(/^-+|-+$/g, "") || "device";
  // Of a type that no browser shows by itself: on iOS a JSON file is opened in the place of this page, and not saved.
  const document_ = { ...recording(record.complete), plan: plan.document };
  at("download").href = URL.createObjectURL(new Blob([JSON.stringify(document_)], { type: "application/octet-stream" }));
  at("download").download = `kdexport-${name}.json`;
  at("download").hidden = false;
}

async function handOver() {
  show("sent", plan.sends ? "Sending the result." : "Save it, and give the file to: kdexport report FILE");
  if (!plan.sends) return offerDownload();
  for (;;) {
    const taken = await send(true);
    if (taken === true) {
      record.delivered = true;
      store();
      at("download").hidden = true;
      return show("sent", "The result has arrived. This page can be closed.");
    }
    offerDownload();
    if (taken !== false) return show("sent", `The result was not taken: ${taken}. Save it, and give the file to: kdexport report FILE`);
    show("sent", "The computer does not answer. This page tries again; the result can also be saved and given to: kdexport report FILE");
    await sleep(RETRY_MS);
  }
}

// --- Measuring

/** The files that some devices need: the runtime of WebGPU is twice as large as the other, and mostly not for a phone. */
function needed(devices) {
  const used = devices.map((device) => (device === "web:webgpu" ? "webgpu" : "wasm"));
  const spare = Object.keys(plan.runtime).filter((provider) => !used.includes(provider)).flatMap((provider) => Object.values(plan.runtime[provider]));
  return devices.length ? Object.entries(plan.files).filter(([name]) => !spare.includes(name)) : [];
}

const bytesOf = (files) => files.reduce((sum, [, { bytes }]) => sum + bytes, 0);

/** Fetch all that is needed once; from then on measuring needs no network. */
async function loadFiles() {
  let bytes = 0;
  const urls = {};
  const files = needed(record.chosen);
  const all = bytesOf(files);
  for (const [name, { type, bytes: size }] of files) {
    const onBytes = (more) => {
      bytes += more;
      at("bar").value = Math.min(0.999, bytes / all);
      show("note", `Loading: ${mib(bytes)} of ${mib(all)}`);
    };
    const parts = await fetched(name, onBytes, size);
    urls[name] = URL.createObjectURL(new Blob(parts, { type }));
  }
  const entry = (names) => Object.fromEntries(Object.entries(names).map(([role, name]) => [role, urls[name]]));
  const located = (items) => items.map((item) => ({ ...item, url: urls[item.url] }));
  blobs = {
    ...plan,
    empty: urls[plan.empty],
    runtime: Object.fromEntries(Object.entries(plan.runtime).map(([provider, names]) => [provider, entry(names)])),
    models: plan.models.map((model) => ({
      ...model, url: urls[model.url], external: located(model.external),
      inputs: Object.fromEntries(Object.entries(model.inputs).map(([batch, items]) => [batch, located(items)])),
      compared: model.compared.map(located),
    })),
  };
}

function progressNow() {
  const wanted = record.results.length * (plan.settings.rounds + 1);
  const done = record.results.reduce(
    (sum, one) => sum + (one.failure ? plan.settings.rounds + 1 : Number(one.proved) + Math.min(one.rounds.length, plan.settings.rounds)), 0,
  );
  return wanted ? Math.min(0.999, done / wanted) : 0;
}

const host = {
  worker: async () => worker(),
  disturbed: () => hidden,
  async quiet() {
    while (document.hidden) await sleep(200);
    await keepAwake();
  },
  note(text) {
    at("bar").value = progressNow();
    show("note", `${text[0].toUpperCase()}${text.slice(1)}`);
  },
  /** Who is at work, kept where a page that crashed finds it. */
  at(one) {
    try {
      if (one) sessionStorage.setItem(`${key()} at`, JSON.stringify([one.model, one.device, one.batch_size, one.threads]));
      else sessionStorage.removeItem(`${key()} at`);
    } catch {
      // as in store()
    }
  },
  async save() {
    store();
    if (plan.sends) await Promise.race([send(false), sleep(SEND_MS)]);
  },
  seconds: () => performance.now() / 1000,
};

let lock = null;
async function keepAwake() {
  if (!navigator.wakeLock || (lock && !lock.released)) return;
  lock = await navigator.wakeLock.request("screen").catch(() => null);
}

/** A page that ended without being left was ended by its browser: memory, mostly. Twice at one model is enough. */
function afterCrash() {
  let last = null;
  try {
    last = JSON.parse(sessionStorage.getItem(`${key()} at`));
  } catch {
    return;
  }
  host.at(null);
  if (!last) return;
  const [model, device, batch, threads] = last;
  const name = last.join("|");
  record.crashes[name] = (record.crashes[name] ?? 0) + 1;
  const same = (one) => one.model === model && one.device === device && one.batch_size === batch && one.threads === threads;
  const one = record.results.find(same);
  if (one && record.crashes[name] >= 2) {
    one.failure = "out of memory: the browser ended the page twice while it worked on this model, as it does where memory ends";
  }
}

/** How many times faster than the baseline, turn by turn, and how well that is known. */
function speedUp(first, one) {
  const found = ratios(first, one);
  if (!found.length) return "";
  const ratio = Math.exp(found.reduce((sum, each) => sum + Math.log(each), 0) / found.length);
  const half = halfWidth(found);
  if (half > UNKNOWN || Math.max(unsteadiness(first), unsteadiness(one)) > UNSTEADY) return "undecided";
  return `${ratio.toPrecision(3)}×${half === null ? "" : ` ±${Math.max(1, Math.round(half * 100))} %`}`;
}

function table() {
  at("table").replaceChildren();
  const groups = Map.groupBy
    ? Map.groupBy(record.results, (one) => `${one.device}|${one.batch_size}|${one.threads}`)
    : record.results.reduce((map, one) => {
        const name = `${one.device}|${one.batch_size}|${one.threads}`;
        return map.set(name, [...(map.get(name) ?? []), one]);
      }, new Map());
  const cell = (tag, text, scope) => {
    const made = document.createElement(tag);
    made.textContent = text;
    if (scope) made.scope = scope;
    return made;
  };
  for (const results of groups.values()) {
    const [first] = results;
    const made = document.createElement("table");
    const caption = `${NAMES[first.device]}${first.threads > 1 ? ` (${first.threads})` : ""}, batch ${first.batch_size}`;
    made.append(cell("caption", caption));
    const head = made.createTHead().insertRow();
    head.append(cell("th", "model", "col"), cell("th", "median", "col"), cell("th", "speed-up", "col"));
    const body = made.createTBody();
    const time = (one) => (one.rounds.length ? median(one.rounds.flatMap((round) => round.turns.flat())) / 1e6 : null);
    for (const one of results) {
      const row = body.insertRow();
      row.append(cell("th", one.model, "row"));
      if (one.failure || !one.rounds.length) {
        const failed = cell("td", one.failure ?? "not measured");
        failed.colSpan = 2;
        failed.className = "failed";
        row.append(failed);
        continue;
      }
      const own = time(one);
      row.append(cell("td", own < 0.1 ? `${(own * 1e3).toPrecision(3)} µs` : `${own.toPrecision(3)} ms`));
      row.append(cell("td", one === first || first.failure ? "" : speedUp(first, one)));
    }
    at("table").append(made);
  }
  at("result").hidden = false;
}

async function work() {
  at("start-section").hidden = at("how-section").hidden = at("fault").hidden = true;
  at("work").hidden = false;
  at("state").focus();
  if (!record.complete) {
    try {
      await keepAwake();
      await loadFiles();
      const all = conditions(blobs, facts.lacks, facts.cores);
      const chosen = all.filter(({ device, lacks }) => record.chosen.includes(device) || (lacks && plan.required));
      await measure(blobs, chosen, record, host);
    } catch (error) {
      return show("fault", `This page could not go on: ${error.message}`);
    }
    record.complete = true;
    store();
    await lock?.release().catch(() => null);
  }
  at("bar").value = 1;
  at("state").textContent = record.results.every((one) => one.failure) ? "Nothing could be measured" : "Measured";
  show("note", "");
  table();
  await handOver();
}

async function begin() {
  show("opened", "One moment: this browser is looked at.");
  let text;
  try {
    text = await new Response(new Blob(await fetched("plan.json"))).text();
    if (!text.startsWith("{")) throw new Error("plan.json: the server answers with another file");
    plan = JSON.parse(text);
    plan.document = JSON.parse(text);
    if (plan.version !== PLAN_VERSION) throw new Error("its scripts and its plan are of different versions of kdexport, as where a browser kept older ones: clear what it has kept of this site");
    await workerCode();
    await look();
  } catch (error) {
    at("content").hidden = false;
    at("opened").hidden = at("start-section").hidden = true;
    return show("fault", `This page could not be set up: ${error.message}. Open the address anew that kdexport shows.`);
  }
  document.addEventListener("visibilitychange", () => {
    hidden += document.hidden;
  });
  globalThis.addEventListener("pagehide", () => host.at(null));
  at("start").addEventListener("click", () => {
    record = {
      started: new Date().toISOString(), complete: false, delivered: false, results: [], spent_s: {}, crashes: {},
      chosen: chosenDevices(), device: { ...facts, lacks: undefined, id: identity(), name: at("name").value.trim() || guessedName() },
    };
    store();
    work();
  });
  describe();
  at("opened").hidden = true;
  at("content").hidden = false; // not before: a tap would do nothing
  record = stored();
  if (!record) return null;
  for (const box of document.querySelectorAll("input[name=device]")) box.checked = record.chosen.includes(box.value);
  afterCrash();
  if (record.delivered) {
    at("start-section").hidden = at("how-section").hidden = true;
    show("sent", "The result has arrived. This page can be closed.");
    return table();
  }
  return work();
}

/** Random, so that one device's results are not taken for another's; made without what only secure contexts have. */
function identity() {
  return [...crypto.getRandomValues(new Uint8Array(12))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

begin();
