"""What the site needs beyond mkdocs: published results on demand, links into the repository, undocumented names."""

import io
import re
import tomllib
from pathlib import Path
from typing import Any

from griffe import GriffeLoader, Module
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import Files, InclusionLevel
from mkdocs.structure.pages import Page
from mkdocstrings import Inventory

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PACKAGES = ("msssm", "datamodules", "tasks")
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.M | re.S)
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
EATEN = re.compile(r"<[A-Za-z]\w*[,^][^>]*>")
log = get_plugin_logger("msssm")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Takes the address of the repository from pyproject.toml, where there is one."""
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    config.repo_url = urls.get("Repository", "")
    return config


def on_post_build(config: MkDocsConfig) -> None:
    """Warns of every public name that no page describes, or that has no docstring."""
    shown = set(Inventory.parse_sphinx(io.BytesIO(Path(config.site_dir, "objects.inv").read_bytes())))
    loader = GriffeLoader(search_paths=[ROOT])
    packages = [loader.load(name) for name in PACKAGES]
    loader.resolve_aliases()
    for module in (module for package in packages for module in _modules(package)):
        for export in module.exports or ():
            thing = module[str(export)]
            # A function that has its module's name stands behind it.
            thing = thing.members.get(thing.name, thing) if thing.is_module else thing
            if thing.is_module or thing.is_attribute:  # a constant's value says what it is
                continue
            if thing.canonical_path not in shown:
                log.warning("%s.%s is public and on no page of docs/api", module.path, export)
            methods = [each for each in thing.members.values() if each.is_function and not each.name.startswith("_")]
            for each in [thing, *methods]:
                if not each.has_docstring:
                    log.warning("%s is public and has no docstring", each.path)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Of docs/results, which has megabytes, the site gets the pages and pictures that a page links to."""
    for file in files:
        if file.src_uri.startswith("results/"):
            file.inclusion = InclusionLevel.EXCLUDED
    todo = [path for path in DOCS.rglob("*.md") if not path.is_relative_to(DOCS / "results")]
    while todo:
        page = todo.pop()
        for target in _targets(page.read_text()):
            path = (page.parent / target.partition("#")[0]).resolve()
            file = files.get_file_from_path(path.relative_to(DOCS).as_posix()) if path.is_relative_to(DOCS) else None
            if file and file.inclusion.is_excluded() and path.suffix in (".md", ".png"):
                file.inclusion = InclusionLevel.NOT_IN_NAV
                todo += [path] if path.suffix == ".md" else []
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Makes links to files that are in the repository and not on the site links to the repository."""

    def moved(match: re.Match[str]) -> str:
        words, target = match[1], match[2]
        if target is None or ":" in target or target.startswith("#"):
            return match[0]
        target, hash_, anchor = target.partition("#")
        path = (DOCS / page.file.src_uri).parent.joinpath(target).resolve()
        inside = files.get_file_from_path(path.relative_to(DOCS).as_posix()) if path.is_relative_to(DOCS) else None
        if (inside and not inside.inclusion.is_excluded()) or not path.exists() or not path.is_relative_to(ROOT):
            return match[0]
        name = path.relative_to(ROOT).as_posix()
        if config.repo_url:
            kind = "tree" if path.is_dir() else "blob"
            return f"[{words}]({config.repo_url.rstrip('/')}/{kind}/main/{name}{hash_}{anchor})"
        return words if words.strip("`") == name else f"{words} (`{name}` of the repository)"

    return _outside_code(LINK, moved, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> None:
    """Warns of an inner product, <C, h>, outside of code: a browser takes it for a tag and shows nothing."""
    for tag in EATEN.findall(html):
        log.warning("%s: %s is read as HTML; write it as code", page.file.src_uri, tag)


def _modules(package: Module) -> list[Module]:
    found = [package]
    for member in package.modules.values():
        if not member.is_alias:
            found += _modules(member)
    return found


def _targets(markdown: str) -> list[str]:
    return [match[2] or match[3] for match in LINK.finditer(CODE.sub("", markdown))]


def _outside_code(pattern: re.Pattern[str], replace: Any, text: str) -> str:
    parts, end = [], 0
    for code in CODE.finditer(text):
        parts += [pattern.sub(replace, text[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, pattern.sub(replace, text[end:])])
