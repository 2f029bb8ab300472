// The whole plan on one device, as kdexport/bench/runner.py has it in processes: a round gives every model a fresh
// worker; those of one round are alive together and take turns, until the figures are known well enough. What comes out
// is raw samples: kdexport works the figures out, the same for every device. Nothing here knows of a page.

const TURN_NS = 20e6;
const MEMORY_RUNS = 3;
const SPEEDUP_PRECISION = 1.5; // as in runner.py
const LEAST_ROUNDS = 3;
const MOST_TEXT = 2000; // characters of an error

// Student's t at 99 % for 1 to 30 degrees of freedom: of an interval that ends the measuring, see kdexport/statistics.py.
const T98 = [
  31.821, 6.965, 4.541, 3.747, 3.365, 3.143, 2.998, 2.896, 2.821, 2.764, 2.718, 2.681, 2.65, 2.624, 2.602, 2.583,
  2.567, 2.552, 2.539, 2.528, 2.518, 2.508, 2.5, 2.492, 2.485, 2.479, 2.473, 2.467, 2.462, 2.457,
];

/** Thrown where a round does not count: the page was hidden meanwhile. */
export class Interrupted extends Error {}

export function median(values) {
  const sorted = Float64Array.from(values).sort();
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

/** Half-width, as a share of its middle, of the interval of a geometric mean; null before there is an interval. */
export function halfWidth(values) {
  const count = values.length;
  if (count < LEAST_ROUNDS) return null;
  const logs = values.map(Math.log);
  const mean = logs.reduce((sum, one) => sum + one, 0) / count;
  const variance = logs.reduce((sum, one) => sum + (one - mean) ** 2, 0) / (count - 1);
  const t = count - 1 <= T98.length ? T98[count - 2] : 2.326 + 4 / (count - 1);
  return Math.tanh((t * Math.sqrt(variance)) / Math.sqrt(count));
}

/** The medians of a result's rounds, in nanoseconds. */
export const medians = (one) => one.rounds.map((round) => median(round.turns.flat()));

/** What `halfWidth` takes of a speed-up: each common round's median over its pairs of turns. */
export function ratios(baseline, one) {
  const common = Math.min(baseline.rounds.length, one.rounds.length);
  const found = [];
  for (let round = 0; round < common; round += 1) {
    const [first, second] = [baseline.rounds[round].turns, one.rounds[round].turns];
    const pairs = Math.min(first.length, second.length);
    found.push(median(Array.from({ length: pairs }, (_, turn) => median(first[turn]) / median(second[turn]))));
  }
  return found;
}

/** Upper over lower quartile of a model's calls within a round, the median over its rounds. */
export function unsteadiness(one) {
  return median(
    one.rounds.map((round) => {
      const samples = Float64Array.from(round.turns.flat()).sort();
      const at = (share) => {
        const place = share * (samples.length - 1);
        const below = Math.floor(place);
        return samples[below] + (place - below) * ((samples[below + 1] ?? samples[below]) - samples[below]);
      };
      return at(0.75) / at(0.25);
    }),
  );
}

const measuredSeconds = (one) =>
  one.rounds.reduce((sum, round) => sum + round.calls_per_sample * round.turns.flat().reduce((a, b) => a + b, 0), 0) / 1e9;

/** Whether the models of one batch size are known well enough: as `Runner._enough`. */
export function enough(results, settings, late) {
  const alive = results.filter((one) => !one.failure);
  if (alive.some((one) => one.rounds.length < settings.rounds)) return false;
  if (late || !alive.length) return true;
  const runs = (one) => one.rounds.reduce((sum, round) => sum + round.turns.flat().length, 0);
  if (alive.some((one) => measuredSeconds(one) < settings.min_seconds || runs(one) < settings.min_runs)) return false;
  if (settings.rounds < LEAST_ROUNDS) return true;
  const widths = alive.map((one) => [halfWidth(medians(one)), settings.precision]);
  for (const one of alive.slice(1)) {
    widths.push([halfWidth(ratios(alive[0], one)), SPEEDUP_PRECISION * settings.precision]);
  }
  return widths.every(([width, target]) => width !== null && width <= target);
}

/** Device and thread count of each condition that is to be measured, those that lack here with the reason why. */
export function conditions(plan, offered, cores) {
  return plan.devices.flatMap((device) => {
    const several = plan.threads.filter((count) => count > 1);
    const own = several.length ? several : [Math.max(2, Math.min(cores ?? 2, 4))];
    const threads = device === "web:wasm-threads" ? own : [1];
    return threads.map((count) => ({ device, threads: count, lacks: offered[device] ?? null }));
  });
}

/** The results of one condition, made where they are not there yet. */
function resultsOf(record, plan, { device, threads, lacks }) {
  return plan.batch_sizes.flatMap((batch) =>
    plan.models.map((model) => {
      const same = (one) =>
        one.model === model.name && one.device === device && one.batch_size === batch && one.threads === threads;
      let found = record.results.find(same);
      if (!found) {
        found = {
          model: model.name, device, batch_size: batch, threads, failure: lacks, proved: false, memory: null,
          placement_log: [], rounds: [], compared: null,
        };
        record.results.push(found);
      }
      return found;
    }),
  );
}

/** Of the runtime's log the lines that say where operators run, without their times and places. */
const placementLines = (log) =>
  log.map((line) => line.match(/All nodes placed on .*|Node\(s\) placed on .*| {2,}\w+ \(/)?.[0]).filter(Boolean);

const words = (error) => String(error?.message ?? error).slice(0, MOST_TEXT);

/**
 * Measure all that `record` does not hold yet.
 *
 * host: `worker()` a fresh one ({ask, end}), `quiet()` waits until the page is seen, `disturbed()` how often it was
 * hidden, `note(text)`, `at(model)` who is at work, `save()`, `seconds()` a clock.
 */
export async function measure(plan, chosen, record, host) {
  const pairs = chosen.map((condition) => [condition, resultsOf(record, plan, condition)]);
  await host.save();
  for (const [condition, results] of pairs) {
    for (const one of results) if (!one.proved && !one.failure) await prove(plan, condition, one, host);
    for (const one of results) if (!one.compared && !one.failure) await compare(plan, condition, one, host);
  }
  for (const [condition, results] of pairs) await settle(plan, condition, results, record, host);
}

function taskOf(plan, condition, one) {
  const model = plan.models.find(({ name }) => name === one.model);
  const provider = condition.device === "web:webgpu" ? "webgpu" : "wasm";
  return {
    provider, threads: condition.threads, model: model.url, external: model.external, empty: plan.empty,
    runtime: plan.runtime[provider], inputs: model.inputs[one.batch_size],
  };
}

/** Let a model work in a worker of its own, once more where the page was hidden meanwhile: it may have been ended for that. */
async function apart(plan, condition, one, host, what, work) {
  for (;;) {
    await host.quiet();
    const before = host.disturbed();
    host.note(`${what} of ${one.model}, batch ${one.batch_size}, ${one.device}`);
    host.at(one);
    const worker = await host.worker();
    try {
      const task = taskOf(plan, condition, one);
      await worker.ask({ do: "load", ...task });
      return await work(worker, task);
    } catch (error) {
      if (host.disturbed() === before) throw error;
    } finally {
      worker.end();
      host.at(null);
    }
  }
}

/** Run a model once: memory, placement, and whether the device takes it at all. */
async function prove(plan, condition, one, host) {
  try {
    const found = await apart(plan, condition, one, host, "memory", (worker, task) =>
      worker.ask({ do: "memory", runs: MEMORY_RUNS, ...task }),
    );
    one.memory = { wasm_heap: found.wasm_heap, page: found.page };
    one.placement_log = placementLines(found.log);
  } catch (error) {
    one.failure = words(error);
  }
  one.proved = true;
  await host.save();
}

/** Run a model on the inputs whose outputs kdexport compares; apart, for they may take more memory than what is timed. */
async function compare(plan, condition, one, host) {
  const { compared } = plan.models.find(({ name }) => name === one.model);
  if (!compared.length || one.batch_size !== plan.batch_sizes[0]) return;
  try {
    const calls = await apart(plan, condition, one, host, "outputs", async (worker) => {
      const found = [];
      for (const inputs of compared) found.push((await worker.ask({ do: "run", inputs })).outputs);
      return found;
    });
    one.compared = { failure: null, calls };
  } catch (error) {
    one.compared = { failure: words(error), calls: [] };
  }
  await host.save();
}

/** Rounds of one condition until each of its batch sizes is known well enough. */
async function settle(plan, condition, results, record, host) {
  const key = `${condition.device}|${condition.threads}`;
  record.spent_s[key] ??= 0;
  for (;;) {
    const late = record.spent_s[key] >= plan.settings.max_seconds * results.length;
    const of = (batch) => results.filter((one) => one.batch_size === batch);
    const waiting = plan.batch_sizes.filter((batch) => !enough(of(batch), plan.settings, late));
    if (!waiting.length) return;
    await host.quiet();
    const began = host.seconds();
    const count = Math.max(...results.map((one) => one.rounds.length));
    host.note(`round ${count + 1} on ${condition.device}`);
    try {
      const found = await oneRound(plan, condition, waiting.map(of), count, host);
      for (const [one, round] of found) if (!one.failure) one.rounds.push(round);
    } catch (error) {
      if (!(error instanceof Interrupted)) throw error;
      host.note("this page was hidden: that round is measured again");
      continue;
    } finally {
      host.at(null);
    }
    record.spent_s[key] += host.seconds() - began;
    await host.save();
  }
}

/**
 * One round: a fresh worker for each model. Returns [result, round] pairs.
 *
 * Who is loaded, warmed up and timed first changes from round to round: workers share what is behind a page (the GPU's
 * process, the compiler), and what the first one finds there is not what the second one does.
 */
async function oneRound(plan, condition, groups, number, host) {
  const before = host.disturbed();
  const check = () => {
    if (host.disturbed() !== before) throw new Interrupted();
  };
  const workers = new Map(); // model -> {worker, load_ms}
  const attempt = async (one, work) => {
    check();
    host.at(one);
    try {
      return await work();
    } catch (error) {
      check();
      one.failure = words(error);
      workers.get(one.model)?.worker.end();
      workers.delete(one.model);
      return null;
    }
  };
  const loaded = async (one) => {
    if (!workers.has(one.model)) {
      const entry = { worker: await host.worker() };
      workers.set(one.model, entry);
      entry.load_ms = (await entry.worker.ask({ do: "load", ...taskOf(plan, condition, one) })).load_ms;
    }
    return workers.get(one.model);
  };
  try {
    const found = [];
    for (const one of inOrder(groups[0], number)) await attempt(one, () => loaded(one));
    for (const group of groups) found.push(...(await turns(plan, condition, group, number, attempt, loaded)));
    check();
    return found;
  } finally {
    for (const { worker } of workers.values()) worker.end();
  }
}

/** Those that are still in it: as they stand, or for an odd number backwards. */
function inOrder(results, number) {
  const alive = results.filter(({ failure }) => !failure);
  return number % 2 ? alive.reverse() : alive;
}

/** The turns of one batch size: each model its share of the round's time. */
async function turns(plan, condition, group, number, attempt, loaded) {
  const budget = (plan.settings.min_seconds * 1e9) / plan.settings.rounds;
  const parts = new Map();
  for (const one of inOrder(group, number)) {
    await attempt(one, async () => {
      const { worker, load_ms } = await loaded(one);
      const made = await worker.ask({ do: "prepare", ...taskOf(plan, condition, one) });
      const { first_run_ms, stable, nan, calls_per_sample } = made;
      parts.set(one, {
        load_ms, first_run_ms, stable, nan, calls_per_sample, clock_ms: made.step_ms, turns: [], spent: 0,
      });
    });
  }
  // The one that was prepared first has rested while the others were, for seconds where a GPU compiles: on WebGPU its
  // first calls then take up to ten times as long.
  for (const one of inOrder(group, number)) await attempt(one, async () => (await loaded(one)).worker.ask({ do: "again" }));
  for (let turn = 0; ; turn += 1) {
    const active = inOrder(group, number + turn).filter((one) => parts.get(one).spent < budget);
    if (!active.length) break;
    for (const one of active) {
      await attempt(one, async () => {
        const { worker } = await loaded(one);
        const reply = await worker.ask({ do: "turn", budget_ns: TURN_NS });
        const part = parts.get(one);
        part.turns.push(reply.samples);
        part.calls_per_sample = Math.max(part.calls_per_sample, reply.calls_per_sample);
        part.spent += reply.samples.reduce((sum, sample) => sum + sample, 0) * part.calls_per_sample;
      });
    }
  }
  return [...parts].map(([one, { spent, ...round }]) => [one, round]);
}
