"""The commands of docs/deployment.md, as they stand there."""

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "deployment.md"


def commands(section: str) -> list[list[str]]:
    """The lines of each ```sh block under the heading, comments left out."""
    [text] = re.findall(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.M | re.S)
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
    return [[line for line in block.splitlines() if line and not line.startswith("#")] for block in blocks]
