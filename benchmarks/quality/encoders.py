"""Are the stages of encoders, in a row, the networks that they were made of?

    python -m benchmarks.quality.encoders [FAMILY ...]

Small encoders of transformers with random parameters, then the networks of
`encoders_timm`. No network is needed, and no data. A row is wrong if the stages compute
another embedding than the model, if a cut changes a bit, or if a parameter that matters
is in no stage or in two. What is left in one stage, or refused, is not wrong. The
status is 1 if any row is.
"""

import argparse
import copy
import sys
import warnings
from collections.abc import Iterator

import torch
import transformers

from benchmarks.side_by_side import print_machine, print_table
from sktransfer import split_stages

LIMIT = 1e-6
BODY = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
ENDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TEXT = {**BODY, **ENDS, "vocab_size": 90, "max_position_embeddings": 200}
IMAGE = {**BODY, "image_size": 32, "patch_size": 8}
WAVE = {
    **BODY,
    "intermediate_size": 256,
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "vocab_size": 20,
}
SEQ2SEQ = {
    **ENDS,
    "d_model": 32,
    "encoder_layers": 3,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "vocab_size": 90,
    "max_position_embeddings": 200,
    "decoder_start_token_id": 1,
}
T5 = {**ENDS, "d_model": 32, "num_layers": 3, "num_heads": 4, "d_kv": 8, "d_ff": 64}
T5 |= {"vocab_size": 90, "decoder_start_token_id": 1}
HIERARCHY = {"image_size": 64, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 2, 1, 1]}
WINDOWS = {"image_size": 64, "embed_dim": 16, "depths": [1, 2], "num_heads": [2, 4]}
WINDOWS |= {"window_size": 4}
LLAMA = {**TEXT, "num_key_value_heads": 2, "head_dim": 8}
XLM = {**ENDS, "emb_dim": 32, "n_layers": 3, "n_heads": 4, "vocab_size": 90}

