"""Which process of pytest-xdist runs which tests: the largest pieces first, single tests to whichever is free."""

from xdist.scheduler import LoadScopeScheduling

# Files whose tests use a fixture that takes many seconds, which one process should make once; those that use the same
# one have one name.
TOGETHER = {
    "tests/test_evaluate_elsewhere.py": "course",
    "tests/test_pipeline.py": "reproduced",
    "tests/test_readme.py": "copy",
    "tests/tools/sweep/test_champion.py": "compared",
    "tests/tools/sweep/test_dvc_experiments.py": "experiments",
    "tests/tools/sweep/test_sweep.py": "sweep",
    "tests/tools/test_compare.py": "compared",
    "tests/tools/test_serve.py": "compared",
    "tests/tools/test_sync.py": "original",
    "tests/tools/test_tidy.py": "tidy",
    "tests/tools/test_ui.py": "ui",
    "tests/training/test_parallel.py": "parallel",
}


class Scheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Hands out pieces of work; xdist takes those with most tests first."""

    def _split_scope(self, nodeid: str) -> str:
        """Return the name of the piece that a test belongs to."""
        file = nodeid.split("::")[0]
        if self.config.option.markexpr == "slow" and file in TOGETHER:
            return "one at a time"  # browsers, servers and sweeps, which have time limits
        return TOGETHER.get(file, nodeid)
