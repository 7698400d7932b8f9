import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

import mechrefusal as mr
from mechrefusal import tables
from mechrefusal.errors import MechrefusalError

EXAMPLES = {"float64": 1.5, "int64": 3, "Int64": 3, "bool": True, "boolean": False, "str": "a"}
NULLABLE = ("float64", "Int64", "boolean")


def row_of(name):
    """A row of the table, with a value in every column."""
    return {
        column.name: column.allowed[0] if column.allowed else EXAMPLES[column.dtype]
        for column in tables.TABLES[name].columns
    }


def dtypes(table):
    return {column: str(dtype) for column, dtype in table.dtypes.items()}


def test_frame_orders_columns_and_refuses_missing_and_extra_ones():
    rows = [{"seconds": 1.5, "stage": "train sft"}]
    assert list(tables.frame("stages", rows).columns) == ["stage", "seconds"]
    with pytest.raises(MechrefusalError, match=r"missing columns \['seconds'\], extra columns \['minutes'\]"):
        tables.frame("stages", [{"stage": "a", "minutes": 1}])
    with pytest.raises(MechrefusalError, match="unknown table 'stage'"):
        tables.frame("stage", rows)


@pytest.mark.parametrize("name", tables.TABLES)
def test_dtypes_are_the_same_with_and_without_rows_and_values(tmp_path, name):
    told = dict(tables.describe(name)[["column", "dtype"]].itertuples(index=False))
    row = row_of(name)
    missing = {column: None if told[column] in NULLABLE else value for column, value in row.items()}
    for rows in (
        [row],
        [row, missing],
        [missing],
        [missing | {c: float("nan") for c in missing if missing[c] is None}],
    ):
        table = tables.frame(name, rows)
        assert dtypes(table) == told
        tables.write(table, name, tmp_path)
        pd.testing.assert_frame_equal(tables.read(name, tmp_path), table)
        last = table.iloc[-1]
        for column, value in rows[-1].items():
            assert pd.isna(last[column]) if pd.isna(value) else last[column] == value, column
    empty = tables.frame(name, [])
    assert dtypes(empty) == told
    tables.write(empty, name, tmp_path)
    assert dtypes(tables.read(name, tmp_path)) == told
    assert dtypes(tables.read(name, tmp_path / "nowhere")) == told
    assert dtypes(pd.concat([empty, table])) == told


def test_what_is_in_the_file_has_the_dtypes_too(tmp_path):
    nothing = dict.fromkeys(tables.columns("carrier"))
    row = nothing | {"arm": "sft", "step": 3, "n_candidates": 5, "n_admissible": 0, "n_harmful": 8, "n_harmless": 8}
    path = tables.write(pd.DataFrame([row]), "carrier", tmp_path)
    kinds = {field.name: str(field.type) for field in pq.read_schema(path)}
    assert (kinds["layer"], kinds["bypass"], kinds["admissible_zero"]) == ("int64", "double", "bool")
    assert kinds["token"].endswith("string")
    table = tables.read("carrier", tmp_path)
    assert table["layer"].iloc[0] is pd.NA
    assert np.isnan(table["bypass"].iloc[0])
    assert table["admissible_zero"].iloc[0] is pd.NA
    assert table["reason"].iloc[0] == ""


def test_numbers_that_mean_the_same_become_one_dtype():
    rows = [
        row_of("carriers") | {"layer": value, "half_wins": value, "bypass": value} for value in (2, 2.0, np.int32(2))
    ]
    table = tables.frame("carriers", rows)
    assert table["layer"].tolist() == table["half_wins"].tolist() == table["bypass"].tolist() == [2, 2, 2]
    pd.testing.assert_frame_equal(tables.frame("carriers", table.convert_dtypes()), table)
    objects = table.astype(object)
    pd.testing.assert_frame_equal(tables.frame("carriers", objects), table)
    flags = [row_of("scores") | {"refused": value} for value in (True, np.False_, None)]
    assert tables.frame("scores", flags)["refused"].tolist() == [True, False, pd.NA]


@pytest.mark.parametrize(
    ("name", "column", "value", "said"),
    [
        ("carrier", "layer", 2.5, r"holds 2\.5: it takes a whole number"),
        ("carrier", "layer", "two", "holds 'two': it takes a whole number"),
        ("carrier", "layer", True, "holds True: it takes a whole number"),
        ("carriers", "layer", float("nan"), "has no value in row 1: it takes a whole number in every row"),
        ("carriers", "layer", float("inf"), "holds inf: it takes a whole number"),
        ("carriers", "bypass", "low", "holds 'low': it takes a number"),
        ("carriers", "bypass", True, "holds True: it takes a number"),
        ("carriers", "winner", None, "has no value in row 1: it takes True or False in every row"),
        ("carriers", "winner", 1.0, r"holds 1\.0: it takes True or False"),
        ("carriers", "admissible_zero", "yes", "holds 'yes': it takes True or False"),
        ("carriers", "rejected_because", 3, "holds 3: it takes a text"),
        ("patching", "mode", "noise", "holds 'noise': it takes one of denoising, noising"),
    ],
)
def test_a_wrong_value_is_named_with_its_table_and_column(tmp_path, name, column, value, said):
    rows = [row_of(name), row_of(name) | {column: value}]
    with pytest.raises(MechrefusalError, match=f"table '{name}', column '{column}' {said}"):
        tables.frame(name, rows)
    with pytest.raises(MechrefusalError, match=f"column '{column}'"):
        tables.write(pd.DataFrame(rows), name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_label_may_be_missing_where_other_texts_are_empty():
    table = tables.frame("verdicts", [row_of("verdicts") | {"label": None, "because": None, "side": None}])
    assert pd.isna(table["label"].iloc[0])
    assert (table["because"].iloc[0], table["side"].iloc[0]) == ("", "")
    assert (table["label"] == "").tolist() == [False]


def test_write_and_read_are_inverse_and_absent_is_empty(tmp_path):
    table = tables.frame("stages", [{"stage": 'a "quoted" <b>😀</b>', "seconds": 2.0}])
    path = tables.write(table, "stages", tmp_path)
    pd.testing.assert_frame_equal(tables.read("stages", tmp_path), table)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert tables.read("drift", tmp_path).empty


def test_a_damaged_parquet_file_is_named(tmp_path):
    (tmp_path / "stages.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(MechrefusalError, match=r"stages\.parquet cannot be read"):
        tables.read("stages", tmp_path)


def test_describe_says_what_a_column_means():
    told = mr.tables.describe("patching").set_index("column")
    assert list(told.columns) == ["dtype", "meaning"]
    assert told.loc["raw"].tolist() == ["float64", "change of the metric, nats"]
    assert told.loc["mode", "meaning"].endswith("(denoising, noising)")
    assert told.loc["weights", "meaning"] == "hash of the checkpoint that was measured"


def test_a_file_of_another_schema_is_named(tmp_path):
    pd.DataFrame({"stage": ["a"], "minutes": [1.0]}).to_parquet(tmp_path / "stages.parquet")
    with pytest.raises(MechrefusalError, match=r"stages\.parquet cannot be read \(.*missing columns \['seconds'\]"):
        tables.read("stages", tmp_path)
