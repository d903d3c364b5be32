import copy
import os
import pickle
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

from sktransfer import split_stages
from sktransfer.backbones._fingerprint import behaviour_digest

transformers = pytest.importorskip("transformers")

TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 90,
    "max_position_embeddings": 140,
}
IMAGE = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}
WAVE = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 20,
}
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
SEQ2SEQ = {
    "d_model": 32,
    "encoder_layers": 3,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "vocab_size": 90,
}
DISTIL = {"dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 48, "vocab_size": 90}
T5 = {"d_model": 32, "num_layers": 3, "num_heads": 4, "d_kv": 8, "d_ff": 48}
WHISPER = {**SEQ2SEQ, "max_source_positions": 20, "num_mel_bins": 8, **ENDS}
MODERN = {**TEXT, **ENDS, "cls_token_id": 1, "sep_token_id": 2, "local_attention": 8}
SPECTRA = {"max_length": 48, "num_mel_bins": 32, "decoder_start_token_id": 1}
TEXTS = {
    "Bert": TEXT,
    "Roberta": TEXT,
    "XLMRoberta": TEXT,
    "DistilBert": DISTIL,
    "Electra": {**TEXT, "embedding_size": 16},
    "ModernBert": MODERN,
    "BigBird": TEXT,
    "Qwen3": {**TEXT, "num_key_value_heads": 2, "head_dim": 8},
    "Bart": {**SEQ2SEQ, **ENDS, "max_position_embeddings": 140},
}
IMAGES = {
    "ViT": IMAGE,
    "DeiT": IMAGE,
    "Beit": IMAGE,
    "Dinov2": IMAGE,
    "DINOv3ViT": IMAGE,
    "SiglipVision": IMAGE,
    "CLIPVision": IMAGE,
    "Swin": {
        "image_size": 32,
        "embed_dim": 16,
        "depths": [1, 1],
        "num_heads": [2, 2],
        "window_size": 4,
    },
    "ConvNext": {"hidden_sizes": [8, 8, 8, 12], "depths": [1] * 4, "image_size": 32},
}
SOUNDS = {
    "Wav2Vec2": WAVE,
    "Hubert": {**WAVE, "feat_extract_norm": "layer", "do_stable_layer_norm": True},
    "Whisper": {**WHISPER, "decoder_start_token_id": 1},
    "AST": {**IMAGE, **SPECTRA},
}
# Layers that need what the state cannot carry, share their parameters, or are not all
# that the encoder does; and a stem that looks at padding.
WHOLE = {
    "T5": {**T5, "vocab_size": 90},
    "MPNet": TEXT,
    "DebertaV2": {**TEXT, "relative_attention": True, "pos_att_type": ["c2p"]},
    "Albert": {**TEXT, "embedding_size": 16},
    "FNet": TEXT,
    "WavLM": WAVE,
    "Wav2Vec2Conformer": WAVE,
    "MobileBert": TEXT,
    "Yolos": {**IMAGE, "image_size": [32, 32]},
}
ALL = {**TEXTS, **IMAGES, **SOUNDS, **WHOLE}


def make(family):
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**ALL[family])
    model = transformers.AutoModel.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Many begin as zeros or ones, which would hide that they are not used.
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def stages_of(model):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* is one stage, 'all'")
        return split_stages(model)


def samples(family, n=3):
    """Inputs, all of one length."""
    own = torch.Generator().manual_seed(1)
    if family in TEXTS or ALL[family].get("vocab_size") == 90 and family != "Whisper":
        return torch.randint(3, 90, (n, 30), generator=own)
    if family == "Whisper":
        return torch.randn(n, 8, 40, generator=own)
    if family == "AST":
        return torch.randn(n, 48, 32, generator=own)
    is_image = family in IMAGES or family == "Yolos"
    shape = (n, 3, 32, 32) if is_image else (n, 6000)
    return torch.randn(shape, generator=own)


def embedding(family, model, x):
    """What the model itself gives, pooled."""
    encoder = model.get_encoder() if model.config.is_encoder_decoder else model
    output = encoder(x)
    state = output.last_hidden_state
    if family == "CLIPVision":
        return output.pooler_output
    if family == "ConvNext":
        return output.pooler_output
    if family in {"ViT", "DeiT", "Beit", "Dinov2", "DINOv3ViT", "Yolos"}:
        return state[:, 0]
    return state.mean(1)


@pytest.mark.parametrize("family", ALL)
def test_stages_compute_what_the_encoder_does(family):
    model = make(family)
    stages, x = stages_of(model), samples(family)
    with torch.no_grad():
        ours = stages(x)
        theirs = embedding(family, model, x)
        given = x
        for stage in stages:
            before = given.clone()
            output = stage(given)
            torch.testing.assert_close(given, before, rtol=0, atol=0)
            given = output
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max()
    assert torch.equal(given, ours)


