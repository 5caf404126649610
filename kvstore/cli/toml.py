"""Writing TOML, which the standard library only reads."""

import json


def toml_string(value: str) -> str:
    """JSON's, but that DEL may not stand in it as it is."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
