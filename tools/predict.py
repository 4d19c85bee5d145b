"""Classify images with a trained model.

    python -m tools.predict best photos/ cat.jpg --out predictions.csv
    python -m tools.predict models/net.safetensors files.csv --top 3 --out predictions.parquet

MODEL is a run by id, by name (DVC's), or as `best`, the best by validation; a model of the registry, repronet@champion;
or a weights file. PATHS are images, folders with images at any depth, and tables (.csv) with a column of paths, from
the table's own folder on. The table that is written has a row an image, with its file, its class and the probability
of each class, or with --top 3 the three most probable classes. Without --out it is shown.

An image is read as prepare has read those that the model was trained with, and scored as evaluate does it: what
predictions.csv says of an image is what is said here, bit for bit. Files that cannot be used are left out and listed,
with --out predictions.csv in predictions.rejected.csv. Of all images no more than the names of a folder's files are
held in memory at once, and 64 MiB of pixels.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from io import StringIO
from itertools import chain, islice, product, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tqdm import tqdm

from stages.base import cli
from stages.base.errors import InputError, lines, listed
from stages.base.files import SHARES, replacing, write_csv
from stages.base.text import printable, say, utf8, warn

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from stages.sources.rejections import Rejection
    from tools.model import Model

COLUMNS = ("file", "image", "source", "path")  # of a table of paths: the first of these that it has
SHOWN = 10  # files that cannot be used, on the terminal

Write = Callable[["pd.DataFrame"], None]


class File(NamedTuple):
    """One that may hold an image."""

    name: str  # as the user knows it
    path: str
    rejection: "Rejection | None"  # why it cannot be used, if that shows from outside


def main() -> None:
    parser = cli.parser("tools.predict", __doc__)
    parser.add_argument("model", metavar="MODEL", help="run id, run name, best, MODEL@ALIAS, or a weights file")
    parser.add_argument("paths", metavar="PATHS", nargs="+", type=Path, help="images, folders, or tables (.csv)")
    parser.add_argument("--out", type=Path, help=f"file to write: {listed(FORMATS)}; default: CSV on the terminal")
    parser.add_argument("--top", type=int, metavar="K", help="the K most probable classes instead of all")
    parser.add_argument("--column", help=f"of the paths in tables; default: {', '.join(COLUMNS)}, the first one there")
    arguments = parser.parse_args()
    check_out(arguments.out, arguments.paths)
    n_files = sum(1 for _ in files_of(arguments.paths, arguments.column))
    if not n_files:
        raise InputError(f"PATHS: there are no files in {listed(map(utf8, map(str, arguments.paths)))}")

    from tools.model import opened

    model = opened(arguments.model)
    if arguments.top is not None and not 1 <= arguments.top <= len(model.classes):
        raise InputError(f"--top: {arguments.top}, should be from 1 to {len(model.classes)}, the model's classes")
    said = predict_files(model, files_of(arguments.paths, arguments.column), n_files, arguments.out, arguments.top)
    if said:
        warn(said)
    if arguments.out:
        say(f"{arguments.out}: what {model.called} says of the images")


def check_out(out: Path | None, paths: Sequence[Path]) -> None:
    """Raise InputError for a file whose format is not known, or that would take the place of what is read."""
    if out is None:
        return
    if out.suffix not in FORMATS:
        raise InputError(f"--out: {str(out)!r}, should end in {listed(FORMATS)}")
    for path, written in product(paths, (out, rejected_beside(out))):
        if written.resolve().is_relative_to(path.resolve()):
            raise InputError(f"--out: {str(out)!r} would write {written}, which is or would be in {path}, to be read")


def files_of(paths: Sequence[Path], column: str | None) -> Iterator[File]:
    """Yield the files that the paths name, in the order of these. Raises InputError for paths that name none."""
    from stages.sources.folders import files_in
    from stages.sources.rejections import Kind, Rejection

    for path in paths:
        if utf8(str(path)) != str(path):
            yield File(utf8(str(path)), str(path), Rejection(Kind.NOT_A_NAME, "it is not UTF-8"))
        elif path.is_dir():
            for name, rejection in files_in(path):
                yield File(f"{path}/{name}", f"{path}/{name}", rejection)
        elif path.suffix.lower() == ".csv":
            yield from _listed_in(path, column)
        elif path.exists():
            yield File(str(path), str(path), None)
        else:
            raise InputError(f"PATHS: {str(path)!r} is no file and no folder")


def _listed_in(table: Path, column: str | None) -> Iterator[File]:
    from stages.sources.rejections import Kind, Rejection
    from stages.sources.tables import records

    rows, accepted = records(table), COLUMNS if column is None else (column,)
    _, _, header = next(rows, (0, 0, list[str]()))
    columns = [name.strip() for name in header]
    if not (chosen := next((name for name in accepted if name in columns), None)):
        hint = "" if column else "; --column names another"
        found = f"the columns {listed(columns)}" if columns else "no columns"
        raise InputError(f"{table} has {found}, should have {' or '.join(accepted)}{hint}")
    place = columns.index(chosen)
    for line, _, cells in rows:
        if name := cells[place].strip() if place < len(cells) else "":
            yield File(name, str(table.parent / name), None)
        else:
            yield File(f"line {line}", "", Rejection(Kind.NO_PATH))


def predict_files(model: "Model", files: Iterator[File], n_files: int, out: Path | None, top: int | None) -> str:
    """Write the table of predictions to `out`, and beside it the list of files that cannot be used.

    Return what is to be said of them. Raises InputError if none of the `n_files` can be used.
    """
    import pandas as pd

    room, listing = model.room(n_files), out and rejected_beside(out)
    kinds, examples, coloured = Counter[str](), list[str](), 0
    with ExitStack() as stack:
        write, reject = stack.enter_context(FORMATS[out.suffix](out) if out else _shown()), None
        bar = stack.enter_context(tqdm(total=n_files, unit=" images", disable=None))
        while block := list(islice(files, len(room))):
            rejections = {place: file.rejection for place, file in enumerate(block) if file.rejection}
            bar.update(len(rejections))
            usable = [place for place in range(len(block)) if place not in rejections]
            facts, unusable = model.decode(room, [file.path for file in block], usable, bar=bar)
            coloured += int(facts["colour"].sum())
            rejections |= unusable
            if usable := [place for place in usable if place not in unusable]:
                scores = model.scores(room[usable])
                shares = model.probabilities(scores)
                write(of_images([block[place].name for place in usable], scores, shares, model.classes, top))
            if not rejections:
                continue
            reasons = [(block[place].name, str(rejections[place])) for place in sorted(rejections)]
            if listing:
                reject = reject or stack.enter_context(_as_csv(listing))
                reject(pd.DataFrame(reasons, columns=["file", "reason"]))
            kinds.update(rejection.kind.value for rejection in rejections.values())
            examples += [f"{printable(name)}: {printable(reason)}" for name, reason in reasons]
            del examples[SHOWN:]
        n_rejected = kinds.total()
        if n_rejected == n_files:
            raise InputError("\n".join([f"none of the {n_files:,} files can be used:", *lines(examples)]))
    if listing and not kinds:
        listing.unlink(missing_ok=True)  # of an earlier time
    said = []
    if coloured:
        have = "images have" if coloured > 1 else "image has"
        said.append(f"{coloured:,} {have} colour, which the model does not see")
    if kinds:
        found = ", ".join(f"{kind} {count:,}" for kind, count in sorted(kinds.items()))
        all_of_them = f"; all of them are in {listing}" if listing else ""
        said += [f"{n_rejected:,} of {n_files:,} files cannot be used ({found}){all_of_them}:", *lines(examples)]
    return "\n".join(said)


def of_images(
    names: list[str], scores: "Tensor", shares: "Tensor", classes: list[str], top: int | None
) -> "pd.DataFrame":
    """Return one row an image: its file, its class, and of each class, or of the `top` ones, the probability."""
    import pandas as pd

    from stages.nets.prediction import table

    if top is None:
        return table({"file": names, "class": [classes[label] for label in scores.argmax(1)]}, shares, classes)
    largest, labels = shares.sort(dim=1, descending=True, stable=True)
    columns: dict[str, Any] = {"file": names}
    for place in range(top):
        columns[f"class_{place + 1}"] = [classes[label] for label in labels[:, place]]
        columns[f"probability_{place + 1}"] = largest[:, place].numpy()
    return pd.DataFrame(columns)


def rejected_beside(out: Path) -> Path:
    """Return the path of the list of files that cannot be used."""
    return out.with_name(f"{out.stem}.rejected.csv")


@contextmanager
def _shown() -> Iterator[Write]:
    yield _csv_writer(lambda text: say(text.removesuffix("\n")))


@contextmanager
def _as_csv(path: Path) -> Iterator[Write]:
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        yield _csv_writer(file.write)


def _csv_writer(put: Callable[[str], object]) -> Write:
    headers = chain([True], repeat(False))

    def write(rows: "pd.DataFrame") -> None:
        text = StringIO()
        write_csv(text, rows, SHARES, header=next(headers))
        put(text.getvalue())

    return write


@contextmanager
def _as_json(path: Path) -> Iterator[Write]:
    with replacing(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as file:
        starts = chain(["[\n"], repeat(",\n"))

        def write(rows: "pd.DataFrame") -> None:
            # As numbers of 64 bits: one of 32 would be shown with digits that nobody knows.
            shares = {name: "float64" for name, kind in rows.dtypes.items() if kind.kind == "f"}
            for row in rows.astype(shares).round(6).to_dict("records"):
                file.write(next(starts) + json.dumps(row, ensure_ascii=False))

        yield write
        file.write("\n]\n")


@contextmanager
def _as_parquet(path: Path) -> Iterator[Write]:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    with replacing(path) as partial, ExitStack() as stack:
        writer: ParquetWriter | None = None

        def write(rows: "pd.DataFrame") -> None:
            nonlocal writer
            table = pa.Table.from_pandas(rows, preserve_index=False)
            writer = writer or stack.enter_context(ParquetWriter(partial, table.schema))
            writer.write_table(table)

        yield write


FORMATS: dict[str, Callable[[Path], AbstractContextManager[Write]]] = {
    ".csv": _as_csv,
    ".json": _as_json,
    ".parquet": _as_parquet,
}

if __name__ == "__main__":
    cli.run(main)
