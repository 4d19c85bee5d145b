"""How runs are found in a store: the one place that writes MLflow's filters."""

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


def search(
    client: "MlflowClient",
    experiment_id: str,
    tags: Mapping[str, str] | None = None,
    prefixes: Mapping[str, str] | None = None,
    having: Collection[str] = (),
    status: str = "",
    run_id: str = "",
    deleted: bool = False,
    at_most: int = 0,
) -> list["Run"]:
    """Return the runs of an experiment, the latest first: those that were deleted, or those that were not.

    `tags` have these values, `prefixes` are what other tags begin with, `having` are tags that are there. There are
    `at_most` so many, 0: all. `run_id` is the one's that is looked for, 32 hexadecimal digits.
    """
    from mlflow.entities import ViewType

    tags, prefixes = tags or {}, prefixes or {}
    conditions = [equals(name, value) for name, value in tags.items()]
    # In a pattern % and _ stand for others, and on some databases \ does: what is found too much goes out below.
    conditions += [
        f"tags.`{name}` LIKE {quoted(f'{prefix}%')}" * (quoted(prefix) != "" and "\\" not in prefix)
        for name, prefix in prefixes.items()
    ]
    conditions += [f"tags.`{name}` != ''" for name in having]
    conditions += [f"attributes.status = '{status}'"] * bool(status)
    conditions += [f"attributes.run_id = '{run_id}'"] * bool(run_id)
    found: list[Run] = []
    token: str | None = None
    while token is None or (token and not at_most):
        page = client.search_runs(
            [experiment_id],
            " and ".join(filter(None, conditions)),
            ViewType.DELETED_ONLY if deleted else ViewType.ACTIVE_ONLY,
            max_results=at_most or 10_000,
            order_by=["attributes.start_time DESC"],
            page_token=token,
        )
        found, token = found + list(page), page.token or ""
    return [
        run
        for run in found
        if all(run.data.tags.get(name) == value for name, value in tags.items())
        and all(run.data.tags.get(name, "").startswith(prefix) for name, prefix in prefixes.items())
    ]


def equals(tag: str, value: str) -> str:
    """Return the filter for a tag with this value, "" if MLflow has none for it."""
    return f"tags.`{tag}` = {quoted(value)}" if quoted(value) else ""


def quoted(value: str) -> str:
    """Return `value` as MLflow's filters take it, "" if they cannot: nothing stands for a quote within quotes."""
    return next((f"{quote}{value}{quote}" for quote in "'\"" if quote not in value), "")