@pytest.mark.parametrize("family", ALL)
def test_each_parameter_is_in_one_stage(family):
    model = make(family)
    stages = stages_of(model)
    names = list(stages._modules)
    if family in WHOLE:
        assert names == ["all"]
    else:
        layers = [f"layer{number}" for number in range(1, len(names) - 1)]
        assert names == ["stem", *layers, "pool"]
        assert len(layers) >= 2
    ids = [id(p) for stage in stages for p in {*stage.parameters()}]
    assert len(ids) == len({*ids})
    # They are shared with the model, and all but those of poolers are in a stage.
    assert {*ids} <= {id(p) for p in model.parameters()}
    with torch.no_grad():
        for parameter in stages.parameters():
            before = stages(x := samples(family, 2))
            parameter += torch.randn_like(parameter)
            if not torch.equal(stages(x), before):
                break
        else:
            pytest.fail("no parameter has an effect")


@pytest.mark.parametrize("family", WHOLE)
def test_what_cannot_be_split_is_one_stage_with_a_warning(family):
    with pytest.warns(UserWarning, match="is one stage, 'all'.*cannot be split, as"):
        split_stages(make(family))


@pytest.mark.parametrize("family", [*TEXTS, "T5", "FNet", "MobileBert"])
def test_padding_does_not_matter(family):
    stages = stages_of(make(family))
    x = samples(family)
    x[1, 20:], x[2, 1:] = -1, -1
    with torch.no_grad():
        padded = stages(x)
        for row, length in enumerate((30, 20, 1)):
            alone = stages(x[row : row + 1, :length])
            gap = (alone[0] - padded[row]).abs().max()
            assert gap <= 1e-6 * padded.abs().max()
        if len(stages) > 1:
            state = stages[:-1](x)
            assert torch.equal(state[..., 0].isnan(), x < 0)


@pytest.mark.parametrize("family", ["Bert", "ModernBert", "Wav2Vec2"])
def test_a_mask_is_there_where_nothing_is_padded(family):
    # Without one, another kernel would run, and give other last bits.
    stages, masks = split_stages(make(family)), []
    for layer in stages[1:-1]:
        layer.layer.register_forward_pre_hook(
            lambda module, args, given: masks.append(given["attention_mask"]),
            with_kwargs=True,
        )
    stages(samples(family))
    assert len(masks) == 3
    assert all(isinstance(mask, torch.Tensor) for mask in masks)


