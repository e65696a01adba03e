"""The site: a strict build, links to files, a search that works in an opened folder, nothing from the network."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from tests.helpers import chromium
from tests.helpers.paths import ROOT

pytest.importorskip("zensical", reason="pip install '.[dev]'")

LINK = re.compile(r"""<(\w+)\b[^>]*?\b(?:src|srcset|href)=["']?([^"'\s>]+)""")
FETCHING = {"script", "img", "iframe", "source", "link"}


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    """Build the site of a copy of the repository, as `make docs` does."""
    return subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--clean", "--strict"],
        cwd=folder, capture_output=True, text=True, env={"NO_COLOR": "1", "PATH": "/usr/bin:/bin"}, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site") / "copy"
    folder.mkdir()
    shutil.copy(ROOT / "zensical.toml", folder)
    ignored = shutil.ignore_patterns("*.safetensors", "__pycache__")
    for name in ("docs", "data", "attacks", "defenses", "reports", "rdp_bench"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=ignored)
    built = build(folder)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder / "build" / "site"


def test_every_page_is_built_and_in_the_navigation(site: Path) -> None:
    pages = {path.relative_to(ROOT / "docs").with_suffix(".html").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    pages = {page.replace("README.html", "index.html") for page in pages}
    assert {page for page in pages if not (site / page).is_file()} == set()
    home = {target.removeprefix("./") for _, target in LINK.findall((site / "index.html").read_text())}
    assert pages - {"index.html"} <= home


def test_the_reference_has_signatures_and_doctests(site: Path) -> None:
    text = (site / "api.html").read_text()
    for name in ("rdp_bench.api.evaluate", "rdp_bench.protocols.Purifier.purify", "rdp_bench.metrics.stats.wilson"):
        assert f'id="{name}"' in text, name
    assert "&gt;&gt;&gt;" in text


def test_pages_fetch_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    assert not {page.name: found for page in pages if (found := fetched(page.read_text()))}
    assert fetched('<script async src="https://example.org/a.js">') == ["https://example.org/a.js"]


def fetched(page: str) -> list[str]:
    """What a page loads from the network by itself."""
    return [target for tag, target in LINK.findall(page) if tag in FETCHING and urlsplit(target).netloc]


def test_every_linked_file_exists(site: Path) -> None:
    """The build checks pages and anchors, but neither images nor other files."""
    assert not [(page.name, lost) for page in site.rglob("*.html") if page.name != "404.html" for lost in missing(page)]
    page = site / "extend" / "lost.html"
    page.write_text('<img src="../overview.svg"><a href="../results/gone.csv#x">y</a>')
    assert missing(page) == ["../results/gone.csv#x"]
    page.unlink()


def missing(page: Path) -> list[str]:
    """The local files that a page links or shows and that do not exist."""
    targets = [target for _, target in LINK.findall(page.read_text())]
    local = [target for target in targets if not urlsplit(target).scheme and urlsplit(target).path]
    return [target for target in local if not (page.parent / unquote(urlsplit(target).path)).is_file()]


@pytest.mark.parametrize(
    "text", ["[x](gone.md)", "[x](api.md#gone)", "--8<--\ndocs/gone.py\n--8<--", "::: rdp_bench.gone", "[x](api.md#y)"]
)
def test_a_broken_page_stops_the_build(tmp_path: Path, text: str) -> None:
    config = re.sub(r"nav = \[.*?\n\]\n", "", (ROOT / "zensical.toml").read_text(), flags=re.DOTALL)
    (tmp_path / "zensical.toml").write_text(config)
    shutil.copytree(ROOT / "rdp_bench", tmp_path / "rdp_bench", ignore=shutil.ignore_patterns("[a-z]*"))
    (tmp_path / "docs").mkdir()
    for name in ("doctests.py", "iframe-worker.js", "site.css"):
        shutil.copy(ROOT / "docs" / name, tmp_path / "docs")
    (tmp_path / "docs" / "api.md").write_text("# y\n")
    (tmp_path / "docs" / "index.md").write_text(f"# x\n\n{text}\n")
    built = build(tmp_path)
    assert (built.returncode == 0) == (text == "[x](api.md#y)"), built.stdout + built.stderr


@pytest.mark.skipif(chromium.PATH is None, reason="apt-get install chromium")
def test_the_search_works_in_an_opened_folder(site: Path, tmp_path: Path) -> None:
    """Opened as file://, without a server: a word of the glossary is found, and nothing is asked of the network."""
    with chromium.Chromium(tmp_path / "profile") as browser:
        browser.screen(1400, 900)
        for page in ("index.html", "extend/attack.html"):
            browser.open(site / page)
            browser.ask("document.querySelector('button.md-search__button').click()")
            browser.ask(WAIT % "document.activeElement.shadowRoot?.activeElement")
            browser.call("Input.insertText", text="momentum")
            shown = browser.ask(WAIT % "/Attacks and threat models/.test(found()) && found()")
            assert "An attack" in shown
            assert not browser.complaints
            assert not [url for url in browser.requests if url.startswith("http")]


@pytest.mark.skipif(chromium.PATH is None, reason="apt-get install chromium")
def test_the_home_page_has_a_picture(site: Path, tmp_path: Path) -> None:
    with chromium.Chromium(tmp_path / "profile") as browser:
        for width, picture in ((1400, "overview.svg"), (390, "overview-narrow.svg")):
            browser.screen(width, 900)
            browser.open(site / "index.html")
            image = "document.querySelector('article img')"
            assert browser.ask(f"{image}.currentSrc").endswith(f"/{picture}")
            assert browser.ask(f"{image}.naturalWidth") > 300
            assert browser.ask(f"{image}.alt.length") > 50
            assert browser.ask("document.documentElement.scrollWidth") <= width


WAIT = """new Promise((done, fail) => {
  const found = () => [...document.querySelectorAll('*')].map((each) => each.shadowRoot?.textContent ?? '').join(' ')
  const until = Date.now() + 20000
  const look = () => {
    const value = %s
    if (value) done(typeof value === 'string' ? value : true)
    else if (Date.now() > until) fail(new Error('nothing found: ' + found().slice(0, 500)))
    else setTimeout(look, 20)
  }
  look()
})"""
