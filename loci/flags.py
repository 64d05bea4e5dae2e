"""Flags for fields: the libraries name a field in backquotes, and the command line shows its option."""

import re
from collections.abc import Iterable
from typing import Any

_flags: dict[str, str] = {}


def use_flags_of(params: Iterable[Any]) -> None:
    """Take the options of the command that is about to run."""
    _flags.clear()
    for param in params:
        if param.param_type_name == "option":
            # A field carries its unit, as in place_radius_m; most options do not.
            _flags.update(dict.fromkeys((param.name, f"{param.name}_m"), param.opts[0]))


def with_flags(text: str) -> str:
    """Return the text with `place_radius_m` as --place-radius, if the command that runs has this option."""
    return re.sub(r"`(\w+)`", lambda match: _flags.get(match[1], match[0]), text)
