import copy
import json
import logging
import pathlib
import pickle
import shutil
import sys
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sktransfer import (
    Backbone,
    FineTuneClassifier,
    PretrainedFeatureExtractor,
    WeightsMismatchError,
    list_backbones,
    load,
    load_backbone,
    model_card,
    save,
    split_stages,
)
from sktransfer.backbones._load import kind_of, weights_licence

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *"abcdefghijklmnopqrstuvwxyz"]
TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": len(WORDS),
    "max_position_embeddings": 80,
}
IMAGE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "image_size": 32,
    "patch_size": 8,
}
RECIPE = {
    "image_processor_type": "ViTImageProcessor",
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "size": {"height": 32, "width": 32},
}


def tokenizer(**options):
    words = {word: number for number, word in enumerate(WORDS)}
    own = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "[UNK]"))
    own.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    own.post_processor = tokenizers.processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=own, **special, **options
    )


def saved(folder, model, **options):
    """The folder of a model, without a word of transformers."""
    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    model.save_pretrained(folder)
    transformers.logging.set_verbosity(level)
    if model.main_input_name == "input_ids":
        tokenizer(**options).save_pretrained(folder)
    elif not hasattr(model.config, "conv_dim"):
        (folder / "preprocessor_config.json").write_text(json.dumps(RECIPE))
    return folder


@pytest.fixture(scope="module")
def text_model():
    torch.manual_seed(0)
    return transformers.BertModel(transformers.BertConfig(**TEXT)).eval()


@pytest.fixture
def text_folder(text_model, tmp_path):
    return saved(tmp_path / "text", text_model)


@pytest.fixture
def image_folder(tmp_path):
    torch.manual_seed(0)
    model = transformers.ViTModel(transformers.ViTConfig(**IMAGE))
    return saved(tmp_path / "image", model)


def edited(folder, file="config.json", **changes):
    path = folder / file
    content = json.loads(path.read_text()) if path.exists() else {}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**content, **changes}))
    return folder


def test_texts_are_embedded_as_by_the_model_itself(text_folder, text_model):
    texts = ["a b c", "", "z " * 30]
    extractor = PretrainedFeatureExtractor(f"hf/{text_folder}", cache=None)
    embeddings = extractor.fit_transform(texts)
    for text, ours in zip(texts, embeddings, strict=True):
        inputs = tokenizer()(text, return_tensors="pt")
        with torch.no_grad():
            theirs = text_model(**inputs).last_hidden_state.mean(1)[0].numpy()
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    backbone = load_backbone(f"hf/{text_folder}")
    assert backbone.stage_names == ("stem", "layer1", "layer2", "layer3", "pool")
    assert backbone.reader.kind == kind_of(f"hf/{text_folder}") == "text"


def test_a_folder_may_be_relative_or_in_the_home_folder(text_folder, monkeypatch):
    digest = load_backbone(f"hf/{text_folder}").digest
    monkeypatch.chdir(text_folder.parent)
    assert load_backbone("hf/text").digest == digest
    monkeypatch.setenv("HOME", str(text_folder.parent))
    assert load_backbone("hf/~/text").digest == digest


def test_a_module_is_what_its_name_is(text_folder):
    named = load_backbone(f"hf/{text_folder}")
    for auto in ("AutoModel", "AutoModelForSequenceClassification"):
        logging.disable()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = getattr(transformers, auto).from_pretrained(text_folder)
        logging.disable(logging.NOTSET)
        given = load_backbone(model)
        assert given.digest == named.digest
        assert given.cause(5) == named.cause(5)
        assert given.reader == named.reader
        assert kind_of(model) == "text"


def test_image_modules_lose_their_classifier(image_folder):
    named = load_backbone(f"hf/{image_folder}")
    assert named.reader.kind == kind_of(f"hf/{image_folder}") == "image"
    logging.disable()
    model = transformers.ViTForImageClassification.from_pretrained(image_folder)
    logging.disable(logging.NOTSET)
    given = load_backbone(model)
    assert (given.digest, given.reader) == (named.digest, named.reader)
    assert given.n_features == 32
    # Without a folder, images are read at the size of the network.
    made = transformers.ViTForImageClassification(transformers.ViTConfig(**IMAGE))
    assert load_backbone(made).reader.size == 32


