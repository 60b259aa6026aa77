"""A headless browser that opens a page and reports what it finds there."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome-headless-shell")

_BEFORE = """
window.trouble = [];
addEventListener("error", (event) => trouble.push(`error: ${event.message ?? event.target}`), true);
addEventListener("unhandledrejection", (event) => trouble.push(`rejected: ${event.reason}`));
addEventListener("securitypolicyviolation", (event) => trouble.push(`blocked: ${event.blockedURI}`));
"""

_AFTER = """
addEventListener("load", () => {
  let found;
  try { found = (() => { %s })(); } catch (error) { trouble.push(`report: ${error}`); }
  const fetched = performance.getEntriesByType("resource").map((entry) => entry.name);
  const written = document.createElement("pre");
  written.id = "report";
  written.textContent = JSON.stringify(
    { found, trouble, fetched: fetched.filter((name) => !name.startsWith("data:")) });
  document.body.replaceChildren(written);
});
"""


def find_browser() -> str | None:
    """The browser that VLMKIT_BROWSER names, or one on the path."""
    named = os.environ.get("VLMKIT_BROWSER")
    return named or next(filter(None, map(shutil.which, NAMES)), None)


def report(page: str, script: str, folder: Path, width: int = 1280) -> dict[str, Any]:
    """What a script returns that runs once the page has loaded, with all errors and requests.

    The page's own policy stays in force; only the two scripts of this test are added to it.

    Args:
        page: the HTML.
        script: the body of a function.
        folder: for the page and the browser's profile.
        width: of the window.
    """
    scripts = [_BEFORE, _AFTER % script]
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    policy = " ".join(f"'sha256-{digest}'" for digest in hashes)
    page = page.replace("script-src ", f"script-src {policy} ", 1)
    page = page.replace("<style>", f"<script>{scripts[0]}</script><style>", 1)
    head, _, tail = page.rpartition("</body>")
    file = folder / "page.html"
    file.write_text(f"{head}<script>{scripts[1]}</script></body>{tail}", encoding="utf-8")
    command = [
        find_browser() or "",
        "--headless=new",
        "--no-sandbox",  # for root
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={folder / 'profile'}",
        f"--window-size={width},1000",
        "--virtual-time-budget=10000",
        "--dump-dom",
        file.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'<pre id="report">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, f"no report: {done.stdout[-500:]} {done.stderr[-2000:]}"
    reported: dict[str, Any] = json.loads(html.unescape(found[1]))
    return reported
