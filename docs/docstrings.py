"""Docstrings as the site's reference takes them, an extension of griffe: several parameters in one
line as a line each, and the roles of Sphinx as links."""

import re

from griffe import Extension, NameResolutionError, Object

SEVERAL = re.compile(r"^( +)(\w+(?:, \w+)+): (.*)$", re.M)
ROLE = re.compile(r":(?:class|func|meth|mod):`~?([\w.]+)`")


class Docstrings(Extension):
    """Rewrites each docstring that is loaded."""

    def on_object(self, *, obj: Object, **_: object) -> None:
        """Rewrite the docstring of an object."""
        if not obj.docstring:
            return

        def link(match: re.Match[str]) -> str:
            first, dot, rest = match[1].partition(".")
            try:
                place = obj.resolve(first) + dot + rest
            except NameResolutionError:
                place = match[1]
            code = f"<code>{match[1]}</code>"
            return f'<autoref optional identifier="{place}">{code}</autoref>'

        def lines(match: re.Match[str]) -> str:
            indent, names, text = match.groups()
            return "\n".join(f"{indent}{name}: {text}" for name in names.split(", "))

        obj.docstring.value = ROLE.sub(link, SEVERAL.sub(lines, obj.docstring.value))