def test_the_vision_tower_of_two_is_an_encoder():
    parts = {
        "vision_config": {**IMAGE, "projection_dim": 16},
        "text_config": {**TEXT, "projection_dim": 16},
    }
    model = transformers.CLIPModel(transformers.CLIPConfig(**parts)).eval()
    backbone = load_backbone(model)
    assert kind_of(model) == backbone.reader.kind == "image"
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        pooled = model.vision_model(x).pooler_output
        assert torch.equal(split_stages(model)(x), pooled)


def test_encoder_decoders_give_their_encoder(tmp_path):
    config = transformers.BartConfig(
        d_model=32, encoder_layers=2, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48,
        vocab_size=len(WORDS), max_position_embeddings=80, pad_token_id=0,
    )  # fmt: skip
    model = transformers.BartForConditionalGeneration(config).eval()
    folder = saved(tmp_path / "bart", model)
    # A file of the encoder alone is enough.
    state = load_file(folder / "model.safetensors")
    kept = {k: v for k, v in state.items() if ".encoder." in k or ".shared." in k}
    assert len(kept) < len(state)
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    backbone = load_backbone(f"hf/{folder}")
    assert backbone.stage_names == ("stem", "layer1", "layer2", "pool")
    x = torch.tensor([[1, 5, 6, 2]])
    with torch.no_grad():
        expected = model.model.encoder(x).last_hidden_state.mean(1)
        torch.testing.assert_close(backbone.stages(x), expected)


def test_random_weights_are_those_of_the_seed(text_folder):
    name = f"hf/{text_folder}"
    (text_folder / "model.safetensors").unlink()
    state = torch.random.get_rng_state()
    loaded = [load_backbone(name, weights=None, random_state=s) for s in (0, 0, 1)]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert loaded[0].digest == loaded[1].digest != loaded[2].digest


def test_weights_may_be_a_file(text_folder, tmp_path):
    name, file = f"hf/{text_folder}", tmp_path / "own.safetensors"
    expected = load_backbone(name)
    shutil.move(text_folder / "model.safetensors", file)
    assert load_backbone(name, weights=file).digest == expected.digest
    state = load_file(file)
    # As a model with a head is saved.
    other = {f"bert.{key}": value for key, value in state.items()}
    save_file({**other, "classifier.weight": torch.ones(2, 32)}, file)
    assert load_backbone(name, weights=file).digest == expected.digest
    del other["bert.encoder.layer.1.output.dense.weight"]
    save_file(other, file)
    with pytest.raises(WeightsMismatchError, match=r"lack encoder\.layer\.1\.output"):
        load_backbone(name, weights=file)
    with pytest.raises(ValueError, match="Invalid weights='IMAGENET1K_V1'"):
        load_backbone(name, weights="IMAGENET1K_V1")


def test_weights_may_be_in_several_files(text_model, tmp_path):
    one = load_backbone(f"hf/{saved(tmp_path / 'one', text_model)}")
    text_model.save_pretrained(tmp_path / "many", max_shard_size="40KB")
    tokenizer().save_pretrained(tmp_path / "many")
    files = sorted((tmp_path / "many").glob("model-*.safetensors"))
    assert len(files) > 1
    assert load_backbone(f"hf/{tmp_path / 'many'}").digest == one.digest
    files[0].unlink()
    with pytest.raises(ValueError, match="expected the weights as model.safetensors"):
        load_backbone(f"hf/{tmp_path / 'many'}")


def test_a_file_that_lacks_a_layer_is_refused(text_folder):
    file = text_folder / "model.safetensors"
    state = load_file(file)
    lacking = {k: v for k, v in state.items() if ".layer.1." not in k}
    save_file(lacking, file, {"format": "pt"})
    with pytest.raises(
        WeightsMismatchError,
        match=r"lack encoder\.layer\.1\.\S+, .* and 13 more.*random.*Nothing was load",
    ):
        load_backbone(f"hf/{text_folder}")
    # What is not used may be missing.
    kept = {k: v for k, v in state.items() if "pooler" not in k}
    assert len(kept) < len(state)
    save_file(kept, file, {"format": "pt"})
    load_backbone(f"hf/{text_folder}")


