"""What `kdexport bench` adds to a latency, against the tightest loops over the same runtime.

    python benchmarks/bench_overhead.py [--header onnxruntime_c_api.h] [--rounds 10]

Three processes per round, in turns of 20 ms: kdexport's own worker; a bare Python script whose loop holds nothing but
the clock and the call, inputs and outputs bound; and, with the runtime's C header at hand, the same loop in C. Fresh
processes in each round; the ratio's interval is over rounds. Target: within 3 % at 1 ms and more, 12 µs below.

A wheel holds the runtime twice: in the module that Python loads, and in libonnxruntime.so, which C loads. The two are
not equally fast. So the C loop also runs inside a Python process: what differs between that one and the bare script,
is the two builds; what differs between the bare script and kdexport, is kdexport.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
from bench_common import SIZES, OtherLoad, keep, make_model

from kdexport.bench.process import Child
from kdexport.statistics import ratio_interval

TURNS = 10
TURN_NS = 20_000_000
BARE = """
import sys, time
import numpy as np
import onnxruntime as ort
path, side = sys.argv[1], int(sys.argv[2])
options = ort.SessionOptions(); options.intra_op_num_threads = 1; options.inter_op_num_threads = 1
session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
binding = session.io_binding()
x = ort.OrtValue.ortvalue_from_numpy(np.linspace(-1, 1, side * side, dtype=np.float32).reshape(1, 1, side, side))
y = ort.OrtValue.ortvalue_from_numpy(np.zeros((1, 10), np.float32))
binding.bind_ortvalue_input("x", x); binding.bind_ortvalue_output("logits", y)
run, clock = session.run_with_iobinding, time.perf_counter_ns
for line in sys.stdin:
    budget, samples = int(line), []
    for part in (budget // 10, budget):
        samples.clear(); end = clock() + part
        while True:
            a = clock(); run(binding); b = clock()
            samples.append(b - a)
            if b >= end: break
    print(*samples, flush=True)
"""
C_IN_PYTHON = """
import ctypes, sys
import numpy
loop = ctypes.CDLL(sys.argv[3])
loop.main(3, (ctypes.c_char_p * 3)(b"loop", sys.argv[1].encode(), sys.argv[2].encode()))
"""
C_LOOP = r"""
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include "onnxruntime_c_api.h"
static const OrtApi *g;
#define OK(call) do { OrtStatus *s = (call); if (s) { fprintf(stderr, "%s\n", g->GetErrorMessage(s)); exit(1); } } \
                 while (0)
#define FLOAT ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT
static long long now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}
int main(int count, char **words) {
  (void)count;
  g = OrtGetApiBase()->GetApi(ORT_API_VERSION);
  long long side = atoll(words[2]), size = side * side, budget;
  OrtEnv *env; OrtSessionOptions *options; OrtSession *session; OrtMemoryInfo *memory; OrtIoBinding *binding;
  OK(g->CreateEnv(ORT_LOGGING_LEVEL_ERROR, "c", &env)); OK(g->CreateSessionOptions(&options));
  OK(g->SetIntraOpNumThreads(options, 1)); OK(g->SetInterOpNumThreads(options, 1));
  OK(g->CreateSession(env, words[1], options, &session));
  OK(g->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
  float *in = malloc(size * sizeof *in), out[10];
  for (long long i = 0; i < size; i++) in[i] = -1 + 2.0f * i / (size - 1);
  int64_t in_shape[4] = {1, 1, side, side}, out_shape[2] = {1, 10};
  OrtValue *x, *y;
  OK(g->CreateTensorWithDataAsOrtValue(memory, in, size * sizeof *in, in_shape, 4, FLOAT, &x));
  OK(g->CreateTensorWithDataAsOrtValue(memory, out, sizeof out, out_shape, 2, FLOAT, &y));
  OK(g->CreateIoBinding(session, &binding)); OK(g->BindInput(binding, "x", x)); OK(g->BindOutput(binding, "logits", y));
  long long *samples = malloc(sizeof *samples * 4000000);
  while (scanf("%lld", &budget) == 1) {
    long n = 0;
    for (int part = 0; part < 2; part++) {
      long long end = now() + (part ? budget : budget / 10); n = 0;
      for (;;) {
        long long a = now(); OK(g->RunWithBinding(session, NULL, binding)); long long b = now();
        samples[n++] = b - a;
        if (b >= end || n == 4000000) break;
      }
    }
    for (long i = 0; i < n; i++) printf("%lld ", samples[i]);
    printf("\n"); fflush(stdout);
  }
  return 0;
}
"""


class Loop:
    """A bare loop in a process of its own: told a budget, it answers with its samples."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pid = self._process.pid

    def turn(self) -> list[int]:
        self._process.stdin.write(f"{TURN_NS}\n")
        self._process.stdin.flush()
        return [int(word) for word in self._process.stdout.readline().split()]

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


class Worker:
    """kdexport's own worker, asked as the runner asks it."""

    def __init__(self, path: Path, side: int) -> None:
        self._child = Child(path.name, 60)
        self.pid = self._child.pid
        task = {
            "path": str(path),
            "provider": "CPUExecutionProvider",
            "provider_options": {},
            "threads": 1,
            "shapes": {"x": [1, 1, side, side]},
            "batch_size": 1,
            "below": {},
            "file": None,
        }
        self._child.ask(do="load", **task)
        self._child.ask(do="prepare", **task)

    def turn(self) -> list[int]:
        return np.abs(np.frombuffer(self._child.ask(do="turn", budget_ns=TURN_NS)[1], np.int64)).tolist()

    def close(self) -> None:
        self._child.close()


def compile_c(header: Path, folder: Path) -> tuple[Path, Path]:
    """Build the C loop against the library that the Python wheel brings: as a program, and to be called from Python."""
    library = next((Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*"))
    source, program, shared = folder / "loop.c", folder / "loop", folder / "loop.so"
    source.write_text(C_LOOP)
    (folder / "libonnxruntime.so.1").symlink_to(library)  # its SONAME
    common = ["gcc", "-O2", str(source), f"-I{header.parent}", str(library), f"-Wl,-rpath,{folder}"]
    subprocess.run([*common, "-o", str(program)], check=True)
    subprocess.run([*common, "-shared", "-fPIC", "-o", str(shared)], check=True)
    return program, shared


def compare(path: Path, side: int, rounds: int, programs: tuple[Path, Path] | None) -> dict[str, object]:
    """Return the medians, and against each bare loop the ratio: in a round the median over pairs of turns."""
    turns: dict[str, list[list[float]]] = {}
    cores = sorted(os.sched_getaffinity(0))
    for index in range(rounds):
        loops = {
            "kdexport": Worker(path, side),
            "bare script": Loop([sys.executable, "-c", BARE, str(path), str(side)]),
        }
        if programs is not None:
            program, shared = programs
            loops["C API"] = Loop([str(program), str(path), str(side)])
            loops["C API in Python"] = Loop([sys.executable, "-c", C_IN_PYTHON, str(path), str(side), str(shared)])
        for loop in loops.values():  # on one core, as the runner does: cores differ
            os.sched_setaffinity(loop.pid, {cores[index % len(cores)]})
        for name in loops:
            turns.setdefault(name, []).append([])
        for turn in range(TURNS):
            order = list(loops) if (turn + index) % 2 == 0 else list(loops)[::-1]
            for name in order:
                turns[name][-1].append(statistics.median(loops[name].turn()) / 1e3)
        for loop in loops.values():
            loop.close()
    found: dict[str, object] = {
        "p50_us": {name: round(float(np.median(np.concatenate(values))), 3) for name, values in turns.items()}
    }
    ours = np.array(turns["kdexport"])
    for name in list(turns)[1:]:
        theirs = np.array(turns[name])
        ratio, interval = ratio_interval(np.median(ours / theirs, axis=1).tolist(), [1.0] * rounds)
        found[f"against {name}"] = {
            "ratio": round(ratio, 4),
            "ci95": [round(end, 4) for end in interval],
            "difference_us": round(float(np.median(ours - theirs)), 2),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--header", type=Path, help="any onnxruntime_c_api.h not newer than the wheel")
    parser.add_argument("--rounds", type=int, default=10)
    flags = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, OtherLoad() as load:
        programs = compile_c(flags.header, Path(folder)) if flags.header else None
        found = {
            size: compare(make_model(Path(folder), size), SIZES[size][2], flags.rounds, programs) for size in SIZES
        }
    targets = "within 3 % at 1 ms and more, within 12 µs below"
    keep("bench_overhead", {"rounds": flags.rounds, "target": targets, "models": found}, load)


if __name__ == "__main__":
    main()
