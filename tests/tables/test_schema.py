import ast
from pathlib import Path

import pytest

import mechrefusal
from mechrefusal import tables
from mechrefusal.errors import MechrefusalError
from mechrefusal.study import protocol
from mechrefusal.tables import schema

PACKAGE = Path(mechrefusal.__file__).parent


def test_tables_of_one_checkpoint_begin_with_which():
    assert set(tables.PER_CHECKPOINT) | set(tables.ACROSS) == set(tables.TABLES)
    assert not set(tables.PER_CHECKPOINT) & set(tables.ACROSS)
    for name, table in tables.TABLES.items():
        names = tables.columns(name)
        assert len(set(names)) == len(names), name
        assert (names[:3] == ("arm", "step", "weights")) >= table.per_checkpoint, name


def test_every_file_of_columns_is_read():
    files = {path.stem for path in (PACKAGE / "tables" / "columns").iterdir()}
    read = ast.parse((PACKAGE / "tables" / "schema.py").read_text(encoding="utf-8"))
    assert files <= {node.value for node in ast.walk(read) if isinstance(node, ast.Constant)}


def test_every_column_has_a_meaning_and_rates_an_interval_and_n():
    for name, table in tables.TABLES.items():
        assert table.rows.endswith("."), name
        for column in table.columns:
            assert len(column.meaning) > 3, (name, column.name)
            assert not column.meaning.endswith("."), (name, column.name)
        by_name = {column.name: column for column in table.columns}
        for low in [each for each in by_name if each.endswith("low")]:
            assert by_name[low[: -len("low")] + "high"].dtype == by_name[low].dtype, (name, low)


def test_every_table_that_is_written_is_described():
    written = {name for stage in (*protocol.AT_A_CHECKPOINT, *protocol.ACROSS_CHECKPOINTS) for name in stage.gives}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                called = ast.unparse(node.func)
                name = (
                    node.args[{"tables.write": 1}.get(called, 0)]
                    if len(node.args) > 1 or "write" not in called
                    else None
                )
                if called in ("self.add", "tables.frame", "tables.write", "tables.read") and isinstance(
                    name, ast.Constant
                ):
                    written.add(name.value)
    assert len(written) > 40
    assert written <= set(tables.TABLES)


@pytest.mark.parametrize("entry", ["number of layers", "float", "float? of none"])
def test_an_entry_without_a_kind_is_named(entry):
    with pytest.raises(MechrefusalError, match="column 'n' of table 'some' is described as"):
        list(schema._columns("some", "n", entry))


def test_names_that_share_a_meaning_are_columns_of_their_own():
    low, high = schema._columns("some", "low, high", "str?(a b, c) ends, nats: two")
    assert (low.name, high.name) == ("low", "high")
    assert (low.kind, low.dtype, low.meaning, low.allowed) == ("str?", "str", "ends, nats: two", ("a b", "c"))
