"""How a loss is held against its paper: value and gradient against float64 numpy, and beside peers."""

import importlib
import warnings

import numpy as np
import pytest
import torch


@pytest.fixture
def check_loss():
    """Return a function that compares a loss in fp32 with its float64 reference.

    ``loss`` takes tensors, ``reference`` takes float64 arrays: first the student's, then whatever else. Value to 1e-6,
    gradient of the student's to 1e-4 of a central finite difference of the reference.
    """

    def check(loss, reference, student, *others, step=1e-5):
        tensor = torch.tensor(student, dtype=torch.float32, requires_grad=True)
        student = tensor.detach().double().numpy()  # what fp32 holds, not what was drawn
        tensors = [torch.as_tensor(other, dtype=torch.float32 if other.dtype.kind == "f" else None) for other in others]
        wide = [other.double().numpy() if other.is_floating_point() else other.numpy() for other in tensors]
        value = loss(tensor, *tensors)
        assert value.ndim == 0
        assert value.dtype == torch.float32
        expected = reference(student, *wide)
        assert value.item() == pytest.approx(expected, rel=1e-6, abs=1e-6)

        value.backward()
        difference = np.empty_like(student)
        for place in np.ndindex(student.shape):
            above, below = student.copy(), student.copy()
            above[place] += step
            below[place] -= step
            difference[place] = (reference(above, *wide) - reference(below, *wide)) / (2 * step)
        np.testing.assert_allclose(tensor.grad.numpy(), difference, rtol=1e-4, atol=1e-4)
        assert np.abs(difference).max() > 1e-3  # a flat spot would prove nothing

    return check


@pytest.fixture(scope="session")
def torchdistill():
    """Return torchdistill's mid-level losses, an independent implementation, where it is installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module("torchdistill.losses.mid_level")
        except ImportError as error:
            pytest.skip(f"torchdistill is not installed ({error}): pip install torchdistill compares with it")


@pytest.fixture
def io():
    """Return a function that wraps tensors as torchdistill wants them: module path -> what the module gave."""
    return lambda **outputs: {path: {"output": tensor} for path, tensor in outputs.items()}
