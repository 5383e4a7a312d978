# SPDX-License-Identifier: Apache-2.0
"""What the site shows of files that live outside ``docs``: the results of benchmarks, as pages below ``results/``.

Pages link to such files by their place in the repository, so that the links work there, too.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_PLACES = {"bench/results/": "results/", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
"""Where files of the repository are on the site."""
_KINDS = (".md", ".png", ".svg", ".json", ".csv")
_SHIM = "https://unpkg.com/iframe-worker/shim"
"""What the theme would fetch for search on pages from the disk; `worker.js` does the same."""
_LINK = re.compile(r"(?<=\]\()(?:\.\./)+(" + "|".join(map(re.escape, _PLACES)) + ")")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the results."""
    root = Path(config.config_file_path).parent
    for path in sorted((root / "bench" / "results").iterdir()):
        if path.suffix in _KINDS:
            files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turns links out of ``docs`` into those on the site."""
    folder = posixpath.dirname(page.file.src_uri) or "."

    def there(found: re.Match[str]) -> str:
        place = _PLACES[found[1]]
        return posixpath.relpath(place, folder) + ("/" if place.endswith("/") else "")

    return _LINK.sub(there, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Search finds what pages say, and no source code."""
    return html.replace(
        '<details class="mkdocstrings-source"', '<details data-search-exclude class="mkdocstrings-source"'
    )


def on_post_page(output: str, page: Page, **_: Any) -> str:
    """The page asks no other server for a script."""
    folder = posixpath.dirname(page.file.dest_uri) or "."
    return output.replace(_SHIM, posixpath.relpath("site/worker.js", folder))


def on_post_template(output_content: str, **_: Any) -> str:
    """The same of pages that are none of ours: that of a wrong address."""
    return output_content.replace(_SHIM, "site/worker.js")
