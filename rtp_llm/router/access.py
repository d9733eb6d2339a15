"""Access: who may call what over HTTP, by the keys in http.api_keys_file and http.admin_key_file."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

from rtp_llm.config import HttpSettings, read_secret
from rtp_llm.errors import ConfigError, InvalidRequestError


class AccessError(InvalidRequestError):
    """No key, or not one that opens this. The key that came is in no message."""

    http_status = 401
    code = "invalid_api_key"  # OpenAI's


class Access:
    """`api_keys`: name → key of each user; empty: everybody may ask. `admin_key`: what /metrics and routes that change the
    deployment ask for; empty: as `api_keys` is, everybody may, or nobody."""

    def __init__(self, api_keys: Mapping[str, str], admin_key: str = "") -> None:
        self._users = [(name, _digest(key)) for name, key in api_keys.items()]
        self._admin = _digest(admin_key) if admin_key else None

    @classmethod
    def of(cls, http: HttpSettings) -> Access:
        """
        Raises:
            ConfigError: a file can't be read, or a line of it isn't a name and a key.
        """
        admin_key = read_secret("http.admin_key_file", http.admin_key_file) if http.admin_key_file else ""
        return cls(_read_keys(http.api_keys_file) if http.api_keys_file else {}, admin_key)

    @property
    def tenants(self) -> frozenset[str]:
        """Names of users' keys."""
        return frozenset(name for name, _ in self._users)

    def check_user(self, authorization: str | None) -> str:
        """Of a request's Authorization header: the name of its key, which is its tenant; empty where no keys are asked for.

        Raises:
            AccessError: keys are asked for, and this isn't one.
        """
        if not self._users:
            return ""
        came = _digest(_bearer(authorization))
        # All are compared, whichever it is: how long that takes says nothing.
        names = [name for name, digest in self._users if hmac.compare_digest(digest, came)]
        if not names:
            raise AccessError("the API key is wrong")
        return names[0]

    def check_admin(self, authorization: str | None) -> None:
        """
        Raises:
            AccessError: it isn't the admin's key, or there is none and users have keys.
        """
        if self._admin is None:
            if self._users:
                raise AccessError("this needs the admin's key, and http.admin_key_file is not set")
            return
        if not hmac.compare_digest(self._admin, _digest(_bearer(authorization))):
            raise AccessError("this needs the admin's key (http.admin_key_file)")


def _bearer(authorization: str | None) -> str:
    scheme, _, key = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not key.strip():
        raise AccessError("no API key came: send it as `Authorization: Bearer KEY`")
    return key.strip()


def _digest(key: str) -> bytes:
    """Of equal length for all."""
    return hashlib.sha256(key.encode()).digest()


def _read_keys(path: str) -> dict[str, str]:
    """Lines of NAME KEY; empty ones and comments (#) are skipped."""
    keys: dict[str, str] = {}
    for number, line in enumerate(read_secret("http.api_keys_file", path).splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        where = f"http.api_keys_file {path}, line {number}"
        words = line.split()
        if len(words) != 2:
            raise ConfigError(f"{where}: expected a name and a key, found {len(words)} words")
        name, key = words
        if name in keys:
            raise ConfigError(f"{where}: the name {name} is there already")
        if key in keys.values():
            raise ConfigError(f"{where}: the key of {name} is another one's, too")
        keys[name] = key
    if not keys:
        raise ConfigError(f"http.api_keys_file {path}: no key in it")
    return keys