def test_a_file_with_more_layers_than_the_config_is_refused(text_folder):
    edited(text_folder, num_hidden_layers=1)
    message = r"not in its config.json: encoder\.layer\.1\.\S+, .* and \d+ more.*Nothin"
    with pytest.raises(WeightsMismatchError, match=message):
        load_backbone(f"hf/{text_folder}")
    # Without these weights, the size is a choice.
    assert load_backbone(f"hf/{text_folder}", weights=None).n_features


def test_weights_of_a_head_are_no_further_layers(text_model, tmp_path):
    whole = transformers.BertForMaskedLM(text_model.config)
    folder = saved(tmp_path / "masked", whole)
    assert load_backbone(f"hf/{folder}").n_features
    edited(folder, num_hidden_layers=1)
    with pytest.raises(WeightsMismatchError, match=r"bert\.encoder\.layer\.1\."):
        load_backbone(f"hf/{folder}")


def test_a_file_of_another_shape_is_refused(text_folder):
    edited(text_folder, intermediate_size=40)
    message = r"lack encoder.layer.0.intermediate.* and \d+ more, or have another shape"
    with pytest.raises(WeightsMismatchError, match=message):
        load_backbone(f"hf/{text_folder}")


def test_damaged_files_are_named(text_folder):
    weights, tokenizer = (
        text_folder / name for name in ("model.safetensors", "tokenizer.json")
    )
    whole, tokens = weights.read_bytes(), tokenizer.read_bytes()
    for damaged in [whole[:-9], b"version https://git-lfs.github.com/spec/v1"]:
        weights.write_bytes(damaged)
        with pytest.raises(WeightsMismatchError, match="loaded from '.*again"):
            load_backbone(f"hf/{text_folder}")
    weights.write_bytes(whole)
    tokenizer.write_bytes(tokens[:-9])
    with pytest.raises(ValueError, match="The tokenizer in '.*' cannot be read"):
        load_backbone(f"hf/{text_folder}")
    tokenizer.write_bytes(tokens)
    load_backbone(f"hf/{text_folder}")


def test_weights_of_nan_are_refused(text_model):
    model = copy.deepcopy(text_model)
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match="computes NaN .* weights must be damaged"):
        split_stages(model)


def test_files_that_may_hold_code_are_refused(text_folder, tmp_path):
    torch.save({}, text_folder / "pytorch_model.bin")
    load_backbone(f"hf/{text_folder}")
    (text_folder / "model.safetensors").rename(tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"only pytorch_model\.bin.*may hold code"):
        load_backbone(f"hf/{text_folder}")


def test_code_in_the_folder_is_refused(text_folder):
    ran = text_folder / "ran"
    (text_folder / "own.py").write_text(f"open({str(ran)!r}, 'w')")
    edited(text_folder, auto_map={"AutoModel": "own.Model"})
    for weights in ("default", None):
        with pytest.raises(ValueError, match="auto_map.*never run; nothing was"):
            load_backbone(f"hf/{text_folder}", weights=weights)
    assert not ran.exists()


def test_a_folder_that_is_none_of_a_model_is_refused(tmp_path, text_folder):
    with pytest.raises(FileNotFoundError, match="there is no config.json"):
        load_backbone(f"hf/{tmp_path}")
    edited(text_folder, model_type="unheard-of")
    with pytest.raises(ValueError, match="transformers cannot read the config.json"):
        load_backbone(f"hf/{text_folder}")


def test_texts_need_a_tokenizer(text_folder, text_model):
    for file in text_folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ValueError, match="expected tokenizer.json in the folder"):
        load_backbone(f"hf/{text_folder}")
    made = transformers.BertModel(transformers.BertConfig(**TEXT))
    with pytest.raises(ValueError, match=r"'hf/<folder>', or a reader: Backbone\(spl"):
        load_backbone(made)
    reader = load_backbone(f"hf/{saved(text_folder, text_model)}").reader
    assert Backbone(split_stages(made), reader).n_features == 32


