"""Look at a report's HTML page in a real browser: ``python -m validation.report_in_browser PAGE [--shots FOLDER]``.

The page is that of an audit, or of the studies. Headless Chromium (Debian's package ``chromium``) lays it out at 1280
and 360 pixels, light and dark. It is asked

* whether the page is wider than the window, and which elements stick out of it (tables and scripts may scroll in boxes
  of their own),
* whether every box that scrolls can be reached with the keyboard,
* whether all text has the contrast to its background that WCAG 2 asks for (AA: 4.5, or 3 for large text),
* whether links lead somewhere, and whether an id comes twice,
* what the browser wrote to the console.

Anything found is printed, and the exit status is 1. With ``--shots`` it also writes four pictures.
"""

from __future__ import annotations

import argparse
import html
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["SCHEMES", "WIDTHS", "Inspection", "find_browser", "inspect", "shoot"]

WIDTHS = (1280, 360)
SCHEMES = ("light", "dark")
_HEIGHT = 900
_SECONDS = 120

# The page is looked at from outside, in a frame as wide as the window would be: it allows no scripts of its own.
_HARNESS = """<!doctype html><meta charset="utf-8"><title>harness</title>
<style>body {{ margin: 0 }} iframe {{ border: 0; width: {width}px; height: {height}px; display: block }}</style>
<iframe src="{page}"></iframe><pre id="told"></pre>
<script>
const frame = document.querySelector("iframe");
frame.addEventListener("load", () => {{
  const page = frame.contentDocument, view = frame.contentWindow, root = page.documentElement;
  const name = e => e.tagName.toLowerCase() + (e.id ? "#" + e.id : "") + (e.className.baseVal ?? e.className ?? "");
  const scrolls = e => ["auto", "scroll"].includes(view.getComputedStyle(e).overflowX);
  const told = {{ width: root.clientWidth, scrollWidth: root.scrollWidth,
                  scheme: view.matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light",
                  out: [], unreachable: [], faint: [], links: [] }};
  const clipped = new Set(page.querySelectorAll(".skip"));
  page.querySelectorAll("details").forEach(e => {{ e.open = true; }});
  const visit = (e, boxed) => {{
    if (clipped.has(e)) return;
    const style = view.getComputedStyle(e);
    if (style.display === "none") return;
    const box = e.getBoundingClientRect();
    if (!boxed && box.width && (box.right > root.clientWidth + 0.5 || box.left < -0.5)) told.out.push(name(e));
    if (scrolls(e) && e.scrollWidth > e.clientWidth + 1 && e.tabIndex < 0) told.unreachable.push(name(e));
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    if (own) {{
      const svg = e.namespaceURI.endsWith("svg");
      const ratio = contrast(rgb(svg ? style.fill : style.color), ground(e));
      const size = parseFloat(style.fontSize);
      const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
      if (e.tagName !== "title" && e.tagName !== "desc" && ratio < (large ? 3 : 4.5))
        told.faint.push(`${{name(e)}} ${{ratio.toFixed(2)}}: ${{e.textContent.trim().slice(0, 30)}}`);
    }}
    for (const child of e.children) visit(child, boxed || scrolls(e));
  }};
  const rgb = text => (text.match(/[\\d.]+/g) ?? [0, 0, 0]).map(Number);
  const ground = e => {{
    for (; e; e = e.parentElement) {{
      const c = rgb(view.getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }}
    return [255, 255, 255];
  }};
  const light = c => c.slice(0, 3).map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
                      .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const contrast = (a, b) => {{
    const [low, high] = [light(a), light(b)].sort((p, q) => p - q);
    return (high + 0.05) / (low + 0.05);
  }};
  visit(page.body, false);
  for (const link of page.querySelectorAll('a[href^="#"]'))
    if (!page.getElementById(link.hash.slice(1))) told.links.push("no target: " + link.hash);
  const ids = [...page.querySelectorAll("[id]")].map(e => e.id);
  for (const id of new Set(ids.filter((id, i) => ids.indexOf(id) !== i))) told.links.push("twice: " + id);
  document.getElementById("told").textContent = JSON.stringify(told);
}});
</script>
"""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What the browser says of the page at one width and in one colour scheme.

    Attributes
    ----------
    width, scroll_width : int
        Of the window, and of what it would have to be to show everything.
    scheme : str
        The colour scheme in effect.
    out, unreachable, faint, links, console : list of str
        Elements that stick out, boxes that the keyboard cannot reach, text without contrast, links and ids that are
        wrong, and the console's lines.
    """

    width: int
    scroll_width: int
    scheme: str
    out: list[str]
    unreachable: list[str]
    faint: list[str]
    links: list[str]
    console: list[str]

    @property
    def complaints(self) -> list[str]:
        """Everything that is not as it should be, in words."""
        found = [f"the page is {self.scroll_width} pixels wide"] if self.scroll_width > self.width else []
        for what in ("out", "unreachable", "faint", "links", "console"):
            found += [f"{what}: {line}" for line in getattr(self, what)]
        return found


def find_browser() -> str | None:
    """Return the path of Chromium, or None."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


