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
