"""Scores of the user's own, beside the task's."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from kdexport.cli import app
from kdexport.errors import SourceError
from kdexport.scoring import own_scores

SCORES = """
import numpy as np


def top_2(outputs, targets):
    return np.mean([target in row.argsort()[-2:] for row, target in zip(outputs, targets)])


def broken(outputs, targets):
    return outputs[:, 99].mean()


number = 3
"""


@pytest.fixture
def scores(tmp_path):
    (tmp_path / "scores.py").write_text(SCORES)
    return tmp_path / "scores.py"


def test_evaluate_tells_it_beside_the_tasks_own(scores, tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n\n\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    torch.save(net.state_dict(), tmp_path / "net.pt")
    asked = ["evaluate", f"{tmp_path / 'nets.py'}:net", "--weights", str(tmp_path / "net.pt"), "--data", "digits"]
    done = CliRunner().invoke(app, [*asked, "--set", f'scores=["{scores}:top_2"]', "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["score"]["value"] <= told["metrics"]["top_2"] <= 1
    assert "macro_f1" in told["metrics"]


@pytest.mark.parametrize(("name", "message"), [("topp", "has no 'topp'"), ("number", "is no function")])
def test_what_is_no_score_is_told(scores, name, message):
    with pytest.raises(SourceError, match=message):
        own_scores([f"{scores}:{name}"])


def test_a_score_that_raises_names_its_place(scores):
    from kdexport.data.samples import Split
    from kdexport.scoring import evaluate

    split = Split((np.zeros((4, 3), np.float32),), np.array([0, 1, 2, 0]))
    with pytest.raises(SourceError, match=r"the score broken raises IndexError.*scores\.py"):
        evaluate(lambda inputs: inputs[0], split, ("a", "b", "c"), further=own_scores([f"{scores}:broken"]))