NAMES = """
Bert Roberta RobertaPreLayerNorm XLMRoberta XLMRobertaXL Camembert Electra Ernie
RemBert MobileBert MegatronBert BigBird Esm Data2VecText Splinter LayoutLM MPNet
Deberta DebertaV2 RoFormer Nystromformer ConvBert FNet Albert Luke Mra
Yoso MarkupLM Xmod NomicBert BertGeneration
"""
TEXTS = dict.fromkeys(NAMES.split(), TEXT)
TEXTS |= {
    "DistilBert": {**ENDS, "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 64},
    "ModernBert": {**TEXT, "cls_token_id": 1, "sep_token_id": 2, "local_attention": 16},
    "EuroBert": {**LLAMA, "mask_token_id": 3},
    "JinaEmbeddingsV3": TEXT,
    "IBert": TEXT,
    "SqueezeBert": {**TEXT, "embedding_size": 32},
    "Longformer": {**TEXT, "attention_window": 16},
    "XLNet": {**ENDS, "d_model": 32, "n_layer": 3, "n_head": 4, "d_inner": 64},
    "XLM": XLM,
    "Flaubert": XLM,
    "T5": T5,
    "MT5": T5,
    "UMT5": T5,
    "LongT5": T5,
    "Bart": SEQ2SEQ,
    "MBart": SEQ2SEQ,
    "Marian": SEQ2SEQ,
    "Pegasus": SEQ2SEQ,
    "M2M100": SEQ2SEQ,
    "Blenderbot": SEQ2SEQ,
    "GPT2": {**ENDS, "n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 90},
    "GPTNeoX": TEXT,
    "OPT": {**TEXT, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "Llama": LLAMA,
    "Mistral": {**LLAMA, "sliding_window": 16},
    "Qwen2": LLAMA,
    "Qwen3": LLAMA,
    "Gemma3Text": {**LLAMA, "sliding_window": 16, "query_pre_attn_scalar": 8},
}
NAMES = """
ViT DeiT Beit Data2VecVision Dinov2 Dinov2WithRegisters DINOv3ViT SiglipVision
Siglip2Vision CLIPVision ChineseCLIPVision IJepa ViTMSN ViTMAE Aimv2Vision Pixio
VitDet PixtralVision
"""
IMAGES = dict.fromkeys(NAMES.split(), IMAGE)
IMAGES |= {
    "Swin": WINDOWS,
    "Swinv2": WINDOWS,
    "MaskFormerSwin": WINDOWS,
    "FocalNet": {"image_size": 64, "embed_dim": 16, "depths": [1, 2]},
    "ConvNext": HIERARCHY,
    "ConvNextV2": HIERARCHY,
    "DINOv3ConvNext": HIERARCHY,
    "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2]},
    "RegNet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 2]},
    "Segformer": {**HIERARCHY, "num_attention_heads": [1, 2, 2, 4]},
    "PvtV2": {**HIERARCHY, "num_attention_heads": [1, 2, 2, 4]},
    "Yolos": {**IMAGE, "image_size": [32, 32]},
    "PoolFormer": {"image_size": 64, "hidden_sizes": [8, 16, 24, 32]},
    "MobileNetV1": {"image_size": 64, "depth_multiplier": 0.25},
    "MobileNetV2": {"image_size": 64, "depth_multiplier": 0.25},
    "MobileViT": {"image_size": 64},
    "MobileViTV2": {"image_size": 64},
    "EfficientNet": {"image_size": 64, "width_coefficient": 1.0, "hidden_dim": 1280},
    "Levit": {"image_size": 64, "hidden_sizes": [16, 24, 32]},
    "Cvt": {"image_size": 64, "embed_dim": [16, 32, 48], "num_heads": [1, 2, 4]},
    "Bit": {"embedding_size": 32, "hidden_sizes": [128, 256], "depths": [1, 1]},
    "Hiera": {"image_size": [64, 64], "embed_dim": 16, "num_heads": [1, 2, 4, 8]},
}
NAMES = """
Wav2Vec2 Hubert UniSpeech UniSpeechSat WavLM Data2VecAudio Wav2Vec2Conformer
"""
SOUNDS = dict.fromkeys(NAMES.split(), WAVE)
SPECTRA = {"num_mel_bins": 16, "max_source_positions": 20}
SOUNDS |= {
    "Wav2Vec2 (layer norm)": {**WAVE, "feat_extract_norm": "layer"},
    "Hubert (stable)": {
        **WAVE,
        "feat_extract_norm": "layer",
        "do_stable_layer_norm": True,
    },
    "Whisper": {**SEQ2SEQ, **SPECTRA},
    "AST": {**IMAGE, "num_mel_bins": 32, "max_length": 48},
}
ALL = {**TEXTS, **IMAGES, **SOUNDS}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", help="of transformers; default all")
    families = parser.parse_args().families
    print_machine()
    found = list(rows(families or None))
    if not families:
        found += rows_of_timm()
    head = ["model", "stages", "gap", "cuts equal", "parameters once", "note"]
    keys = [name.replace(" ", "_") for name in head]
    print_table(head, [[_shown(row[key]) for key in keys] for row in found])
    wrong = [row["model"] for row in found if is_wrong(row)]
    for library in dict.fromkeys(row["library"] for row in found):
        own = [row for row in found if row["library"] == library]
        cut = sum(row["stages"] > 1 for row in own)
        whole = sum(row["stages"] == 1 for row in own)
        refused = sum(row["stages"] == 0 for row in own)
        print(
            f"\n{library}: {len(own)} models, {cut} in stages, {whole} in one stage, "
            f"{refused} refused, {sum(map(is_wrong, own))} wrong"
        )
    print(f"\nWrong: {', '.join(wrong) or 'none'}")
    return int(bool(wrong))


def rows_of_timm() -> list[dict]:
    try:
        from benchmarks.quality import encoders_timm
    except ImportError as error:
        print(f"Without the networks of timm: {error}")
        return []
    return list(encoders_timm.rows())


def is_wrong(row: dict) -> bool:
    right = row["gap"] <= LIMIT and row["cuts_equal"] and row["parameters_once"]
    return bool(row["stages"]) and not right


def _shown(value) -> str:
    return f"{value:.0e}" if isinstance(value, float) else str(value)


def rows(families=None) -> Iterator[dict]:
    """Compare the stages of each encoder with its own forward pass."""
    for family in families or ALL:
        model = made(family)
        if model is not None:
            yield row(family, model)


def made(family: str):
    """Return a small model, or None where this version of transformers has none."""
    config = getattr(transformers, f"{family.split()[0]}Config", None)
    if config is None:
        return None
    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    model = transformers.AutoModel.from_config(config(**ALL[family])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # A scale of zero, or equal norms, would hide what is not computed.
            if parameter.is_floating_point():
                parameter += 0.02 * torch.randn_like(parameter)
    return model


def row(family: str, model) -> dict:
    """Return one line of the table."""
    found = {"library": "transformers", "model": family, "stages": 0, "gap": 0.0}
    found |= {"cuts_equal": True, "parameters_once": True, "note": ""}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            stages = split_stages(model)
        except ValueError as error:
            if "cannot be a backbone" not in str(error):
                raise
            return {**found, "note": str(error).partition(": ")[2]}
    texts = " ".join(str(warning.message) for warning in caught)
    found["note"] = texts.partition("cannot be split, as ")[2]
    found["stages"] = len(stages)
    for x in inputs(family):
        found["gap"] = max(found["gap"], gap(stages, model, x))
        found["cuts_equal"] &= cuts_equal(stages, x)
    found["parameters_once"] = parameters_once(stages, model, next(inputs(family)))
    return found


def inputs(family: str) -> Iterator[torch.Tensor]:
    """Make inputs as the stages take them: alone, and padded in a batch."""
    torch.manual_seed(1)
    if family in IMAGES:
        side = ALL[family].get("image_size", 64)
        side = side if isinstance(side, int) else side[0]
        # Without an own size, split_stages takes that of ImageNet.
        yield torch.randn(2, 3, side, side)
    elif family == "Whisper":
        yield torch.randn(2, 16, 40)
    elif family == "AST":
        yield torch.randn(2, 48, 32)
    elif family in SOUNDS:
        yield torch.randn(2, 6000)
        yield torch.randn(1, 9000)
    else:
        x = torch.randint(3, 90, (4, 150))
        for length in (150, 17, 1):
            yield x[:1, :length]
        for number, length in enumerate((150, 90, 8, 1)):
            x[number, length:] = -1
        yield x


def gap(stages, model, x) -> float:
    """Return the largest difference of embeddings, relative to the largest value."""
    with torch.inference_mode():
        ours, theirs = stages(x), embedding(stages, model, x)
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def embedding(stages, model, x):
    """Return what the model itself gives, each text alone."""
    encoder = model.get_encoder() if model.config.is_encoder_decoder else model
    if not x.is_floating_point():
        texts = [one[one >= 0][None] for one in x]
        return torch.cat([hidden(encoder(text)).mean(1) for text in texts])
    output = encoder(x)
    pool = getattr(stages, "pool", getattr(stages, "all", None))
    state = hidden(output)
    if state.dim() == 4:
        state = state.flatten(2).mean(2)
    else:
        state = state[:, 0] if pool.pooling == "first" else state.mean(1)
    return getattr(pool, "norm", torch.nn.Identity())(state)


def hidden(output):
    return getattr(output, "last_hidden_state", output[0])


def cuts_equal(stages, x) -> bool:
    """Whether each suffix gives the same, and leaves what it is given as it is."""
    with torch.inference_mode():
        states = [x]
        for stage in stages:
            states.append(stage(states[-1]))
        copies = copy.deepcopy(states)
        return all(
            torch.equal(stages[k:](state), states[-1])
            and torch.equal(state.nan_to_num(), before.nan_to_num())
            for k, (state, before) in enumerate(zip(states, copies, strict=True))
        )


def parameters_once(stages, model, x) -> bool:
    """Whether each parameter that has an effect is in one stage."""
    ids = [id(p) for stage in stages for p in {*stage.parameters()}]
    matter = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(
        embedding(stages, model, x).square().sum(), matter, allow_unused=True
    )
    used = {id(p) for p, g in zip(matter, found, strict=True) if g is not None}
    return len(ids) == len({*ids}) and used <= {*ids}


if __name__ == "__main__":
    sys.exit(main())
