"""Pages of a report as a reader, and a parser, sees them."""

from html.parser import HTMLParser
from pathlib import Path

from mechrefusal.report import reading, writing
from mechrefusal.report.sections import Page as Source


class Page(HTMLParser):
    """Elements of a page, its visible text, and the text of every script."""

    def __init__(self, html: Path | str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.scripts: list[tuple[dict, str]] = []
        self.text, self.inside = "", None
        self.feed(html.read_text(encoding="utf-8") if isinstance(html, Path) else html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.inside = (tag, dict(attrs)) if tag in ("script", "style") else None

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside is None:
            self.text += data
        elif self.inside[0] == "script":
            self.scripts.append((self.inside[1], data))

    @property
    def words(self) -> str:
        """The text with single spaces."""
        return " ".join(self.text.split())

    @property
    def titles(self) -> list[str]:
        """Titles of the figures that are drawn."""
        return [attributes["aria-label"] for _, attributes in self.elements if "data-plot" in attributes]


def content(page: Source) -> Page:
    """The main part of a page."""
    return Page(str(writing.content_of(page)))


def pages(folder: Path, *names: str, show_completions: bool = False) -> list[Page]:
    """The main parts of these pages of a run, rendered without libraries, data and files."""
    found = writing.pages_of(reading.read_run(folder), show_completions=show_completions)
    rendered = {page.id: content(page) for page in found if page.id in names}
    return [rendered[name] for name in names]
