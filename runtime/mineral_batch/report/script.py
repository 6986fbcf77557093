"""The page's script, from the modules in assets/js.

They are ES modules, so that editors, TypeScript's checker and Node's test runner read them as they are. A page in one
file cannot import modules, so they are joined here, in the order of their imports, into one function. That needs no
bundler as long as each import is one line, exports are named, and no two modules define the same name; a test checks
that.
"""

from __future__ import annotations

import re
from importlib import resources

_MAIN = "main.mjs"
_IMPORT = re.compile(r'^import \{[^}]*\} from "\./(?P<module>[\w-]+\.mjs)";\n', re.MULTILINE)


def bundle() -> str:
    """Join the modules that main.mjs imports, each once and behind those that it imports itself."""
    parts: dict[str, str] = {}
    _add(_MAIN, parts)
    body = "\n".join(f"// {name}\n{text}" for name, text in parts.items())
    return f'"use strict";\n(() => {{\n{body}\n}})();\n'


def _add(name: str, parts: dict[str, str]) -> None:
    text = resources.files("mineral_batch.report").joinpath("assets", "js", name).read_text("utf-8")
    for found in _IMPORT.finditer(text):
        if found["module"] not in parts:
            _add(found["module"], parts)
    parts[name] = re.sub(r"^export ", "", _IMPORT.sub("", text), flags=re.MULTILINE)
