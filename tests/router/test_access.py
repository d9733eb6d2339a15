"""Keys out of files, and how they are compared."""

import hmac
from pathlib import Path

import pytest

from rtp_llm.config import HttpSettings
from rtp_llm.errors import ConfigError
from rtp_llm.router import access
from rtp_llm.router.access import Access, AccessError


def of(tmp_path: Path, users: str | None = None, admin: str | None = None) -> Access:
    files = {}
    for name, text in (("api_keys_file", users), ("admin_key_file", admin)):
        if text is not None:
            files[name] = str(tmp_path / name)
            (tmp_path / name).write_text(text)
    return Access.of(HttpSettings(**files))


def test_keys_come_out_of_files(tmp_path: Path) -> None:
    found = of(tmp_path, "# users\nalice a-key\n\n  bob\tb-key  \n", "root-key\n")
    for key in ("a-key", "b-key"):
        found.check_user(f"Bearer {key}")
    found.check_user("bearer  a-key")
    found.check_admin("Bearer root-key")
    for wrong in (
        None,
        "",
        "a-key",
        "Bearer",
        "Bearer ",
        "Basic a-key",
        "Bearer alice",
        "Bearer a-ke",
        "Bearer # users",
    ):
        with pytest.raises(AccessError):
            found.check_user(wrong)
    with pytest.raises(AccessError):
        found.check_admin("Bearer a-key")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("alice", "line 1: expected a name and a key"),
        ("alice a-key\nbob b key", "line 2: expected a name and a key"),
        ("alice a-key\nalice b-key", "line 2: the name alice"),
        ("alice a-key\nbob a-key", "line 2: the key of bob"),
        ("# nobody", "no key in it"),
        ("\n", "nothing in it"),
    ],
)
def test_a_file_that_is_none_of_keys_is_refused_and_no_key_repeated(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=r"http\.api_keys_file") as wrong:
        of(tmp_path, text)
    assert says in str(wrong.value) and "a-key" not in str(wrong.value) and "b-key" not in str(wrong.value)
    with pytest.raises(ConfigError, match=r"http\.admin_key_file"):
        Access.of(HttpSettings(admin_key_file=str(tmp_path / "none")))


def test_a_key_is_compared_with_each_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[int, int]] = []

    def compare(a: bytes, b: bytes) -> bool:
        compared.append((len(a), len(b)))
        return hmac.compare_digest(a, b)

    monkeypatch.setattr(access, "hmac", type("Hmac", (), {"compare_digest": staticmethod(compare)}))
    found = Access({"alice": "a", "bob": "bb", "carol": "ccc"}, "root")
    found.check_user("Bearer a")
    assert compared == [(32, 32)] * 3  # as many after a match as before, of one length
    found.check_admin("Bearer root")
    assert compared == [(32, 32)] * 4
