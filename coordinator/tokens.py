"""Tokens: who may join the run, how often, until when; and who may read its page.

They are kept hashed in STATE/tokens.sqlite. A token to join by looks like `ist-ID-SECRET`, one for the page
like `isd-ID-SECRET`, and neither is any use for the other; the secret is 256 random bits, so one SHA-256 of
it is enough to keep, and what is kept lets nobody in. A token is shown once, when it is made. A use is spent
by a worker that has not come with this token before: it proves who it is with a value that only the holder of
its secret key can make, so coming back costs nothing and cannot be done by somebody else who found the token.
Whoever does not hold the secret of a token learns one thing only, that it does not fit; not whether there is
such a token. Time is an argument. Several processes may use the file: the coordinator admits while a person
revokes.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import sqlite3
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

Purpose = Literal["join", "dashboard"]

DATABASE = "tokens.sqlite"
MAX_TOKENS = 10_000
MAX_USES = 100_000
MAX_LABEL = 64
MAX_VALID_S = 36525 * 86400.0
MAX_TOKEN = 256
"""Characters of what a worker may show; more is refused before it is hashed."""
MIN_PROOF, MAX_PROOF = 16, 64
BUSY_S = 10.0

FORGET_S = 30 * 86400.0
"""How long after its end a dashboard's token is still listed; each start of a coordinator makes one."""

_PREFIX: dict[Purpose, str] = {"join": "ist", "dashboard": "isd"}
_TOKEN = re.compile(r"(ist|isd)-([0-9a-f]{12})-([A-Za-z0-9_-]{43})")
_NOBODY = hashlib.sha256(b"").digest()
"""Compared with when there is no such token, so that the answer takes as long."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS tokens (
  id TEXT PRIMARY KEY, digest BLOB NOT NULL, label TEXT NOT NULL, created_s REAL NOT NULL,
  expires_s REAL NOT NULL, uses INTEGER NOT NULL, revoked_s REAL, purpose TEXT NOT NULL DEFAULT 'join');
CREATE TABLE IF NOT EXISTS admitted (
  id TEXT NOT NULL, proof BLOB NOT NULL, name TEXT NOT NULL, at_s REAL NOT NULL, PRIMARY KEY (id, proof));
"""

UNKNOWN = (
    "found a token that is not the coordinator's; pass the token file it named when it started, or one that "
    "`coordinator tokens create` made"
)
UNREADABLE = (
    "found no token or a wrong one; open the address that the coordinator printed, or have a token made with "
    "`coordinator tokens create --for dashboard`"
)
_STRANGER: dict[Purpose, str] = {"join": UNKNOWN, "dashboard": UNREADABLE}


class TokenError(ValueError):
    """A token that cannot be made or found: says what was found and what is required."""


@dataclass(frozen=True, slots=True)
class TokenInfo:
    """What is known of a token; its secret is not. Times in seconds since 1970."""

    id: str
    label: str
    created_s: float
    expires_s: float
    uses: int
    used: int
    revoked_s: float | None
    names: tuple[str, ...]
    """Workers that came with it, in the order they first did."""
    purpose: Purpose = "join"
    """`dashboard`: it reads the page until it expires, and joins nothing; uses are not counted."""

    def state(self, now_s: float) -> str:
        """`valid`, `revoked`, `expired` or `used up`."""
        if self.revoked_s is not None:
            return "revoked"
        if now_s >= self.expires_s:
            return "expired"
        return "used up" if self.purpose == "join" and self.used >= self.uses else "valid"


