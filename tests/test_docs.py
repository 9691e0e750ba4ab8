"""The documentation's site: its API pages have every exported name, and its links lead somewhere."""

import importlib.util
import re
from types import SimpleNamespace

import yaml

import hf_autosparse
from paths import ROOT

DOCS = ROOT / "docs"
EXPORTED = sorted(set(hf_autosparse.__all__) - {"__version__"})


def test_every_exported_name_is_in_the_api_pages_once():
    pages = "".join(page.read_text() for page in sorted((DOCS / "api").glob("*.md")))
    documented = re.findall(r"^::: hf_autosparse\.(\w+)$", pages, re.MULTILINE)
    assert sorted(documented) == sorted(set(hf_autosparse.__all__) - {"__version__"}), (
        "add `::: hf_autosparse.NAME` to a page of docs/api"
    )


def test_every_exported_name_has_a_docstring():
    assert not [
        name for name in hf_autosparse.__all__ if name != "__version__" and not getattr(hf_autosparse, name).__doc__
    ]


def test_every_page_is_in_the_navigation():
    class Loader(yaml.SafeLoader):
        """Reads mkdocs.yml, whatever tags it has."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)
    settings = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)

    def pages(entries: list) -> set[str]:
        found = set()
        for entry in entries:
            (value,) = entry.values()
            found |= pages(value) if isinstance(value, list) else {value}
        return found

    files = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    assert files == pages(settings["nav"]) | {settings["not_in_nav"].strip().lstrip("/")}


def test_links_out_of_docs_lead_to_the_repository():
    specification = importlib.util.spec_from_file_location("site_links", DOCS / "site_links.py")
    hook = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(hook)
    page = SimpleNamespace(file=SimpleNamespace(src_uri="how-tos/a.md"))
    config = SimpleNamespace(repo_url="https://host/repository")
    text = "[a](../../examples/a.py#x), [b](../guide.md#y), [c](https://c), [d](d.md)"
    assert hook.on_page_markdown(text, page=page, config=config) == (
        "[a](https://host/repository/blob/main/examples/a.py#x), [b](../guide.md#y), [c](https://c), [d](d.md)"
    )
