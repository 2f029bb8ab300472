"""A model of any form as a function from raw inputs to logits: what ``evaluate`` scores.

An ONNX file needs no PyTorch; the module is written so that none is imported for one.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from kdexport import memory
from kdexport.data.samples import Dataset
from kdexport.errors import KDExportError, SourceError
from kdexport.models.preprocessing import AS_THEY_ARE, with_spec
from kdexport.recipe import Student
from kdexport.references import parse
from kdexport.scoring import Predict


@dataclass(frozen=True)
class Predictor:
    """Logits of raw inputs, and what the user should know of how they come about."""

    predict: Predict
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def load_predictor(spec: Student, dataset: Dataset) -> Predictor:
    """Return a module reference or an ONNX file as a function from raw inputs to logits.

    Args:
        spec: The model.
        dataset: With its classes in the order of the model's outputs (``fitted_data.load_fitted_data``).

    Raises:
        SourceError: As ``load_model``.
    """
    reference = parse(spec.model)
    if reference.kind == "path" and reference.target.endswith(".onnx"):
        from kdexport.onnx.isolated import IsolatedSession
        from kdexport.onnx.sessions import OnnxSession

        if spec.weights is not None:
            raise SourceError(f"{spec.model} holds its weights itself", hint="take --weights out")
        own = with_spec(dataset.preprocessing, spec.preprocessing)
        task = dataset.task
        session = OnnxSession(
            Path(reference.target),
            own,
            expects=task.activation,
            output_ndim=task.output_ndim,
            open_with=IsolatedSession,
        )
        session.width = task.num_outputs(dataset.class_names)
        as_they_are = own.assumed and session.preprocessing is own
        return Predictor(session.predict, notes=(AS_THEY_ARE,) if as_they_are else ())
    import torch

    from kdexport.models.loading import load_model
    from kdexport.models.networks import not_taken

    model = load_model("model", spec, dataset)

    def predict(inputs: tuple[NDArray[Any], ...]) -> NDArray[Any]:
        ready = model.preprocessing.apply(inputs)
        try:
            with torch.no_grad():
                return model.network(*ready).float().numpy()  # type: ignore[no-any-return]
        except Exception as error:  # it took the training data: this split, or this call, is otherwise
            if isinstance(error, KDExportError) or memory.exhausted(error):
                raise
            raise not_taken("model", ready, error) from error

    from kdexport.models.hub import has_weights

    brings_weights = reference.kind == "path" or (reference.kind == "hf" and has_weights(reference.target, spec.args))
    unweighted = spec.weights is None and not brings_weights
    untrained = (f"no weights are given: the network is scored as {spec.model} makes it",) if unweighted else ()
    return Predictor(predict, model.notes, (*untrained, *model.left_out, *model.warnings))
