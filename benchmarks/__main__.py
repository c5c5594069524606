"""Run benchmarks: ``python -m benchmarks [NAME ...] [--write]``."""

import argparse
from pathlib import Path

from tqdm import tqdm

from benchmarks import (
    blocks,
    compiled,
    engines,
    exchange,
    inductor,
    inside,
    jacobians,
    long_loops,
    loops,
    mixed,
    segments,
    sparse,
    transformations,
)
from benchmarks.tables import Table, machine, markdown, text, write

PAGE = Path(__file__).resolve().parent.parent / "docs" / "performance.md"
TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        blocks.TABLE,
        compiled.TABLE,
        compiled.BEGINNING,
        loops.TABLE,
        mixed.SHAPES_TABLE,
        mixed.MIXED,
        engines.TABLE,
        segments.TABLE,
        exchange.TABLE,
        inductor.TABLE,
    )
}
SLOW = {inductor.TABLE.name}  # runs if it is named
# These print tables of their own.
OTHERS = {
    module.__name__.rpartition(".")[2]: module.main
    for module in (jacobians, sparse, transformations, inside, long_loops)
}


def main() -> None:
    """Measure, print, and refresh the documentation if asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="This project beside native code.")
    parser.add_argument(
        "names", nargs="*", help=f"which: {', '.join([*TABLES, *OTHERS])}; if none is named, all but {', '.join(SLOW)}"
    )
    parser.add_argument("--write", action="store_true", help=f"put the tables into docs/{PAGE.name}")
    chosen = parser.parse_args()
    unknown = sorted(set(chosen.names) - {*TABLES, *OTHERS})
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]!r}; choose among {', '.join([*TABLES, *OTHERS])}")
    names = chosen.names or [name for name in (*TABLES, *OTHERS) if name not in SLOW]
    print(machine())
    if chosen.write:
        write(PAGE, "machine", machine())
    with tqdm(total=sum(len(TABLES[name].cases) if name in TABLES else 1 for name in names), leave=False) as bar:
        for name in names:
            if name in TABLES:
                _tabulate(TABLES[name], bar, PAGE if chosen.write else None)
            else:
                bar.set_description(name)
                with tqdm.external_write_mode():
                    OTHERS[name]()
                bar.update()


def _tabulate(table: Table, bar: tqdm, page: Path | None) -> None:
    rows = []
    for label, case in table.cases:
        bar.set_description(f"{table.name}: {label}")
        rows += table.rows(label, case)
        bar.update()
    with tqdm.external_write_mode():
        print(f"\n{table.name}: {table.title}\n\n{text(table.columns, rows)}")
    if page is not None:
        write(page, table.name, markdown(table.columns, rows))


if __name__ == "__main__":
    main()
