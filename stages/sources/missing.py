"""Files that a table names and that are not there, but for a small difference."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from stages.base.params import CsvParams
from stages.base.text import printable
from stages.sources.folders import files_in

COMPARED = 100  # missing names that are compared with those of all files; what helps these is tried with all


class Difference(NamedTuple):
    """What makes a missing name that of a file: surplus folders left out, folders before it, and an ending behind."""

    surplus: str
    folder: str
    ending: str
    case: bool  # that of the letters differs, too

    def applied(self, name: str) -> str:
        """Return the name of the file, in lower case if the case differs."""
        name = f"{self.folder}{name.removeprefix(self.surplus)}{self.ending}"
        return name.lower() if self.case else name

    def remedy(self, params: CsvParams) -> str:
        """Return what to say of files that are there but for this."""
        what = [f"without {self.surplus!r}"] * bool(self.surplus) + ["but for the case of letters"] * self.case
        if self.folder or self.ending:
            folder, suffix = f"{self.folder}{params.folder or ''}".rstrip("/"), f"{params.suffix or ''}{self.ending}"
            values = {"folder": folder, "suffix": suffix}
            what.append("with " + " and ".join(f"prepare.csv.{key}={value}" for key, value in values.items() if value))
        return " and ".join(what)


def near_misses(missing: Sequence[str], root: Path, params: CsvParams) -> list[str]:
    """Return a line for each of the three most frequent differences of missing names from those of files in `root`."""
    if not missing:
        return []
    alike = defaultdict(list)
    for name in missing[:COMPARED]:
        alike[_stem(name)].append(name)
    files = [file for file, _ in files_in(root)]
    found, examples = Counter[Difference](), dict[Difference, tuple[str, str]]()
    for file in files:
        for name in alike.get(_stem(file), ()):
            if difference := _difference(name, file):
                found[difference] += 1
                examples.setdefault(difference, (file, name))
    said = []
    for difference, _ in found.most_common(3):
        wanted = Counter(map(difference.applied, missing))
        names = {file.lower() if difference.case else file for file in files}
        count = sum(times for name, times in wanted.items() if name in names)
        file, name = map(printable, examples[difference])
        said.append(
            f"{count:,} of {len(missing):,} missing files are there {difference.remedy(params)},"
            f" such as {file} for {name}"
        )
    return said


def _stem(name: str) -> str:
    return name.rpartition("/")[2].partition(".")[0].lower()


def _difference(name: str, file: str) -> Difference | None:
    """Return what makes the name that of the file, None if it is another one."""
    lower, of_file = name.lower(), file.lower()
    before, found, ending = of_file.rpartition(lower)
    if found and (not before or before.endswith("/")) and (not ending or ending.startswith(".")) and "/" not in ending:
        case = file[len(before) : len(of_file) - len(ending)] != name
        return Difference("", file[: len(before)], file[len(of_file) - len(ending) :], case)
    if lower.endswith("/" + of_file):
        return Difference(name[: -len(file)], "", "", not name.endswith(file))
    return None
