"""What pages point to is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)\s]*)?\)")


def linked(page: Path, text: str) -> list[Path]:
    targets = (found.group(1) for found in LINK.finditer(text))
    return [page.parent / target for target in targets if "://" not in target]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file(page: Path) -> None:
    assert [str(path) for path in linked(page, page.read_text()) if not path.exists()] == []


def test_the_walk_of_a_request_names_what_the_files_beside_it_hold() -> None:
    """Each name in backquotes stands in a file that its step links, or one before it."""
    page = ROOT / "docs/request-walk.md"
    _, *steps = re.split(r"\n(?=\d+\. \*\*)", page.read_text().split("\n\nWhen a worker dies")[0])
    assert len(steps) == 11
    seen: list[set[str]] = []
    strange = []
    for step in steps:
        seen += [set(re.findall(r"\w+", path.read_text())) for path in linked(page, step)]
        for name in re.findall(r"`([A-Za-z_][\w.:]*)`", step):
            if not any(set(re.findall(r"\w+", name)) <= words for words in seen):
                strange.append(f"{step[:20]}: {name}")
    assert strange == []
