"""The child process of ``isolated``: loads models and runs them, until its input ends. Imports no torch.

A request is ``(token, model, optimize, threads, inputs)`` in pickle's form: the model, bytes or a path, is sent where
the token is new. The answer is ``("done", outputs)`` or ``("error", message)``; with no inputs, in place of outputs
what the model says of itself: its metadata, and of its inputs and its outputs names, types and shapes.
"""

import contextlib
import os
import pickle
from pathlib import Path
from typing import Any

import onnxruntime

from kdexport.onnx.orphans import end_with_parent


def main() -> None:
    """Answer requests until there are no more."""
    end_with_parent()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not stand between two answers
    onnxruntime.set_default_logger_severity(4)
    with contextlib.suppress(OSError), Path("/proc/self/oom_score_adj").open("w", encoding="ascii") as score:
        score.write("1000")  # where memory runs out, it is this process that ends, not its parent
    held: tuple[int, Any] = (0, None)
    with os.fdopen(0, "rb") as requests, answers:
        while True:
            try:
                token, model, optimize, threads, inputs = pickle.load(requests)  # noqa: S301 our own parent's
            except EOFError:
                return
            try:
                if held[0] != token:
                    held = (0, None)  # the old one goes before the new one comes
                    held = (token, _session(model, optimize, threads))
                names = [item.name for item in held[1].get_inputs()]
                feed = dict(zip(names, inputs, strict=True)) if inputs else {}
                answer = ("done", held[1].run(None, feed) if inputs else _said_by(held[1]))
            except Exception as error:  # noqa: BLE001 ONNX Runtime's errors have no common class
                answer = ("error", str(error).strip() or type(error).__name__)
            pickle.dump(answer, answers, protocol=5)
            answers.flush()


def _said_by(session: Any) -> tuple[Any, ...]:
    values = [
        [(item.name, item.type, item.shape) for item in part()] for part in (session.get_inputs, session.get_outputs)
    ]
    return (dict(session.get_modelmeta().custom_metadata_map), *values)


def _session(model: Any, optimize: bool, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    main()
