"""One choice of a plan: a key of a configuration, its value, and why."""

from collections.abc import Iterable
from copy import deepcopy
from typing import Any, NamedTuple


class Setting(NamedTuple):
    """key: dotted, as in `key=value`. why: a sentence without a full stop; empty where there is nothing to say."""

    key: str
    value: Any
    why: str = ""


def nested(settings: Iterable[Setting]) -> dict[str, Any]:
    """What the settings say, as a YAML file holds it."""
    values: dict[str, Any] = {}
    for setting in settings:
        *parents, last = setting.key.split(".")
        below = values
        for parent in parents:
            below = below.setdefault(parent, {})
        below[last] = deepcopy(setting.value)  # or what is set below it later would be set in the plan
    return values


def reasons(settings: Iterable[Setting]) -> list[str]:
    """Why, of those settings that say it."""
    return [f"{setting.key}: {setting.why}" for setting in settings if setting.why]