@pytest.mark.parametrize("family", ["Bert", "ModernBert", "Qwen3", "Wav2Vec2"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_padding_has_no_gradient(family, attention):
    model = make(family)
    model.set_attn_implementation(attention)
    stages = split_stages(model).train()
    x = samples(family)
    # Tokens far from any other are outside of the window of a layer.
    x[1, 2 * x.shape[1] // 3 :] = -1 if family in TEXTS else torch.nan
    state = stages.stem(x).detach().requires_grad_()
    stages[1:](state).sum().backward()
    gradient = state.grad
    assert not gradient.isnan().any()
    assert (gradient[state.isnan()] == 0).all()
    assert (gradient[~state.isnan()] != 0).any()
    for parameter in stages[1:].parameters():
        assert parameter.grad is None or not parameter.grad.isnan().any()


@pytest.mark.parametrize("family", ["Bert", "ModernBert", "DINOv3ViT", "Whisper", "T5"])
def test_stages_are_copied_and_pickled_and_run_in_bfloat16(family):
    stages, x = stages_of(make(family)), samples(family)
    with torch.no_grad():
        expected = stages(x)
        for other in (copy.deepcopy(stages), pickle.loads(pickle.dumps(stages))):
            assert torch.equal(other(x), expected)
            assert [*map(behaviour_digest, other)] == [*map(behaviour_digest, stages)]
        with torch.autocast("cpu", torch.bfloat16):
            low = stages(x).float()
    assert 0 < (low - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize(
    ("family", "window"),
    [("ModernBert", {"local_attention": 90}), ("Mistral", {"sliding_window": 60})],
)
def test_windows_wider_than_the_texts_that_are_compared(family, window):
    own = {**MODERN, "num_key_value_heads": 2, "head_dim": 8, **window}
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**own)
    model = transformers.AutoModel.from_config(config).eval()
    x = torch.randint(3, 90, (1, 130))
    with torch.no_grad():
        theirs = model(x).last_hidden_state.mean(1)
        assert (split_stages(model)(x) - theirs).abs().max() < 1e-6
        for name in window:
            setattr(config, name, 1000)
        other = model(x).last_hidden_state.mean(1)
    assert (other - theirs).abs().max() > 1e-5


def test_splitting_leaves_the_model_as_it_was():
    model = make("Bert").train()
    names, config = [n for n, _ in model.named_modules()], model.config.to_dict()
    split_stages(model)
    assert model.training
    assert [n for n, _ in model.named_modules()] == names
    assert model.config.to_dict() == config


CODE = """
import transformers, torch
from sktransfer import split_stages
from sktransfer.backbones._fingerprint import behaviour_digest
config = transformers.BertConfig(**{})
model = transformers.BertModel(config)
print(*map(behaviour_digest, split_stages(model)))
"""


def test_digests_of_behaviour_are_equal_in_two_processes():
    code = CODE.format(TEXT)
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": "1"},
    )
    model = transformers.BertModel(transformers.BertConfig(**TEXT))
    assert ran.stdout.split() == [*map(behaviour_digest, split_stages(model))]


@pytest.mark.parametrize(
    "change",
    [{"num_attention_heads": 2}, {"hidden_act": "relu"}, {"layer_norm_eps": 1e-3}],
)
def test_digests_of_behaviour_tell_configurations(change):
    def digests(**config):
        model = transformers.BertModel(transformers.BertConfig(**{**TEXT, **config}))
        return {*map(behaviour_digest, split_stages(model)[1:-1])}

    assert digests().isdisjoint(digests(**change))


def test_digests_of_behaviour_tell_the_attention():
    models = [make("Bert"), make("Bert")]
    models[1].set_attn_implementation("eager")
    one, other = ({*map(behaviour_digest, split_stages(m)[1:-1])} for m in models)
    assert one.isdisjoint(other)


@pytest.mark.parametrize("family", ["ViT", "SiglipVision", "Dinov2", "DINOv3ViT"])
def test_images_of_another_size_have_positions(family):
    model = make(family)
    x = torch.randn(2, 3, 48, 48)
    options = {} if "D" in family[0] else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        state = model(x, **options).last_hidden_state
        stages = split_stages(model)
        assert torch.equal(stages.pool.tail(stages[:-1](x)), state)


def test_images_of_another_size_are_refused_where_layers_depend_on_it():
    stages = split_stages(make("Beit"))
    with pytest.raises(ValueError, match=r"takes a state of shape \(17, 32\), got"):
        stages(torch.randn(1, 3, 48, 48))


def test_shorter_spectrograms_have_the_first_positions():
    model, x = make("Whisper"), samples("Whisper")[..., :24]
    stages = split_stages(model)
    with torch.no_grad():
        ours = stages(x)
        encoder = copy.deepcopy(model.encoder)
        encoder.config.max_source_positions = 12
        weight = encoder.embed_positions.weight[:12]
        encoder.embed_positions = nn.Embedding.from_pretrained(weight)
        theirs = encoder(x).last_hidden_state.mean(1)
    assert torch.equal(ours, theirs)
    assert stages.stem(samples("Whisper")).shape == (3, 20, 32)


def test_shorter_spectrograms_keep_the_frequency_of_a_position():
    model, x = make("AST"), samples("AST")[:, :28]
    stages = split_stages(model)
    config = transformers.ASTConfig(**{**ALL["AST"], "max_length": 28})
    other = transformers.ASTModel(config).eval()
    state = model.state_dict()
    name = "embeddings.position_embeddings"
    rows, columns = model.embeddings.get_shape(model.config)
    _, fewer = other.embeddings.get_shape(config)
    grid = state[name][:, 2:].reshape(1, rows, columns, 32)[:, :, :fewer]
    state[name] = torch.cat([state[name][:, :2], grid.reshape(1, -1, 32)], dim=1)
    other.load_state_dict(state)
    assert fewer < columns
    with torch.no_grad():
        assert torch.equal(stages(x), other(x).last_hidden_state.mean(1))


def test_a_model_of_random_results_is_refused():
    config = transformers.ViTMAEConfig(**IMAGE)
    with pytest.raises(ValueError, match="another result each time"):
        split_stages(transformers.ViTMAEModel(config))


def test_a_model_of_several_inputs_is_refused():
    config = transformers.Siglip2VisionConfig(hidden_size=32, num_attention_heads=4)
    model = transformers.Siglip2VisionModel(config)
    with pytest.raises(ValueError, match="cannot be run on .* alone .*Nothing was"):
        split_stages(model)


def test_layers_that_are_not_what_they_were_are_not_cut():
    model = make("Bert")

    def shifted(module, args, output):
        output.last_hidden_state = output.last_hidden_state + 1e-5
        return output

    # A hook is a part of the whole, but not of any layer.
    model.encoder.register_forward_hook(shifted)
    with pytest.warns(UserWarning, match="cannot be split, as what follows its last"):
        assert len(split_stages(model)) == 1
