from sktransfer._tables import Table

ROWS = [
    {"name": "first", "score": 0.98765, "note": None},
    {"name": "2nd <b>", "score": 12, "note": "x"},
]


def test_prints_in_columns():
    assert repr(Table(ROWS)).split("\n") == [
        "name      score  note",
        "first    0.9877",
        "2nd <b>      12  x",
    ]


def test_html_is_escaped():
    page = Table(ROWS)._repr_html_()
    assert "<td>2nd &lt;b&gt;</td>" in page
    assert page.count("<tr>") == 3


def test_is_a_list_and_may_be_empty():
    assert Table(ROWS) == ROWS
    assert repr(Table()) == ""


WIDE = [
    {"backbone": name, "stage": stage}
    | {f"column_{i}": 0.123456 + i for i in range(20)}
    | {"error": error}
    for name, stage, error in [
        ("tiny", "layer4", None),
        ("tiny", "pool", None),
        ("squeezenet1_0, squeezenet1_0_imagenet.safetensors", "pool", "no " * 99),
        ("x" * 50, "pool", "y" * 99),
    ]
]


def words_of(text):
    return "".join(text.split())


def test_wide_tables_fit_a_terminal():
    table = Table(WIDE)
    text = repr(table)
    assert max(map(len, text.split("\n"))) <= 80
    blocks = text.split("\n\n")
    for block in blocks:
        assert block.split()[:2] == ["backbone", "stage"]
        assert "tiny      " in block
        assert "layer4" in block
    names = [name for block in blocks for name in block.split("\n")[0].split()[2:]]
    assert names == table.columns[2:]
    for i in range(20):
        assert text.count(f" {0.123456 + i:.4g}") >= len(WIDE)
    assert text.count("no") == 99
    assert text.count("y") - text.count("tiny") - text.count("layer") == 99
    (last,) = (block for block in blocks if "error" in block)
    assert len(last.split("\n")) < 20


def test_columns_are_repeated_that_tell_the_rows_apart():
    for rows, n_keys in ((WIDE, 2), (WIDE[1:], 1), ([WIDE[0], WIDE[0]], 1)):
        heads = [block.split("\n")[0] for block in repr(Table(rows)).split("\n\n")]
        assert len(heads) > 2
        keys = [head.split()[:2] == ["backbone", "stage"] for head in heads[1:]]
        assert all(keys) == (n_keys == 2)
        assert any(keys) == (n_keys == 2)
        assert all(head.startswith("backbone") for head in heads)


def test_long_texts_are_in_full_in_lines():
    table = Table([{"a": "first", "b": "one two " * 30}, {"a": "2nd", "b": "x"}])
    lines = repr(table).split("\n")
    assert max(map(len, lines)) <= 80
    assert lines[-1] == "2nd    x"
    assert words_of(" ".join(lines[1:-1])) == "first" + "onetwo" * 30
