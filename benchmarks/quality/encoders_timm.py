"""Are the stages of timm's networks, in a row, the networks that they were made of?

    python -m benchmarks.quality.encoders_timm

One small network of each of timm's model files, with random parameters. No network is
needed, and no data.
"""

import copy
import sys
import warnings
from collections.abc import Iterator

import timm
import torch

from sktransfer import load_backbone

NAMES = """
beit_base_patch16_224 test_byobnet cait_xxs24_224 coat_tiny convit_tiny convmixer_768_32
convnext_zepto_rms cpubone_nano crossvit_tiny_240 csatv2 cs3darknet_focus_s cspnext_tiny
davit_tiny deit_tiny_distilled_patch16_224 densenet121 dla46x_c dpn48b
edgenext_xx_small efficientformer_l1 efficientformerv2_s0 mobilenetv2_035
efficientvim_m1 efficientvit_b0 efficientvit_m0 vit_tiny_patch16_dinov3_qkvb
fasternet_t0 fastvit_t8 focalnet_tiny_srf gcvit_xxtiny ghostnet_050 hgnetv2_b0
hiera_tiny_224 sam2_hiera_tiny hrnet_w18_small iformer_t inception_next_atto
inception_resnet_v2 inception_v3 inception_v4 lcnetv2_small levit_128s lowformer_b0
test_mambaout test_maxvit poolformerv2_s12 gmlp_ti16_224 mobilenetv3_small_050
mobilenetv5_base mvitv2_tiny naflexvit_base_patch16_parfac_gap nasnetalarge nest_tiny
nextvit_small test_nfnet pit_ti_224 pnasnet5large pvt_v2_b0 rdnet_tiny regnetx_002
repghostnet_050 repvit_m1 resnet10t resnetv2_18 rexnet_100 selecsls42 legacy_seresnet18
sequencer2d_s shvit_s1 starnet_s050 swiftformer_xs swin_tiny_patch4_window7_224
swinv2_tiny_window16_256 swinv2_cr_tiny_224 tiny_vit_5m_224 tnt_s_legacy_patch16_224
tresnet_m twins_svt_small vgg11 visformer_tiny test_vit vit_tiny_r_s16_p8_224
vit_srelpos_small_patch16_224 samvit_base_patch16_224 volo_d1_224 ese_vovnet19b_slim_dw
legacy_xception xception41p xcit_nano_12_p8_224 test_resnet skresnet18 resnest14d
res2net50_26w_4s hardcorenas_a
"""


def main():
    count, cut = 0, 0
    for row in rows():
        count, cut = count + 1, cut + (row["stages"] > 1)
        exact = row["gap"] <= 1e-6 and row["cuts_equal"] and row["parameters_once"]
        print(
            f"{row['model']:38}{row['stages']:4}{row['gap']:9.0e}  "
            f"{'exact' if exact else 'WRONG'}  {row['note']}",
            flush=True,
        )
    print(f"{count} networks, of which {cut} are cut")


def rows(names=None) -> Iterator[dict]:
    """Compare the stages of each network with timm's own forward pass."""
    for name in names or NAMES.split():
        if timm.is_model(name):
            yield row(name)


def row(name: str) -> dict:
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    shake(model)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        backbone = load_backbone(model)
    whole = copy.deepcopy(model)
    whole.reset_classifier(0)
    x = torch.randn(1, 3, backbone.reader.crop, backbone.reader.crop)
    stages = backbone.stages
    with torch.inference_mode():
        expected, states = whole(x), [x]
        for stage in stages:
            states.append(stage(states[-1]))
        copies = [state.clone() for state in states]
        gap = (states[-1] - expected).abs().max() / expected.abs().max()
        # Every cut: the suffix gives the same, and leaves what it is given as it is.
        equal = all(
            torch.equal(stages[k:](state), states[-1]) and torch.equal(state, before)
            for k, (state, before) in enumerate(zip(states, copies, strict=True))
        )
    texts = " ".join(str(warning.message) for warning in caught)
    return {
        "library": "timm",
        "model": name,
        "stages": len(stages),
        "gap": gap.item(),
        "cuts_equal": equal,
        "parameters_once": parameters_once(stages, whole),
        "note": texts.partition("one stage, 'all', as ")[2].partition(":")[0],
    }


def shake(model):
    """Give constants values: a scale of zero would hide what a block computes."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.min() == parameter.max():
                parameter.uniform_(0.5, 1)


def parameters_once(stages, whole) -> bool:
    def sizes(modules):
        return sorted(p.numel() for m in modules for p in m.parameters())

    return sizes(stages) == sizes([whole])


if __name__ == "__main__":
    sys.exit(main())
