"""The modules of our Rust code and who imports whom, read from the sources.

Each file is a module. An edge goes from a file to the file that declares what it names: re-exports
(`pub use`) are followed, so that `crate::child::Child` leads to the file of `Child`. Code under
`#[cfg(test)]` and files named `tests.rs` or below a `tests/` folder are left out: tests may import
whatever they test. A parent declares and re-exports its own children; that is no edge.

    python3 scripts/module_graph.py            # circles and imports between crates, exit code 1 if any
    python3 scripts/module_graph.py --edges    # each edge
"""

import argparse
import dataclasses
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

PATH = re.compile(r"(?<![\w:.$])(?:\w+)(?:\s*::\s*\w+)+")


@dataclasses.dataclass
class Module:
    """One file: its path in the crate, and what its items and imports are called."""

    crate: str
    path: tuple[str, ...]
    file: Path
    code: str
    uses: list[tuple[tuple[str, ...], str | None, bool]]  # (path, local name or None for `*`, public)
    items: set[str]

    @property
    def key(self) -> tuple[str, ...]:
        return (self.crate, *self.path)

    def __str__(self) -> str:
        return "::".join(self.key)


def blank(text: str) -> str:
    """The text without what is not a line break, so that line numbers stay."""
    return re.sub(r"[^\n]", " ", text)


TOKENS = re.compile(
    r"//[^\n]*"
    r"|/\*.*?\*/"
    r'|\bb?r(?P<hashes>#*)".*?"(?P=hashes)'
    r'|b?"(?:\\.|[^"\\])*"'
    r"|b?'(?:\\(?:x[0-9a-fA-F]{2}|u\{[^}]*\}|.)|[^'\\])'",
    re.DOTALL,
)


def without_comments(source: str, keep_texts: bool) -> str:
    """Rust code of the same length whose comments are blank, and its strings as well unless kept."""

    def replaced(match: re.Match[str]) -> str:
        text = match.group()
        if text.startswith("/"):
            return blank(text)
        return text if keep_texts else text[0] + blank(text[1:-1]) + text[-1]

    return TOKENS.sub(replaced, source)


def end_of_item(code: str, start: int) -> int:
    """Where the item that begins at `start` ends: behind its `;` or its closing brace."""
    depth = 0
    for position in range(start, len(code)):
        character = code[position]
        if character in "{([":
            depth += 1
        elif character in "})]":
            depth -= 1
            if depth == 0 and character == "}":
                return position + 1
            if depth < 0:
                return position
        elif character == ";" and depth == 0:
            return position + 1
        elif character == "," and depth == 0:
            return position + 1
    return len(code)


def spans_of_tests(code: str) -> list[tuple[int, int]]:
    """Where items lie that exist in tests only, in code without comments and texts."""
    spans, position = [], 0
    marker = re.compile(r"#\[cfg\((?:test|any\(test[^\]]*|all\(test[^\]]*)\)\]")
    while match := marker.search(code, position):
        start = match.end()
        while attribute := re.compile(r"\s*#\[[^\]]*\]").match(code, start):
            start = attribute.end()
        position = end_of_item(code, start)
        spans.append((match.start(), position))
    return spans


def without_tests(code: str) -> str:
    """Code without the items that exist in tests only."""
    for start, end in spans_of_tests(code):
        code = code[:start] + blank(code[start:end]) + code[end:]
    return code


def use_tree(text: str, prefix: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], str | None]]:
    """The names that a `use` tree brings: (full path, local name), `*` with None."""
    text = text.strip()
    if text.startswith("{"):
        inner, parts, depth, current = text[1 : text.rindex("}")], [], 0, ""
        for character in inner:
            depth += {"{": 1, "}": -1}.get(character, 0)
            if character == "," and depth == 0:
                parts.append(current)
                current = ""
            else:
                current += character
        parts.append(current)
        return [found for part in parts if part.strip() for found in use_tree(part, prefix)]
    match = re.match(r"(?:r#)?(\w+|\*)\s*(::|\bas\b|$)", text)
    if not match:
        return []
    name, behind = match.group(1), match.group(2)
    rest = text[match.end() :].strip()
    if behind == "::":
        return use_tree(rest, (*prefix, name))
    if name == "*":
        return [(prefix, None)]
    local = rest if behind == "as" else name
    if name == "self":
        return [(prefix, prefix[-1] if behind != "as" else local)]
    return [((*prefix, name), local)]


