"""For make docs: on the page of the API, each argument that a docstring explains becomes an item of a list."""
import re

import griffe

AFTER = re.compile(r'^(Returns|Raises|Source|Maps|A classifier)', re.M)


class Arguments(griffe.Extension):
    """Rewrites the docstrings that mkdocstrings shows."""

    def on_object(self, *, obj, **_):
        if obj.is_function and obj.docstring:
            name = f'(?:{"|".join(parameter.name for parameter in obj.parameters) or "-"})'
            items = re.compile(rf'(?:^|(?<=[.;] ))({name}(?:, {name})*): ', re.M)
            obj.docstring.value = AFTER.sub(r'\n\1', items.sub(r'\n\n- **\1**: ', obj.docstring.value))
