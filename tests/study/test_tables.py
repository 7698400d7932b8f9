import pandas as pd
import pytest

from mechrefusal.errors import MechrefusalError
from mechrefusal.study import tables


def test_frame_orders_columns_and_refuses_missing_and_extra_ones():
    rows = [{"seconds": 1.5, "stage": "train sft"}]
    assert list(tables.frame("stages", rows).columns) == ["stage", "seconds"]
    with pytest.raises(MechrefusalError, match=r"missing columns \['seconds'\], extra columns \['minutes'\]"):
        tables.frame("stages", [{"stage": "a", "minutes": 1}])
    with pytest.raises(MechrefusalError, match="unknown table 'stage'"):
        tables.frame("stage", rows)


def test_an_empty_table_keeps_its_columns():
    assert list(tables.frame("carriers", []).columns) == list(tables.columns("carriers"))


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


@pytest.mark.parametrize("name", tables.ADDED)
def test_added_columns_are_nan_in_a_table_of_an_earlier_version(tmp_path, name):
    added = list(tables.ADDED[name])
    whole = tables.frame(name, [dict.fromkeys(tables.columns(name), 1.0)])
    whole.drop(columns=added).to_parquet(tmp_path / f"{name}.parquet", index=False)
    table = tables.read(name, tmp_path)
    assert list(table.columns) == list(tables.columns(name))
    assert table[added].isna().all(axis=None)
    assert (table.drop(columns=added) == 1).all(axis=None)


def test_halves_are_added_to_the_transfer():
    half = {"decrease_half_low", "decrease_half_high"}
    assert half <= set(tables.columns("transfer"))
    assert half <= set(tables.ADDED["transfer"])
    assert {"n_halves", "layer_half_low", "layer_half_high"} <= set(tables.ADDED["carrier"])
    assert "half_wins" in tables.ADDED["carriers"]