def read_module(crate: str, path: tuple[str, ...], file: Path) -> Module:
    code = without_tests(without_comments(file.read_text(), keep_texts=False))
    uses = []
    for match in re.finditer(r"(?m)(pub(?:\([^)]*\))?\s+)?\buse\s+([^;]+);", code):
        for full, local in use_tree(match.group(2)):
            uses.append((full, local, bool(match.group(1))))
    items = set(
        re.findall(
            r"(?m)^[ \t]*(?:pub(?:\([^)]*\))?\s+)?(?:const\s+|async\s+|unsafe\s+|extern\s+)*"
            r"(?:fn|struct|enum|trait|type|const|static|union|macro_rules!)\s+(?:r#)?(\w+)",
            code,
        )
    )
    code_without_uses = re.sub(r"\buse\s+[^;]+;", lambda match: blank(match.group()), code)
    return Module(crate, path, file, code_without_uses, uses, items)


def children_of(crate: str, module: Module, folder: Path, found: dict) -> None:
    """Reads the files that `mod name;` lines declare, and theirs."""
    for match in re.finditer(r"(?m)^[ \t]*(?:pub(?:\([^)]*\))?\s+)?mod\s+(\w+)\s*;", module.code):
        name = match.group(1)
        for file in (folder / f"{name}.rs", folder / name / "mod.rs"):
            if file.exists():
                child = read_module(crate, (*module.path, name), file)
                found[child.key] = child
                children_of(crate, child, folder / name, found)


def crates(tree: Path) -> dict[str, Path]:
    """Our crates by the names under which code imports them, with their root files."""
    manifests = sorted(tree.glob("crates/*/Cargo.toml")) or [tree / "Cargo.toml"]
    found = {}
    for manifest in manifests:
        with manifest.open("rb") as file:
            package = tomllib.load(file)
        name = package.get("lib", {}).get("name") or package["package"]["name"].replace("-", "_")
        found[name] = manifest.parent / "src" / "lib.rs"
    return found


def modules(tree: Path) -> dict[tuple[str, ...], Module]:
    found: dict[tuple[str, ...], Module] = {}
    for crate, root in crates(tree).items():
        top = read_module(crate, (), root)
        found[top.key] = top
        children_of(crate, top, root.parent, found)
    return found


