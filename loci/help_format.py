"""The class of all commands: plain help that fits any terminal, and the pixel limit."""

import re
from typing import Any

from typer.core import TyperCommand, TyperGroup

from loci.flags import use_flags_of


class Command(TyperCommand):
    """A command whose help is grouped and free of Python's type names."""

    def invoke(self, ctx: Any) -> Any:
        # Here and not in main(), so that asking for help imports neither Pillow nor NumPy.
        from model.images import use_own_pixel_limit

        use_own_pixel_limit()
        use_flags_of(self.params)
        return super().invoke(ctx)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the parts of the usage line, with arguments free of typer's braces."""
        return [piece.replace("{", "").replace("}", "") for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments and options in the order of their declaration, under their `rich_help_panel`."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                heading = getattr(param, "rich_help_panel", None) or f"{param.param_type_name}s".capitalize()
                name = re.sub(r" <\S+>$", "", record[0])
                sections.setdefault(heading, []).append((name, record[1]))
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


class Group(TyperGroup):
    """A group that prints its help if no command is given."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args or ["--help"])
