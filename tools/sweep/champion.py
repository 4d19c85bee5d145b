"""The model registry's champion: the model that others have to beat on the same test images."""

from stages.base.errors import InputError
from tools.comparison import Pair, verdict
from tools.runs import EvaluatedRun, Runs

ALIAS = "champion"


def challenge(runs: Runs, name: str, challenger: EvaluatedRun) -> str:
    """Register the challenger's model as `name`@champion if it beats the present one, and return what was done and why.

    It does so where it classifies more of the same test images correctly and McNemar's exact test tells that from
    chance. Raises InputError if the present champion cannot be read.
    """
    from mlflow import register_model
    from mlflow.exceptions import MlflowException

    present = runs.model_version(name, ALIAS)
    if present is not None:
        if present.run_id is None:
            raise InputError(f"{name}@{ALIAS} is a model without a run, so what it gets right is not known")
        champion = runs.find(present.run_id)
        if champion.id == challenger.id:
            return f"{challenger.name} is {name}@{ALIAS} already"
        pair = Pair.of(champion, challenger)
        if pair is None or not (pair.is_real and pair.difference > 0):
            return f"{name}@{ALIAS} stays {champion.name}. {verdict(champion, challenger)}"
    try:
        version = register_model(challenger.model, name)
        runs.client.set_registered_model_alias(name, ALIAS, version.version)
    except MlflowException as error:
        raise InputError(f"{challenger.name} cannot be registered as {name}: {error}") from error
    beaten = f"; it was {champion.name}. {verdict(champion, challenger)}" if present is not None else ", its first"
    return f"{name}@{ALIAS} is now {challenger.name}, version {version.version}{beaten}"
