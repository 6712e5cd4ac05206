"""Who answers where nobody is named: the one place that the command line, Studio and the browser app ask.

A model that is given goes before the environment, and the environment before the embedded clinic:

    MMEDAGENT_TRIAGE        model string of the triage doctor
    MMEDAGENT_SPECIALISTS   of the specialists, separated by commas: one for all doctors, or one for each
    MMEDAGENT_ATTENDING     of the attending physician
    MMEDAGENT_HOSPITAL      folder or address of a hospital (`mmedagent_graph.hospital`), for whoever is not named
"""

import os
from typing import Any

from mmedagent_graph.consultation import Consultation
from mmedagent_graph.graph import build_graph
from mmedagent_graph.models import load_model

CLINIC: dict[str, str | list[str]] = {
    "triage": "clinic:base",
    "specialists": ["clinic:doctor-1", "clinic:doctor-2", "clinic:doctor-3"],
    "attending": "clinic:base",
}
"""The embedded clinic: its tiny model, and three simulated doctors."""
VARIABLES = {name: f"MMEDAGENT_{name.upper()}" for name in (*CLINIC, "hospital")}


def default_graph(**overrides: Any) -> Consultation:
    """A consultation with the models that the environment names, or else the embedded clinic.

    Args:
        overrides: what `build_graph` takes; None counts as not given.

    Raises:
        ValueError: naming the argument and the valid choices, or what to install.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    if "hospital" not in given:
        for name in VARIABLES.keys() - given.keys():
            if named := _named(name):
                given[name] = named
    if "hospital" in given:
        return build_graph(**given)
    if unnamed := [name for name in CLINIC if name not in given]:
        _need_clinic(unnamed)
    return build_graph(**{**CLINIC, **given})


def _named(name: str) -> str | list[str] | None:
    """What the environment names for a node, or as the hospital; an empty variable names nobody."""
    value = os.environ.get(VARIABLES[name], "").strip()
    if name != "specialists" or "," not in value:
        return value or None
    models = [model.strip() for model in value.split(",")]
    if not all(models):
        raise ValueError(f"{VARIABLES[name]}: {value!r} has an empty place; give model strings separated by commas")
    return models


def _need_clinic(unnamed: list[str]) -> None:
    """Say what is missing before the clinic is, where it has to answer for `unnamed`."""
    try:
        load_model("clinic:doctor-1")
    except ValueError as error:
        variables = ", ".join(VARIABLES[name] for name in (*unnamed, "hospital"))
        raise ValueError(
            f"{', '.join(unnamed)}: no model is named, and the clinic that answers by default is not installed; "
            f"pip install 'mmedagent-graph[rl]', or name one ({variables})"
        ) from error
