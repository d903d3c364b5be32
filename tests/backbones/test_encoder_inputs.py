import json

import numpy as np
import pytest
import torch

from sktransfer import PretrainedFeatureExtractor, load_backbone, split_stages

transformers = pytest.importorskip("transformers")
WHISPER = {
    "num_mel_bins": 16,
    "d_model": 8,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "vocab_size": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 3,
}
AST = {
    "num_mel_bins": 16,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "patch_size": 4,
    "frequency_stride": 3,
    "time_stride": 3,
}


def whisper(positions):
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    torch.manual_seed(0)
    config = transformers.WhisperConfig(**WHISPER, max_source_positions=positions)
    return WhisperEncoder(config).eval()


def ast(frames):
    torch.manual_seed(0)
    model = transformers.ASTModel(transformers.ASTConfig(**AST, max_length=frames))
    # All positions of a new model are zero.
    torch.nn.init.normal_(model.embeddings.position_embeddings)
    return model.eval()


def outputs(stages, x):
    with torch.no_grad():
        return stages[:-1](x)


@torch.no_grad()
def test_whisper_takes_the_first_positions_of_a_shorter_window():
    whole, short = whisper(30), whisper(10)
    short.load_state_dict(
        whole.state_dict()
        | {"embed_positions.weight": whole.embed_positions.weight[:10]}
    )
    stages = split_stages(whole)
    assert [name for name, _ in stages.named_children()] == [
        "stem",
        "layer1",
        "layer2",
        "pool",
    ]
    for model, frames in ((whole, 60), (short, 20)):
        x = torch.randn(2, 16, frames)
        expected = model(x).last_hidden_state
        torch.testing.assert_close(
            stages[-1].tail(outputs(stages, x)), expected, atol=1e-6, rtol=0
        )


@torch.no_grad()
def test_ast_takes_the_first_positions_of_each_frequency():
    whole, short = ast(64), ast(34)
    state = whole.state_dict()
    name = "embeddings.position_embeddings"
    tokens, grid = state[name][:, :2], state[name][:, 2:].unflatten(1, (5, 21))
    cut = torch.cat([tokens, grid[:, :, :11].flatten(1, 2)], dim=1)
    short.load_state_dict(state | {name: cut})
    stages = split_stages(whole)
    assert len(stages) == 4
    for model, frames in ((whole, 64), (short, 34)):
        x = torch.randn(2, frames, 16)
        expected = model(x).last_hidden_state
        torch.testing.assert_close(
            stages[-1].tail(outputs(stages, x)), expected, atol=1e-6, rtol=0
        )


def saved(model, extractor, folder):
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(extractor))
    return f"hf/{folder}"


def test_a_short_window_is_set_by_max_length(tmp_path):
    extractor = {
        "feature_extractor_type": "WhisperFeatureExtractor",
        "feature_size": 16,
    }
    config = transformers.WhisperConfig(
        **WHISPER, decoder_layers=1, decoder_attention_heads=2, max_source_positions=50
    )
    name = saved(transformers.WhisperModel(config), extractor, tmp_path)
    backbone = load_backbone(name, max_length=0.2)
    assert backbone.shapes == [(10, 8)] * 3 + [(8,)]
    rng = np.random.default_rng(0)
    X = [(16000, rng.normal(size=n)) for n in (1000, 3000, 2000)]
    model = PretrainedFeatureExtractor(name, max_length=0.2, cache=None)
    Z = model.transform(X)
    np.testing.assert_array_equal([model.transform([x])[0] for x in X], Z)
    with pytest.raises(ValueError, match=r"max_length=2: .* from 0.02 to 1.0 seconds"):
        load_backbone(name, max_length=2)
