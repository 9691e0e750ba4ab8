"""A hook of mkdocs: links from a page to files outside docs/ lead to the repository, since the site has only docs/."""

import posixpath
import re
from typing import Any

LINK = re.compile(r"(\]\()((?:\.\./)+[^)#\s]+)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    def to_repository(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page.file.src_uri), link[2]))
        return link[0] if target.startswith("docs/") else f"{link[1]}{config.repo_url}/blob/main/{target}"

    return LINK.sub(to_repository, markdown)
