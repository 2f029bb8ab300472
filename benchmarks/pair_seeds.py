"""What a reference pair's teacher is worth over several seeds: distilled beside plain, from one teacher.

    python benchmarks/pair_seeds.py models/camvid/recipe.toml --set data.source=masks:/path/to/camvid

The first seed's run trains the teacher; the others take its weights, so that seeds differ by the students alone: their
start, their order of samples and their views. The gain is the mean over seeds of the student's score on the test split
minus that of the same student without the teacher, with Student's 95 % interval. A seed that is done is not done again.
Beside it the same gain on the validation split: what to choose settings by.
"""

import argparse
import json
import multiprocessing
import statistics
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib import metadata
from pathlib import Path

SEEDS = 5
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Train, write ``results/pair_NAME.json``, print the gain."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as kdexport run")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--work", type=Path, default=Path("pair_seeds"), help="folder for the runs")
    parser.add_argument("--teacher", type=Path, help="its weights, in place of training it with the first seed")
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time, once there is a teacher")
    parser.add_argument("--out", type=Path, help="the result; results/pair_NAME.json where it is left out")
    options = parser.parse_args()

    from kdexport.recipe import Recipe

    out = options.out or RESULTS / f"pair_{Recipe.load(options.recipe, options.set).name}.json"
    runs = [] if options.teacher else [scores(options, 0)]
    with ProcessPoolExecutor(options.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for run in pool.map(partial(scores, options), range(len(runs), options.seeds)):
            runs.append(run)
            print(f"seed {len(runs) - 1}: {run}", flush=True)
            out.write_text(json.dumps(summary(runs), indent=2) + "\n")
    print(json.dumps(summary(runs)["gain"]))


def scores(options: argparse.Namespace, seed: int) -> dict[str, dict[str, float]]:
    """Return what each network of a run scores on the splits ``test`` and ``val``, in PyTorch."""
    import kdexport
    from kdexport.artifacts import RunDirectory
    from kdexport.distill.batches import predict_all
    from kdexport.distill.optimization import accelerator_for
    from kdexport.models.fitted_data import load_run_data
    from kdexport.models.loading import load_model
    from kdexport.recipe import Recipe

    record = options.work / f"{seed}.json"
    if record.is_file():
        return json.loads(record.read_text())
    asked = Recipe.load(options.recipe, [*options.set, f"seed={seed}"])
    if options.teacher or (seed and asked.teacher.train is not None):
        weights = (options.teacher or options.work / "0" / "teacher.safetensors").resolve()
        asked = asked.model_copy(
            update={"teacher": asked.teacher.model_copy(update={"weights": str(weights), "train": None})}
        )
    directory = RunDirectory(options.work / str(seed))
    made = kdexport.distill(asked, directory)
    dataset = load_run_data(asked, directory.cache)
    device = accelerator_for("fp32").device
    found: dict[str, dict[str, float]] = {"test": {}, "val": {}}
    for network in made.networks:
        spec = asked.teacher if network.name == "teacher" else asked.student
        model = load_model(network.name, spec, dataset, directory.weights(network.name))
        on_device = model.network.to(device)
        for split, samples in (("test", dataset.test), ("val", dataset.val)):
            outputs = predict_all(on_device, model.preprocessing, samples, device)
            task, calibration = dataset.task, samples.calibration
            if calibration is not None:  # a threshold is that of the validation samples
                fitted_on = predict_all(on_device, model.preprocessing, calibration, device)
                task = task.calibrated(fitted_on, calibration.labels)
            score = task.score(outputs, samples.labels)
            if score is not None:
                found[split][network.name] = score
    record.write_text(json.dumps(found))
    return found


def summary(runs: list[dict[str, dict[str, float]]]) -> dict[str, object]:
    """Return the scores by seed and the gain on either split, in the score's own unit."""
    return {
        "versions": {name: metadata.version(name) for name in ("torch", "numpy")},
        "seeds": [run["test"] for run in runs],
        "gain": gain([run["test"] for run in runs]),
        "val_gain": gain([run["val"] for run in runs if run["val"]]),
    }


def gain(runs: list[dict[str, float]]) -> dict[str, object] | None:
    """Return the mean of the student's score less that of the plain one, with Student's 95 % interval."""
    from kdexport.statistics import student_t95

    gains = [run["student"] - run["student-plain"] for run in runs]
    if not gains:
        return None
    spread = statistics.stdev(gains) / len(gains) ** 0.5 * student_t95(len(gains) - 1) if len(gains) > 1 else None
    mean = statistics.mean(gains)
    return {"mean": mean, "ci95": None if spread is None else [mean - spread, mean + spread], "seeds": len(gains)}


if __name__ == "__main__":
    main()
