"""Sentence embeddings: pooling against numpy, and what a model's own files say of it."""

import json

import numpy as np
import pytest
import torch

from kdexport.errors import SourceError
from kdexport.models.sentence import (
    SentenceEmbedder,
    SentenceModules,
    load_dense,
    pool,
    prompt_note,
    read_modules,
)

TRANSFORMER = {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
POOLING = {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
NORMALIZE = {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}


@pytest.fixture
def folder(tmp_path):
    def made(*modules, **configs):
        (tmp_path / "modules.json").write_text(json.dumps(modules))
        for place, config in configs.items():
            (tmp_path / place).mkdir(exist_ok=True)
            (tmp_path / place / "config.json").write_text(json.dumps(config))
        return str(tmp_path)

    return made


def expected(tokens, mask, mode):
    rows = []
    for vectors, known in zip(tokens, mask, strict=True):
        used = vectors[: int(known.sum())]
        places = np.arange(1, len(used) + 1)[:, None]
        rows.append({
            "cls": used[0],
            "max": used.max(0),
            "mean": used.mean(0),
            "mean_sqrt_len_tokens": used.sum(0) / np.sqrt(len(used)),
            "weightedmean": (used * places).sum(0) / places.sum(),
            "lasttoken": used[-1],
        }[mode])  # fmt: skip
    return np.stack(rows)


@pytest.mark.parametrize("mode", ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"])
def test_pooling_is_what_it_is_called(mode):
    rng = np.random.default_rng(0)
    tokens, mask = rng.normal(size=(3, 5, 4)), np.array([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 0, 0, 0]])
    found = pool(torch.from_numpy(tokens), torch.from_numpy(mask), (mode,))
    np.testing.assert_allclose(found.numpy(), expected(tokens, mask, mode), atol=1e-12)
    both = pool(torch.from_numpy(tokens), torch.from_numpy(mask), (mode, "mean"))
    np.testing.assert_allclose(both.numpy()[:, 4:], expected(tokens, mask, "mean"), atol=1e-12)


@pytest.mark.parametrize("mode", ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"])
def test_an_embedding_does_not_depend_on_what_it_is_padded_to(mode):
    """sentence-transformers 2569, onnxruntime 6044: another batch, another length of padding, another embedding."""
    tokens, mask = torch.randn(2, 6, 4), torch.tensor([[1, 1, 1, 0, 0, 0], [1] * 6])
    alone = pool(tokens[:1, :3], mask[:1, :3], (mode,))
    torch.testing.assert_close(pool(tokens, mask, (mode,))[:1], alone)
    tokens[0, 3:] = 1e4  # what stands at padding is of no account
    torch.testing.assert_close(pool(tokens, mask, (mode,))[:1], alone)


def test_what_a_model_says_of_its_pooling(folder, tmp_path):
    assert read_modules(str(tmp_path)) == SentenceModules()
    assert "no modules.json" in read_modules(str(tmp_path)).text
    old = {"word_embedding_dimension": 8, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    assert read_modules(folder(TRANSFORMER, POOLING, NORMALIZE, **{"1_Pooling": old})) == SentenceModules(
        ("cls",), normalize=True, stated=True
    )
    new = {"embedding_dimension": 8, "pooling_mode": ["mean", "max"]}
    first = {
        **TRANSFORMER,
        "path": "0_Transformer",
        "type": "sentence_transformers.base.modules.transformer.Transformer",
    }
    read = read_modules(folder(first, POOLING, **{"1_Pooling": new}))
    assert (read.pooling, read.normalize, read.transformer) == (("mean", "max"), False, "0_Transformer")
    assert "as its modules.json says" in read.text
    (tmp_path / "modules.json").unlink()
    assert read_modules(str(tmp_path)).pooling == ("mean", "max")  # an older export without the list


def test_a_dense_layer_keeps_its_own_weights(folder, tmp_path):
    said = {
        "in_features": 4,
        "out_features": 2,
        "bias": True,
        "activation_function": "torch.nn.Tanh",
    }
    dense = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    name = folder(TRANSFORMER, POOLING, dense, **{"1_Pooling": {"pooling_mode": "mean"}, "2_Dense": said})
    modules = read_modules(name)
    weight, bias = torch.randn(2, 4), torch.randn(2)
    torch.save({"linear.weight": weight, "linear.bias": bias}, tmp_path / "2_Dense" / "pytorch_model.bin")

    class Tokens(torch.nn.Module):
        def forward(self, input_ids, attention_mask, return_dict):
            return (torch.nn.functional.one_hot(input_ids, 4).float(),)

    embedder = SentenceEmbedder(Tokens(), modules).eval()
    load_dense(embedder, name, modules)
    ids, mask = torch.tensor([[0, 1, 3], [2, 2, 0]]), torch.tensor([[1, 1, 0], [1, 1, 1]])
    pooled = torch.tensor([[0.5, 0.5, 0, 0], [1 / 3, 0, 2 / 3, 0]])
    with torch.no_grad():
        torch.testing.assert_close(embedder(ids, mask), torch.tanh(pooled @ weight.T + bias))
    torch.save({"linear.weight": weight[:1]}, tmp_path / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(SourceError, match="2_Dense holds no weights of a layer 4 -> 2"):
        load_dense(embedder, name, modules)


@pytest.mark.parametrize(
    ("modules", "configs", "message"),
    [
        ((TRANSFORMER,), {}, "pools its tokens by no module"),
        (({**TRANSFORMER, "type": "sentence_transformers.models.StaticEmbedding"},), {}, "the sentence-transformers "
         "module StaticEmbedding"),
        ((TRANSFORMER, POOLING), {"1_Pooling": {"pooling_mode": "attention"}}, "pools by 'attention'; known are: cls"),
        ((TRANSFORMER, POOLING, {"path": "2_Dense", "type": "x.Dense"}),
         {"2_Dense": {"in_features": 4, "out_features": 2, "activation_function": "my.Swish"}}, "the activation Swish"),
        ((TRANSFORMER, POOLING, {"path": "2_Dense", "type": "x.Dense"}), {"2_Dense": {}}, "how wide its dense layer"),
    ],
)  # fmt: skip
def test_modules_that_are_not_known(modules, configs, message, folder):
    with pytest.raises(SourceError, match=message) as caught:
        read_modules(folder(*modules, **configs))
    assert "file.py:Name" in caught.value.hint or "save the model again" in caught.value.hint


def test_a_damaged_file_and_a_prompt_are_told(folder, tmp_path):
    name = folder(TRANSFORMER, POOLING)
    assert prompt_note(name) is None
    said = {"prompts": {"query": "query: ", "passage": ""}, "default_prompt_name": "query"}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(said))
    assert "'query: ' is not put before" in prompt_note(name)
    (tmp_path / "modules.json").write_text("[{")
    with pytest.raises(SourceError, match="cannot be read as JSON"):
        read_modules(name)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("modules.json", '{"0": {}}', "its modules.json is no list of modules"),
        ("modules.json", "[[]]", "its modules.json is no list of modules"),
        ("modules.json", "[" * 5000, "cannot be read as JSON"),
        ("1_Pooling/config.json", "[3]", "its 1_Pooling/config.json holds no JSON object"),
        ("1_Pooling/config.json", '{"pooling_mode": [["mean"]]}', "known are: cls"),
        ("2_Dense/config.json", '{"in_features": true, "out_features": 2}', "how wide its dense layer"),
        (
            "modules.json",
            json.dumps([TRANSFORMER, POOLING, {"path": "n" * 256, "type": "x.Dense"}]),
            "how wide its dense layer",
        ),
        ("2_Dense/config.json", '{"in_features": 1e400, "out_features": 2}', "how wide its dense layer"),
        ("2_Dense/config.json", '{"in_features": -1, "out_features": 10000000000000}', "how wide its dense layer"),
    ],
)
def test_json_of_another_form_is_refused(file, text, message, folder, tmp_path):
    dense = {"path": "2_Dense", "type": "x.Dense"}
    modes = {"pooling_mode": "mean"}
    name = folder(TRANSFORMER, POOLING, dense, **{"1_Pooling": modes, "2_Dense": {"in_features": 4, "out_features": 2}})
    (tmp_path / file).write_text(text)
    with pytest.raises(SourceError, match=message):
        read_modules(name)


@pytest.mark.parametrize("prompts", [["x"], {"query": "q"}, "x"])
def test_prompts_of_another_form_are_none(prompts, tmp_path):
    said = {"prompts": prompts, "default_prompt_name": ["query"]}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(said))
    assert prompt_note(str(tmp_path)) is None


@pytest.mark.parametrize(
    "changes", [{"num_hidden_layers": 2**31}, {"hidden_size": "x"}, {"num_attention_heads": 0}, {"vocab_size": -1}]
)
def test_a_configuration_that_cannot_be_built_is_refused(changes, tmp_path):
    pytest.importorskip("transformers")
    from kdexport.models.hub import label_names, load_embedder

    said = {"model_type": "bert", "vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    (tmp_path / "config.json").write_text(json.dumps({**said, "intermediate_size": 8, "id2label": [], **changes}))
    assert label_names(str(tmp_path)) is None
    with pytest.raises(SourceError, match=r"config\.json says|cannot be loaded"):
        load_embedder(str(tmp_path), {"pretrained": False})
