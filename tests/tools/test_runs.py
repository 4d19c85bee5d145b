"""What is read of MLflow's runs."""

from tools.runs import table_of


def test_classes_are_text() -> None:
    text = "index,label,predicted,NA,01,1\n0,NA,NA,0.5,0.2,0.3\n1,01,1,0.5,0.2,0.3\n2,1,1.0,0.5,0.2,0.3\n"
    table = table_of(text)
    assert table["label"].tolist() == ["NA", "01", "1"]
    assert (table["label"] == table["predicted"]).tolist() == [True, False, False]
    assert table[["NA", "01", "1"]].to_numpy().tolist() == [[0.5, 0.2, 0.3]] * 3
