import pytest

from sktransfer.displays._drawing import fold, width_of


@pytest.mark.parametrize(
    "text",
    [
        "timm/swin_base_patch4_window12_384.ms_in22k_ft_in1k, layers.3",
        "Camponotus pennsylvanicus (black carpenter ant)",
        "Donaudampfschifffahrtselektrizitaetenhauptbetriebswerk",
        "a",
        "",
    ],
)
@pytest.mark.parametrize("points", [60, 150, 1000])
def test_lines_fit_and_hold_all_of_the_text(text, points):
    lines = fold(text, points, "small").split("\n")
    assert max(width_of(line, "small") for line in lines) <= points
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert (len(lines) == 1) == (width_of(text, "small") <= points)


def test_lines_end_where_words_and_parts_do():
    assert fold("black carpenter ant", width_of("black carpenter")).split("\n") == [
        "black carpenter",
        "ant",
    ]
    assert fold("resnet18_imagenet", width_of("resnet18_im")).split("\n") == [
        "resnet18_",
        "imagenet",
    ]