def test_sounds_need_the_recipe_of_their_waveform():
    config = transformers.Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=20,
        intermediate_size=64, conv_dim=(16,) * 7, num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    model = transformers.Wav2Vec2Model(config)
    assert kind_of(model) == "sound"
    with pytest.raises(ValueError, match="expected preprocessor_config.json"):
        load_backbone(model)


def test_sounds_are_embedded_as_by_the_model_itself(tmp_path):
    pytest.importorskip("soundfile")
    config = transformers.Wav2Vec2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=20,
        intermediate_size=256, conv_dim=(16,) * 7, num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )  # fmt: skip
    model = transformers.Wav2Vec2ForSequenceClassification(config).eval()
    folder = saved(tmp_path / "sound", model)
    recipe = transformers.Wav2Vec2FeatureExtractor()
    recipe.save_pretrained(folder)
    # transformers itself fills it with random numbers, and does not use it.
    state = load_file(folder / "model.safetensors")
    state = {k: v for k, v in state.items() if "masked_spec_embed" not in k}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    waves = [np.sin(np.arange(n) / 9) for n in (4000, 9000)]
    extractor = PretrainedFeatureExtractor(
        f"hf/{folder}", sampling_rate=16_000, cache=None
    )
    for wave, ours in zip(waves, extractor.fit_transform(waves), strict=True):
        inputs = recipe(wave, sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad():
            theirs = model.wav2vec2(**inputs).last_hidden_state.mean(1)[0]
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-5)
    backbone = load_backbone(f"hf/{folder}")
    assert backbone.reader.kind == kind_of(f"hf/{folder}") == "sound"
    tuned = backbone.tuned(0, backbone.stages)
    assert pickle.loads(pickle.dumps(tuned)).digest == tuned.digest


@pytest.mark.parametrize(("own", "length"), [({}, 80), ({"model_max_length": 40}, 40)])
def test_the_length_of_texts_is_that_of_the_tokenizer(
    own, length, text_model, tmp_path
):
    folder = saved(tmp_path / "text", text_model, **own)
    assert load_backbone(f"hf/{folder}").reader.max_length == length


def test_the_length_that_sentence_transformers_has(text_folder):
    edited(text_folder, "sentence_bert_config.json", max_seq_length=30)
    backbone = load_backbone(f"hf/{text_folder}")
    assert backbone.reader.max_length == 30
    assert load_backbone(f"hf/{text_folder}", max_length=80).reader.max_length == 80
    with pytest.raises(ValueError, match="Invalid max_length=81"):
        load_backbone(f"hf/{text_folder}", max_length=81)


@pytest.mark.parametrize(("family", "longest"), [("Roberta", 78), ("Qwen3", 512)])
def test_the_length_that_positions_are_left_for(family, longest, tmp_path):
    # RoBERTa counts positions from the one after padding; others have no limit here.
    config = getattr(transformers, f"{family}Config")
    own = {**TEXT, "num_key_value_heads": 2, "head_dim": 8}
    own["max_position_embeddings"] = 80 if family == "Roberta" else 2048
    model = transformers.AutoModel.from_config(config(**own))
    reader = load_backbone(f"hf/{saved(tmp_path / 'm', model)}").reader
    assert reader.max_length == longest


@pytest.mark.parametrize(
    ("mode", "token"), [("pooling_mode_cls_token", 0), ("pooling_mode_lasttoken", -1)]
)
def test_the_pooling_that_sentence_transformers_has(mode, token, text_folder):
    edited(text_folder, "1_Pooling/config.json", **{mode: True})
    stages = load_backbone(f"hf/{text_folder}").stages
    x = torch.tensor([[1, 5, 6, 2], [1, 2, -1, -1]])
    with torch.no_grad():
        state, pooled = stages.pool.tail(stages[:-1](x)), stages(x)
    assert torch.equal(pooled[0], state[0, token])
    assert torch.equal(pooled[1], state[1, 0 if token == 0 else 1])


@pytest.mark.parametrize("what", ["default", None])
def test_loading_says_nothing_and_leaves_the_settings(what, text_folder, capfd, caplog):
    logging_of = transformers.logging
    before = logging_of.get_verbosity(), logging_of.is_progress_bar_enabled()
    load_backbone(f"hf/{text_folder}", weights=what, random_state=3)
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert (logging_of.get_verbosity(), logging_of.is_progress_bar_enabled()) == before


