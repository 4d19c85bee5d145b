"""Builds the class of torch that params.yaml names, from a table of names and defaults; errors say what is accepted."""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from types import ModuleType
from typing import Any

from stages.base.errors import InputError, unknown


def check_names(
    section: str, name: str, arguments: Collection[str], accepted: Collection[str], refused: Mapping[str, str]
) -> None:
    """Raise InputError if `name`, or a class name that `arguments` are given for, is not an accepted one.

    `refused` holds other names and why they cannot be used.
    """
    for where, given in [(f"{section}.name", name), *((f"{section}.arguments", key) for key in arguments)]:
        if given in refused:
            raise InputError(f"{where}: {given!r} cannot be used: {refused[given]}; accepted: {', '.join(accepted)}")
        if given not in accepted:
            raise InputError(f"{where}: {given!r} is unknown{unknown(given, accepted)}")


def check_table(place: str, table: Mapping[str, object], by_name: bool = True, taken: Collection[str] = ()) -> None:
    """Raise InputError unless each entry of the table is a class or function, and that of its name, if `by_name`.

    A partial is another one with its own defaults, so its name may be any, but for the names that are `taken`.
    """
    for name, entry in table.items():
        if name in taken:
            raise InputError(f"{place}: {name!r} is the name of what stands there already; take another")
        if not callable(entry):
            raise InputError(f"{place}: {name!r} is {entry!r}, should be a class or function")
        own = getattr(entry, "__name__", name)
        if by_name and not isinstance(entry, partial) and own != name:
            raise InputError(
                f"{place}: {name!r} is {own}, should be what is called {name};"
                f" partial(…) makes {own} with other defaults one of its own name"
            )


def class_of(section: str, name: str, module: ModuleType, own: type | None = None) -> type:
    """Return the class that a table's line of this name stands for: `own`, by default the one of torch's `module`.

    Raises InputError if there is none, or if it has another name.
    """
    found = own or getattr(module, name, None)
    if not isinstance(found, type) or found.__name__ != name:
        what = f"is {found.__name__}" if isinstance(found, type) else f"is no class of {module.__name__}"
        raise InputError(f"{section}: the table's line {name!r} {what}; a class of your own stands in its line")
    return found


def settings(cls: type, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that `cls(…, **arguments)` is called with: those given, and the defaults of its own."""
    taken = inspect.signature(cls).parameters.values()
    return {known.name: known.default for known in taken if known.default is not known.empty} | arguments


def build(
    section: str,
    cls: type,
    positional: Sequence[Any],
    derived: dict[str, Any],
    arguments: dict[str, Any],
    where: str | None = None,
    trial: Callable[[Callable[..., Any]], object] = lambda _make: None,
    convert: Callable[[Any], Any] = lambda value: value,
    purpose: str = "",
) -> Any:
    """Return `cls(*positional, **derived, **arguments)`, with the values of the arguments converted.

    `derived` follows from other values, so `arguments`, which the user gave, may not name them again. They stand at
    `where` in params.yaml, by default in `arguments` of the section. torch checks many values only when the object is
    used, so `trial` first gets a function that makes another one, of its own positional arguments, to use. Raises
    InputError for an argument that the class does not take, or whose value it refuses, then or in the trial.
    """
    names = list(inspect.signature(cls).parameters)
    accepted = [name for name in names[len(positional) :] if name not in derived]
    for name in arguments:
        if name not in accepted:
            place = where or f"{section}.arguments.{cls.__name__}"
            raise InputError(f"{place}.{name}: not an argument to give here{unknown(name, accepted)}")
    try:
        make = partial(cls, **derived, **{name: convert(value) for name, value in arguments.items()})
        trial(make)
        return make(*positional)
    except Exception as error:  # torch checks its arguments in many ways, and all of them come from the user
        refused = f"{cls.__name__} refuses {arguments}{purpose and ' '}{purpose}"
        raise InputError(f"{section}: {refused}: {type(error).__name__}: {error}") from error
