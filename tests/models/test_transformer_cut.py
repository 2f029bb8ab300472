"""Transformers with some of their layers and tokens: held against the whole network with its layers taken out."""

import numpy as np
import pytest
import torch

from kdexport.errors import SourceError
from kdexport.models.transformer_cut import chosen_layers, cut_config, take_weights

transformers = pytest.importorskip("transformers", reason="it is an extra: pip install 'kdexport[text]'")

SIZE = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
KEPT = np.array([0, 1, 2, 3, 7, 8, 20, 29])


def built(kind, **more):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **{**SIZE, **more})
    return transformers.AutoModel.from_config(config).eval()


def made_smaller(whole, layers, kept=None):
    torch.manual_seed(1)
    small = type(whole)(cut_config(whole.config, layers, kept)).eval()
    take_weights(small, whole, layers, kept, "hf:whole")
    return small


def test_which_layers_are_kept():
    assert chosen_layers("every-other", 12, "bert") == (0, 2, 4, 7, 9, 11)  # those of DistilBERT's extract.py
    assert chosen_layers("every-other", 6, "m") == (0, 2, 5)
    assert chosen_layers("every-other", 1, "m") == (0,)
    assert chosen_layers(2, 6, "m") == (0, 5)
    assert chosen_layers(6, 6, "m") == tuple(range(6))
    assert chosen_layers([1, 4], 6, "m") == (1, 4)


@pytest.mark.parametrize(
    ("wanted", "message", "hint"),
    [
        (7, "hf:m has 6 layers", "from 1 to 6"),
        (0, "hf:m has 6 layers", "from 1 to 6"),
        ([0, 6], "names the layer 6, and hf:m has 6", "from 0 to 5"),
        ([-1], "names the layer -1", "from 0 to 5"),
        ([2, 1], "twice, or not in order", r"layers = [1, 2]"),
        ([1, 1], "twice, or not in order", r"layers = [1]"),
    ],
)
def test_layers_that_are_not_there(wanted, message, hint):
    with pytest.raises(SourceError, match=message) as caught:
        chosen_layers(wanted, 6, "hf:m")
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("kind", "stack", "more"),
    [
        ("bert", "encoder.layer", {}),
        ("distilbert", "transformer.layer", {"dim": 16, "hidden_dim": 32, "n_heads": 2, "n_layers": 4}),
        ("roberta", "encoder.layer", {"pad_token_id": 1}),
        ("mpnet", "encoder.layer", {"pad_token_id": 1}),
        ("electra", "encoder.layer", {"embedding_size": 16}),
    ],
)
def test_a_cut_network_computes_what_the_whole_one_does_without_its_other_layers(kind, stack, more):
    if kind == "distilbert":
        more = {**more, **{"hidden_size": 16, "num_hidden_layers": 4}}
        config = transformers.DistilBertConfig(vocab_size=30, dim=16, hidden_dim=32, n_heads=2, n_layers=4)
        torch.manual_seed(0)
        whole = transformers.DistilBertModel(config).eval()
    else:
        whole = built(kind, **more)
    small = made_smaller(whole, (0, 3), KEPT)
    new = torch.tensor([[3, 4, 6, 7, 5], [2, 7, 4, 1, 1]])  # 1 is the padding of the RoBERTas
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    owner = whole.get_submodule(stack.rpartition(".")[0])
    layers = whole.get_submodule(stack)
    setattr(owner, stack.rpartition(".")[2], torch.nn.ModuleList([layers[0], layers[3]]))
    with torch.no_grad():
        theirs = whole(input_ids=torch.from_numpy(KEPT)[new], attention_mask=mask)[0]
        ours = small(input_ids=new, attention_mask=mask)[0]
    torch.testing.assert_close(ours[mask == 1], theirs[mask == 1])
    assert small.config.vocab_size == 8
    assert small.config.num_hidden_layers == 2


def test_ids_and_layer_types_in_the_configuration_follow():
    config = transformers.AutoConfig.for_model("roberta", **SIZE, pad_token_id=7, bos_token_id=0, eos_token_id=5)
    made = cut_config(config, (1, 2), KEPT)
    assert (made.pad_token_id, made.bos_token_id, made.eos_token_id) == (4, 0, None)
    assert config.num_hidden_layers == 4  # the whole one's stays
    typed = transformers.AutoConfig.for_model(
        "qwen2", **SIZE, num_key_value_heads=2, layer_types=["full_attention", "sliding_attention"] * 2,
        use_sliding_window=True,
    )  # fmt: skip
    assert cut_config(typed, (0, 3), None).layer_types == ["full_attention", "sliding_attention"]


def test_networks_that_cannot_be_cut_so():
    sharing = built("albert", embedding_size=16)
    with pytest.raises(SourceError, match="they share weights") as caught:
        made_smaller(sharing, (0, 1))
    assert "take layers out" in caught.value.hint
    t5 = transformers.AutoConfig.for_model(
        "t5", vocab_size=30, d_model=16, d_kv=8, d_ff=32, num_layers=4, num_heads=2, num_decoder_layers=1
    )
    whole = transformers.T5EncoderModel(t5).eval()
    with pytest.raises(SourceError, match="do not stand alone") as caught:  # the first layer holds the positions
        made_smaller(whole, (1, 3))
    assert "keep the layer 0" in caught.value.hint
    assert made_smaller(whole, (0, 3), KEPT).get_input_embeddings().weight.shape == (8, 16)
    with pytest.raises(SourceError, match="hold the token 99"):
        made_smaller(whole, (0, 3), np.array([0, 99]))
    vit = transformers.ViTModel(transformers.ViTConfig(**{**SIZE, "image_size": 8, "patch_size": 4}))
    with pytest.raises(SourceError, match="no table of token embeddings"):
        take_weights(vit, vit, None, KEPT, "hf:vit")
