"""Writes docs/configuration.md from the config tree. `--check`: exit 1 if the committed file isn't current."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import SecretStr

from rtp_llm.cli import SHORT_FLAGS
from rtp_llm.config import DEMO_MODEL, ENVIRONMENT_PREFIX, settings

FILE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"

HEAD = f"""\
# Configuration

<!-- Generated from rtp_llm/config.py by tools/configuration.py. -->

One tree of settings, `section.name`. Later beats earlier: the defaults below, a YAML file (`--config FILE`), the environment,
the command line. A wrong setting is refused by path and value, an unknown one too.

| where | `engine.max_num_seqs` is written as |
| --- | --- |
| YAML file, and `args` of a Serve application ([deployment.md](deployment.md)) | `engine: {{max_num_seqs: 8}}` |
| environment | `{ENVIRONMENT_PREFIX}ENGINE__MAX_NUM_SEQS=8` |
| command line of `rtp-llm serve` | `--engine.max-num-seqs 8` |

`prefill.engine` and `decode.engine` override single settings of `engine` in their pool:
`decode: {{engine: {{num_threads: 2}}}}`, or `--decode.engine.num-threads 2`. On the command line and in the environment a
mapping is written as JSON.
"""


def page() -> str:
    short = {path: flag for flag, (path, _) in SHORT_FLAGS.items()}
    parts, section = [HEAD], ""
    for path, field in settings().items():
        if not path.startswith(f"{section}."):
            section = path.partition(".")[0]
            parts.append(f"\n## {section}\n\n| setting | values | default | meaning |\n| --- | --- | --- | --- |\n")
        flag = f" (`{short[path]}`)" if path in short else ""
        parts.append(f"| `{path}`{flag} | {_values(field)} | {_default(field)} | {field.description} |\n")
    return "".join(parts)


def _values(field: Any) -> str:
    limits = {type(limit).__name__: limit for limit in field.metadata}
    words = [_type(field.annotation)]
    for name, sign in (("Ge", "≥"), ("Gt", ">"), ("Le", "≤"), ("Lt", "<")):
        if name in limits:
            words.append(f"{sign} {getattr(limits[name], name.lower())}")
    return " ".join(words)


def _type(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if get_origin(annotation) in (Union, types.UnionType):
        return " or ".join(_type(each) for each in get_args(annotation) if each is not type(None))
    if get_origin(annotation) is dict:
        return "mapping"
    return {bool: "`true`, `false`", int: "integer", float: "number", str: "text", SecretStr: "text"}[annotation]


def _default(field: Any) -> str:
    value = field.get_default(call_default_factory=True)
    if value == DEMO_MODEL:
        return "the demo model"
    if value in (None, "", {}, SecretStr("")):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def main() -> int:
    if "--check" not in sys.argv:
        FILE.write_text(page(), encoding="utf-8")
    elif FILE.read_text(encoding="utf-8") != page():
        print(f"{FILE} is not current: run python tools/configuration.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