def test_without_transformers_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install\s+'sktransfer\[hf\]'"):
        load_backbone("hf/me/small")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert list_backbones("hf/*") == []
    assert kind_of("hf/me/small") == "image"


@pytest.fixture
def hub(text_folder, tmp_path, monkeypatch):
    """The hub's cache with one model, and no network."""
    import huggingface_hub

    cache = tmp_path / "hub"
    snapshot = cache / "models--me--small" / "snapshots" / "0123abcd"
    snapshot.parent.mkdir(parents=True)
    text_folder.rename(snapshot)
    (cache / "models--me--small" / "refs").mkdir()
    (cache / "models--me--small" / "refs" / "main").write_text("0123abcd")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    asked = []

    def download(name, **options):
        asked.append((name, options["revision"]))
        raise huggingface_hub.errors.LocalEntryNotFoundError("No network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return snapshot, asked


def test_models_in_the_cache_of_the_hub_need_no_network(hub):
    snapshot, asked = hub
    expected = load_backbone(f"hf/{snapshot}").digest
    assert load_backbone("hf/me/small").digest == expected
    assert load_backbone("hf/me/small@0123abcd").digest == expected
    assert kind_of("hf/me/small") == "text"
    assert asked == []
    assert list_backbones("hf/*") == ["hf/me/small"]
    assert "hf/me/small" not in list_backbones("*")
    (snapshot / "model.safetensors").unlink()
    assert list_backbones("hf/*") == []


def test_files_and_cards_name_the_commit_the_licence_and_the_tokenizer(hub, tmp_path):
    snapshot, _ = hub
    (snapshot / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Small")
    texts, y = ["a b", "b c", "c a", "a"], [0, 1, 0, 1]
    model = FineTuneClassifier("hf/me/small", freeze="all", random_state=0)
    card = model_card(model.fit(texts, y))
    assert "Source: hf/me/small@0123abcd, weights default" in card
    assert "licence: apache-2.0" in card
    sha = model.backbone_.reader.tokenizer_sha256
    assert f"its tokenizer begins with `{sha[:16]}`" in card
    save(model, tmp_path / "model")
    loaded = load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict(texts), model.predict(texts))
    # Another commit may become the main one without any change to the file.
    assert loaded.source_.origin.name == "hf/me/small@0123abcd"
    assert weights_licence(f"hf/{snapshot}", "default") == "apache-2.0"
    (snapshot / "README.md").write_text("# license: mine")
    assert weights_licence("hf/me/small", "default") is None
    assert weights_licence("hf/me/small", None) is None


@pytest.fixture
def on_a_relative_folder(text_folder, tmp_path, monkeypatch):
    """A file of an extractor on "hf/text", and what it embeds; its model is there."""
    monkeypatch.chdir(tmp_path)
    extractor = PretrainedFeatureExtractor("hf/text", cache=None)
    embeddings = extractor.fit_transform(["a b", "c"])
    save(extractor, tmp_path / "model")
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    return tmp_path / "model", embeddings


def test_a_file_finds_its_folder_from_another_working_folder(on_a_relative_folder):
    path, embeddings = on_a_relative_folder
    loaded = load(path)
    np.testing.assert_array_equal(loaded.transform(["a b", "c"]), embeddings)


def test_a_file_finds_its_folder_beside_itself_first(
    on_a_relative_folder, text_model, tmp_path, monkeypatch
):
    path, embeddings = on_a_relative_folder
    moved = tmp_path / "other" / "new"
    shutil.copytree(tmp_path / "text", moved / "text")
    shutil.copy(path, moved / "model")
    monkeypatch.chdir(moved)
    for _ in range(2):
        loaded = load("model")
        assert loaded._summary().backbone.origin.name == f"hf/{moved / 'text'}"
        np.testing.assert_array_equal(loaded.transform(["a b", "c"]), embeddings)
        shutil.rmtree(tmp_path / "text", ignore_errors=True)
    torch.manual_seed(1)
    saved(moved / "text", type(text_model)(text_model.config))
    with pytest.raises(WeightsMismatchError, match="Nothing was loaded"):
        load("model")


@pytest.mark.parametrize("what", ["gone", "another folder of that name"])
def test_a_file_says_where_a_missing_folder_may_be_copied(on_a_relative_folder, what):
    path, _ = on_a_relative_folder
    folder, copy = path.parent / "text", path.parent / "new" / "text"
    copy.parent.mkdir()
    path = path.rename(copy.parent / "model")
    folder.rename(copy.parent / "renamed")
    if what != "gone":
        copy.mkdir()
    with pytest.raises(FileNotFoundError) as caught:
        load(path)
    assert str(caught.value) == (
        f"The saved estimator refers to the folder {str(folder)!r}, which does not "
        f"exist. Copy it to {str(copy)!r}, where it is looked for first."
    )


@pytest.mark.parametrize("name", ["me/other", "me/small@v2", "other"])
def test_models_out_of_reach(name, hub):
    model, _, revision = name.partition("@")
    with pytest.raises(OSError, match="No network") as caught:
        load_backbone(f"hf/{name}")
    for part in (f"https://huggingface.co/{model} ", "HF_HOME", "hf/<folder>"):
        assert part in str(caught.value)
    assert hub[1] == [(model, revision or None)]
    assert kind_of(f"hf/{name}") == "image"


@pytest.mark.parametrize("given", [str, pathlib.Path, lambda path: path.name])
def test_the_folder_of_a_model_without_its_prefix_is_noticed(
    given, text_folder, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    backbone = given(text_folder)
    with pytest.raises(ValueError, match="'hf/<folder>'") as caught:
        PretrainedFeatureExtractor(backbone).fit(["a b", "c"])
    assert f"Did you mean 'hf/{backbone}'?" in str(caught.value)
    load_backbone(f"hf/{backbone}")
    (text_folder / "config.json").unlink()
    with pytest.raises(ValueError, match="'hf/<folder>'") as caught:
        load_backbone(backbone)
    assert "'hf/text'" not in str(caught.value)
    assert f"'hf/{backbone}'" not in str(caught.value)


def test_what_is_no_id_is_taken_for_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        load_backbone(f"hf/{tmp_path / 'none'}")


@pytest.mark.slow
def test_an_estimator_with_processes(text_folder):
    from sktransfer import FineTuneClassifier

    texts, y = [*"abcdefgh"], [0, 1] * 4
    model = FineTuneClassifier(
        f"hf/{text_folder}", freeze="layer2", max_epochs=1, random_state=0
    ).fit(texts, y)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(
        again.predict_proba(texts), model.predict_proba(texts)
    )
    extractor = PretrainedFeatureExtractor(f"hf/{text_folder}", cache=None, n_jobs=2)
    alone = extractor.set_params(n_jobs=None).transform(texts)
    np.testing.assert_array_equal(
        extractor.set_params(n_jobs=2).transform(texts), alone
    )


def test_real_weights_of_sentences(real_data):
    folder = real_data / "weights" / "hf" / "all-MiniLM-L6-v2"
    backbone = load_backbone(f"hf/{folder}")
    assert (len(backbone.stages), backbone.reader.max_length) == (8, 256)
    logging.disable()
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32)
    words = transformers.AutoTokenizer.from_pretrained(folder)
    logging.disable(logging.NOTSET)
    texts = ["A film that I would see again.", "", "Dull. " * 300]
    ours = PretrainedFeatureExtractor(f"hf/{folder}", cache=None).fit_transform(
        texts[:2]
    )
    for text, row in zip(texts, ours, strict=False):
        inputs = words(text, return_tensors="pt")
        with torch.no_grad():
            theirs = model(**inputs).last_hidden_state.mean(1)[0].numpy()
        np.testing.assert_allclose(row, theirs, atol=1e-6)


def test_real_weights_of_speech(real_data):
    folder = real_data / "weights" / "hf" / "whisper-tiny.en-encoder"
    backbone = load_backbone(f"hf/{folder}", max_length=1)
    assert backbone.stage_names == ("stem", *(f"layer{i}" for i in range(1, 5)), "pool")
    assert backbone.shapes[0] == (50, 384)