class Graph:
    """Which file imports which."""

    def __init__(self, tree: Path = ROOT) -> None:
        self.modules = modules(tree)
        self.crates = {key[0] for key in self.modules}
        self.edges: dict[tuple[str, ...], set[tuple[str, ...]]] = {key: set() for key in self.modules}
        self.names: dict[tuple, set[str]] = {}
        for module in self.modules.values():
            for target, name in self.named(module):
                if target != module.key and not is_descendant(target, module.key):
                    self.edges[module.key].add(target)
                    self.names.setdefault((module.key, target), set()).add(name)

    def start(self, module: Module, path: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
        """The module where a path starts, and what of the path is left."""
        head, here = path[0], module.key
        if head == "crate":
            return here[:1], path[1:]
        if head == "self":
            return here, path[1:]
        if head == "super":
            while path and path[0] == "super":
                here, path = here[:-1], path[1:]
            return here, path
        if head in self.crates and (*here, head) not in self.modules:
            return (head,), path[1:]
        if (*here, head) in self.modules:
            return (*here, head), path[1:]
        return None

    def declared(self, key: tuple[str, ...], path: tuple[str, ...], seen: frozenset = frozenset()) -> set[tuple[str, ...]]:
        """The files that declare what `path` names within the module `key`."""
        if key not in self.modules or (key, path) in seen:
            return set()
        seen |= {(key, path)}
        if not path:
            return {key}
        module, name = self.modules[key], path[0]
        if (*key, name) in self.modules:
            return self.declared((*key, name), path[1:], seen)
        if name in module.items:
            return {key}
        for full, local, _ in module.uses:
            if local == name and (start := self.start(module, full)):
                if found := self.declared(start[0], (*start[1], *path[1:]), seen):
                    return found
        for full, local, public in module.uses:
            if local is None and public and (start := self.start(module, full)):
                found = self.declared(*start, seen)
                for target in found:
                    if name in self.modules[target].items:
                        return {target}
        return {key}

    def named(self, module: Module) -> set[tuple[tuple[str, ...], str]]:
        """The files that declare what a module names, and by which name."""
        found: set[tuple[tuple[str, ...], str]] = set()
        local_names = {}
        for full, local, public in module.uses:
            start = self.start(module, full)
            if start is None:
                continue
            if local is not None:
                local_names[local] = start
            # What a parent only hands on is no import of its own.
            if public and is_descendant(start[0], module.key):
                continue
            found |= {(target, full[-1]) for target in self.declared(*start)}
        for match in PATH.finditer(module.code):
            path = tuple(re.split(r"\s*::\s*", match.group()))
            if path[0] in local_names:
                key, rest = local_names[path[0]]
                found |= {(target, path[1]) for target in self.declared(key, (*rest, *path[1:]))}
            elif start := self.start(module, path):
                found |= {(target, path[-1]) for target in self.declared(*start)}
        return found

    def circles(self) -> list[list[Module]]:
        """Files that import each other, directly or by others: the largest groups, largest first."""
        groups = [[self.modules[key] for key in group] for group in groups_in_circles(self.edges)]
        return sorted(groups, key=len, reverse=True)

    def circles_of_siblings(self) -> list[list[tuple[str, ...]]]:
        """Modules below one parent, each with all that lies in it, that import each other."""
        found = []
        for parent in sorted({key[:-1] for key in self.modules if len(key) > 1}):
            depth = len(parent)
            edges: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
            for key, targets in self.edges.items():
                if not is_descendant(key, parent):
                    continue
                sibling = key[: depth + 1]
                edges.setdefault(sibling, set()).update(
                    target[: depth + 1]
                    for target in targets
                    if is_descendant(target, parent) and target[: depth + 1] != sibling
                )
            found += groups_in_circles(edges)
        return found


def groups_in_circles(edges: dict) -> list[list]:
    """The strongly connected components of more than one node (Tarjan)."""
    index, low, stack, on_stack, groups = {}, {}, [], set(), []

    def enter(node) -> tuple:
        index[node] = low[node] = len(index)
        stack.append(node)
        on_stack.add(node)
        return node, iter(sorted(edges.get(node, ())))

    for root in sorted(edges):
        work = [enter(root)] if root not in index else []
        while work:
            node, targets = work[-1]
            for target in targets:
                if target not in index:
                    work.append(enter(target))
                    break
                if target in on_stack:
                    low[node] = min(low[node], index[target])
            else:
                work.pop()
                if work:
                    low[work[-1][0]] = min(low[work[-1][0]], low[node])
                if low[node] == index[node]:
                    position = stack.index(node)
                    group = stack[position:]
                    del stack[position:]
                    on_stack.difference_update(group)
                    if len(group) > 1:
                        groups.append(sorted(group))
    return groups


def is_descendant(key: tuple[str, ...], ancestor: tuple[str, ...]) -> bool:
    return len(key) > len(ancestor) and key[: len(ancestor)] == ancestor


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--edges", action="store_true", help="print each edge, too")
    options = parser.parse_args()
    graph = Graph()
    if options.edges:
        for key in sorted(graph.edges):
            for target in sorted(graph.edges[key]):
                print("::".join(key), "->", "::".join(target))
    circles = graph.circles_of_siblings()
    for circle in circles:
        print("import each other: " + ", ".join("::".join(key) for key in circle), file=sys.stderr)
        depth = len(circle[0])
        for key in sorted(graph.edges):
            for target in sorted(graph.edges[key]):
                if key[:depth] in circle and target[:depth] in circle and key[:depth] != target[:depth]:
                    names = ", ".join(sorted(graph.names[key, target]))
                    print(f"  {'::'.join(key)} -> {'::'.join(target)}: {names}", file=sys.stderr)
    return 1 if circles else 0


if __name__ == "__main__":
    sys.exit(main())