def inspect(page: Path, width: int, scheme: str = "light") -> Inspection:
    """Lay the page out, and return what there is to say of it.

    Raises
    ------
    RuntimeError
        If there is no browser, or it does not answer.
    """
    with tempfile.TemporaryDirectory() as folder:
        harness = _harness(Path(folder), page, width)
        done = _browse(Path(folder), scheme, ["--dump-dom", "--virtual-time-budget=20000", harness.as_uri()])
    found = re.search(r'<pre id="told">(.+?)</pre>', done.stdout, re.DOTALL)
    if found is None:
        raise RuntimeError(f"the browser did not lay out {page}: {done.stderr[-500:]}")
    told: dict[str, Any] = json.loads(html.unescape(found[1]))
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return Inspection(
        told["width"],
        told["scrollWidth"],
        told["scheme"],
        told["out"],
        told["unreachable"],
        told["faint"],
        told["links"],
        console,
    )


def shoot(page: Path, picture: Path, width: int, scheme: str = "light", height: int = 3000) -> None:
    """Write a picture of the top of the page."""
    with tempfile.TemporaryDirectory() as folder:
        harness = _harness(Path(folder), page, width, height)
        options = [
            f"--window-size={max(width, 500)},{height}",
            f"--screenshot={picture.resolve()}",
        ]
        _browse(Path(folder), scheme, [*options, harness.as_uri()])


def _harness(folder: Path, page: Path, width: int, height: int = _HEIGHT) -> Path:
    harness = folder / "harness.html"
    address = html.escape(page.resolve().as_uri())
    harness.write_text(_HARNESS.format(page=address, width=width, height=height), encoding="utf-8")
    return harness


def _browse(folder: Path, scheme: str, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    browser = find_browser()
    if browser is None:
        raise RuntimeError("no Chromium is installed: Debian's package is called chromium")
    command = [
        browser,
        "--headless=new",
        "--no-sandbox",  # it runs as root in containers, and looks at nothing but our own page
        "--disable-gpu",
        "--hide-scrollbars",  # as on a phone, where they take no room
        "--allow-file-access-from-files",
        "--enable-logging=stderr",
        f"--blink-settings=preferredColorScheme={SCHEMES.index(scheme) ^ 1}",
        f"--user-data-dir={folder / 'profile'}",
        *arguments,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Look at a report's HTML page in headless Chromium.")
    parser.add_argument("page", type=Path)
    parser.add_argument("--shots", type=Path, metavar="FOLDER", help="write pictures there")
    options = parser.parse_args(argv)
    status = 0
    for width in WIDTHS:
        for scheme in SCHEMES:
            complaints = inspect(options.page, width, scheme).complaints
            print(f"{width} pixels, {scheme}: {'fine' if not complaints else ''}")
            print(*(f"  {complaint}" for complaint in complaints), sep="\n", end="\n" if complaints else "")
            status |= bool(complaints)
            if options.shots:
                shoot(options.page, options.shots / f"{width}-{scheme}.png", width, scheme)
    return status


if __name__ == "__main__":
    sys.exit(main())
