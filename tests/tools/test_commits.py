"""What a commit's results are compared with."""

import pytest
from dvc.api import DVCFileSystem

from stages.base.errors import InputError
from tests.conftest import Project
from tools.commits import check_commit


def test_weights_that_git_ignores_are_no_change_and_code_that_it_lacks_is(project: Project) -> None:
    fs = DVCFileSystem(str(project.root), rev="HEAD")
    weights, code, kept = (
        {"path": path, "hash": "md5", "md5": "0" * 32, "size": 1}
        for path in ("data/weights/start.pt", "stages/other.py", "data/weights/none")
    )
    check_commit({"stages": {"train": {"deps": [weights]}}}, fs)
    with pytest.raises(InputError, match=r"committed without dvc repro: stages/other\.py, data/weights/none$"):
        check_commit({"stages": {"train": {"deps": [weights, code, kept]}}}, fs)
