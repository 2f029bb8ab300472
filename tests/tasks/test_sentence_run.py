"""A text embedding goes the whole way: from a transformer of the hub's form to a student with some of its layers and
tokens, through export, bench, pack and report.
"""

import csv
import json
import zipfile

import numpy as np
import pytest
from typer.testing import CliRunner

from kdexport.bench.pack import pack
from kdexport.bench.packed import samples_in
from kdexport.cli import app
from kdexport.cli.bench_request import request_for
from kdexport.onnx.sessions import OnnxSession
from kdexport.pipeline import run
from kdexport.progress import SILENT
from kdexport.recipe import Recipe
from kdexport.scoring import evaluate

transformers = pytest.importorskip("transformers", reason="it is an extra: pip install 'kdexport[text]'")
tokenizers = pytest.importorskip("tokenizers")
scipy_stats = pytest.importorskip("scipy.stats")

WHO, DOES, UNUSED = ["man", "woman", "dog", "cat", "girl", "boy"], ["walks", "plays", "sings", "sleeps"], ["xylophone"]
RECIPE = """
name = "pairs"
task = "embedding"
[data]
source = "csv:pairs.csv"
tokenizer = "hf:bert"
text_length = 12
[teacher]
model = "hf:bert"
[student]
model = "teacher"
layers = [1]
vocabulary = "corpus"
[distill]
epochs = 2
batch_size = 16
lr = 0.003
label_weight = 0.0
baseline = false
[[distill.terms]]
method = "cosine"
[export]
quantize = ["int8-dynamic"]
[bench]
min_seconds = 0.02
max_seconds = 0.05
rounds = 1
threads = [1]
batch_sizes = [1]
"""


def bert(folder):
    """Write a DistilBERT of two layers with its weights and a tokenizer that knows more words than any text has."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "the", *WHO, *DOES, *UNUSED]
    model = tokenizers.models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    transformers.set_seed(0)
    size = {"dim": 16, "hidden_dim": 32, "n_heads": 2, "n_layers": 2, "max_position_embeddings": 16}
    transformers.DistilBertModel(transformers.DistilBertConfig(vocab_size=len(words), **size)).save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("pairs")
    bert(place / "bert")
    draw = np.random.default_rng(0)
    with (place / "pairs.csv").open("w", newline="", encoding="utf-8") as handle:
        write = csv.writer(handle)
        write.writerow(["sentence1", "sentence2", "score", "split"])
        for split, count in (("train", 48), ("val", 20), ("test", 24)):
            for _ in range(count):
                who, does = draw.choice(WHO, 2), draw.choice(DOES, 2)
                alike = round(2.5 * (who[0] == who[1]) + 2.5 * (does[0] == does[1]) + draw.uniform(), 2)
                write.writerow([f"a {who[0]} {does[0]}", f"the {who[1]} {does[1]}", alike, split])
    (place / "recipe.toml").write_text(RECIPE)
    return place


@pytest.fixture(scope="module")
def report(folder):
    """A run without the trial before training, which ``test_trial`` holds: it exports each network once more."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdexport.export.diagnosis.try_export", lambda *_, **__: None)
        return run(Recipe.load(folder / "recipe.toml", []), folder / "run")


@pytest.fixture(scope="module")
def tested(folder):
    """The test split's sentences, and the scores of the pairs."""
    with (folder / "pairs.csv").open(newline="", encoding="utf-8") as handle:
        rows = [row for row in csv.DictReader(handle) if row["split"] == "test"]
    return [[row[side] for row in rows] for side in ("sentence1", "sentence2")], [float(row["score"]) for row in rows]


def test_the_score_is_scipys_of_what_the_file_gives_for_its_own_tokenizers_ids(report, folder, tested):
    sentences, wanted = tested
    own = tokenizers.Tokenizer.from_file(str(folder / "run" / "tokenizer.json"))
    assert own.get_vocab_size() == len({word for side in sentences for text in side for word in text.split()}) + 4
    models = {model.name: model for model in report.models}
    assert set(models) == {"teacher", "student", "student.int8-dynamic"}
    for name in ("student", "student.int8-dynamic"):
        session = OnnxSession(folder / "run" / models[name].file)
        rows = []
        for side in sentences:
            found = own.encode_batch(side)
            rows.append(
                session([np.array([one.ids for one in found]), np.array([one.attention_mask for one in found])])
            )
        left, right = (np.asarray(outputs[0], np.float64) for outputs in rows)
        cosines = (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
        expected = scipy_stats.spearmanr(cosines, wanted).statistic
        assert models[name].score.value == pytest.approx(expected, abs=1e-9)
        assert models[name].score.metric == "spearman"
    assert models["student"].parity.passed
    assert models["student"].parameters < models["teacher"].parameters
    assert models["student"].teacher_agreement.logit_correlation > 0.5


def test_pack_evaluate_page_and_script_are_of_the_same_run(report, folder, tmp_path, tested):
    request = request_for(
        [folder / "run"], {}, None, (), (), inputs_file=None, progress=SILENT
    )  # as `kdexport bench RUN`
    assert request.dims == {"length": 5}  # of the longest text: [CLS] a man walks [SEP]
    pack(request, tmp_path / "bench.pyz", progress=SILENT)
    with zipfile.ZipFile(tmp_path / "bench.pyz") as archive:
        archive.extractall(tmp_path / "there")
        manifest = json.loads(archive.read("manifest.json"))
    for model in (model for model in report.models if model.name != "teacher"):
        with np.load(tmp_path / "there" / "data" / f"{manifest['feeds'][model.name]}.npz") as held:
            split = samples_in(held, manifest["task"])
        session = OnnxSession(folder / "run" / model.file)
        session._raw = False
        found, _ = evaluate(session.predict, split, manifest["class_names"])
        assert found.score == model.score
    words = ["evaluate", str(folder / "run" / "student.onnx"), "--data", f"csv:{folder / 'pairs.csv'}", "--json"]
    call = CliRunner().invoke(app, words)  # by the tokenizer beside the file: nothing else is named
    assert call.exit_code == 0, call.stderr
    student = next(model for model in report.models if model.name == "student")
    assert json.loads(call.stdout)["score"]["value"] == pytest.approx(student.score.value, abs=1e-9)
    assert "Spearman" in (folder / "run" / "report.html").read_text()
    script = (folder / "run" / "infer.py").read_text()
    assert "transformers" not in script
    assert "tokenizer.json" in script