class Tokens:
    """The tokens of one state directory. Raises sqlite3.Error for a file that is none of ours."""

    def __init__(self, state_dir: Path) -> None:
        path = state_dir / DATABASE
        # Only where there is none: closing a descriptor of a database ends the locks that this process holds
        # on it by other connections, and whoever closes it next, elsewhere, takes their log away.
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        self._db = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.executescript(_SCHEMA)
        self._bring_up_to_date()

    def close(self) -> None:
        self._db.close()

    def _bring_up_to_date(self) -> None:
        """Files of before there were tokens of a purpose have the column added."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            if "purpose" not in {row["name"] for row in self._db.execute("PRAGMA table_info(tokens)")}:
                self._db.execute("ALTER TABLE tokens ADD COLUMN purpose TEXT NOT NULL DEFAULT 'join'")
        finally:
            self._db.execute("COMMIT")

    def create(
        self,
        now_s: float,
        *,
        uses: int = 1,
        valid_s: float = 86400.0,
        label: str = "",
        purpose: Purpose = "join",
    ) -> str:
        """A new token, to be shown once; one for the dashboard has no `uses`. Raises TokenError."""
        if purpose == "join" and not 1 <= uses <= MAX_USES:
            raise TokenError(f"--uses: found {uses}, required 1 to {MAX_USES}")
        if not 0 < valid_s <= MAX_VALID_S:
            raise TokenError(f"--valid: found {valid_s:g} s, required more than 0, 36525 days at most")
        if len(label) > MAX_LABEL or not label.isprintable():
            raise TokenError(f"--label: found {label[:80]!r}, required at most {MAX_LABEL} characters")
        self._db.execute(
            "DELETE FROM tokens WHERE purpose = 'dashboard' AND expires_s < ?", (now_s - FORGET_S,)
        )
        if self._db.execute("SELECT count(*) FROM tokens").fetchone()[0] >= MAX_TOKENS:
            raise TokenError(f"found {MAX_TOKENS} tokens, required fewer; give another --state-dir")
        name, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
        self._db.execute(
            "INSERT INTO tokens (id, digest, label, created_s, expires_s, uses, purpose)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            (name, _digest(secret), label, now_s, now_s + valid_s, uses if purpose == "join" else 0, purpose),
        )
        return f"{_PREFIX[purpose]}-{name}-{secret}"

    def list(self) -> tuple[TokenInfo, ...]:
        """Every token, the oldest first."""
        rows = self._db.execute("SELECT * FROM tokens ORDER BY created_s, id").fetchall()
        return tuple(self._info(row) for row in rows)

    def revoke(self, name: str, now_s: float) -> TokenInfo:
        """Let nobody in with this token any more, not even who came with it before. Raises TokenError.

        Members stay until they leave; restart the coordinator to be rid of them.
        """
        row = self._row(name)
        if row is None:
            raise TokenError(f"found no token {name[:40]!r}; `coordinator tokens list` shows them")
        self._db.execute("UPDATE tokens SET revoked_s = coalesce(revoked_s, ?) WHERE id = ?", (now_s, name))
        found = self._row(name)
        assert found is not None
        return self._info(found)

    def refusal(self, token: str, now_s: float, proof: bytes = b"", purpose: Purpose = "join") -> str:
        """'' if the token lets its holder in (with `proof`: to join), else why not. Spends nothing."""
        row = self._of(token, purpose)
        if row is None:
            return _STRANGER[purpose]
        info = self._info(row)
        match info.state(now_s):
            case "valid":
                return ""
            case "used up" if self._came(info.id, proof):
                return ""
            case "used up":
                return f"found a token that is used up ({info.uses} of {info.uses}); have a new one made"
            case "revoked":
                return "found a token that was revoked; have a new one made"
            case _:
                return f"found a token that expired {now_s - info.expires_s:.0f} s ago; have a new one made"

    def of(self, token: str, purpose: Purpose) -> TokenInfo | None:
        """What is known of a token whose secret is shown; None: there is none."""
        row = self._of(token, purpose)
        return None if row is None else self._info(row)

    def admit(self, token: str, now_s: float, name: str, proof: bytes) -> str:
        """Spend a use for the worker of this proof, unless it came before. '' or why it may not come in."""
        if not MIN_PROOF <= len(proof) <= MAX_PROOF:
            return f"found a proof of identity of {len(proof)} bytes, required {MIN_PROOF} to {MAX_PROOF}"
        self._db.execute("BEGIN IMMEDIATE")  # two that come at once cannot both take the last use
        try:
            refused = self.refusal(token, now_s, proof)
            row = self._of(token, "join")
            if not refused and row is not None:
                self._db.execute(
                    "INSERT OR IGNORE INTO admitted VALUES (?, ?, ?, ?)",
                    (row["id"], hashlib.sha256(proof).digest(), name, now_s),
                )
        finally:
            self._db.execute("COMMIT")
        return refused

    def _came(self, name: str, proof: bytes) -> bool:
        rows = self._db.execute("SELECT proof FROM admitted WHERE id = ?", (name,)).fetchall()
        shown = hashlib.sha256(proof).digest()
        return sum(hmac.compare_digest(bytes(r["proof"]), shown) for r in rows) > 0  # all of them, each time

    def _of(self, token: str, purpose: Purpose) -> sqlite3.Row | None:
        """The row of a token of this purpose whose secret was shown."""
        match = _TOKEN.fullmatch(token) if len(token) <= MAX_TOKEN else None
        row = self._row(match[2]) if match else None
        digest = bytes(row["digest"]) if row is not None else _NOBODY
        fits = hmac.compare_digest(digest, _digest(match[3] if match else "x"))
        meant = match is not None and match[1] == _PREFIX[purpose]
        return row if fits and meant and row is not None and row["purpose"] == purpose else None

    def _row(self, name: str) -> sqlite3.Row | None:
        row: sqlite3.Row | None = self._db.execute("SELECT * FROM tokens WHERE id = ?", (name,)).fetchone()
        return row

    def _info(self, row: sqlite3.Row) -> TokenInfo:
        came = self._db.execute(
            "SELECT name FROM admitted WHERE id = ? ORDER BY at_s, rowid", (row["id"],)
        ).fetchall()
        return TokenInfo(
            row["id"], row["label"], row["created_s"], row["expires_s"], row["uses"], len(came),
            row["revoked_s"], tuple(r["name"] for r in came), row["purpose"],
        )  # fmt: skip


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def until(at_s: float) -> str:
    """A moment (seconds since 1970) as it is shown: `2026-12-06T07:09+00:00`."""
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="minutes")
