#!/usr/bin/env python3
"""Writes the licences of everything that is linked into the program or embedded in it, from the sources that cargo has fetched.

    licenses.py MANIFEST... > THIRD-PARTY-LICENSES

A crate without a licence text of its own gets that of another crate under the same licence, with its authors; one that names no licence is an error.
"""

import hashlib
import json
import pathlib
import re
import subprocess
import sys

TARGET = "x86_64-unknown-linux-gnu"
NAMES = re.compile(r"^(un)?licen[cs]e|^copying|^copyright|^notice", re.IGNORECASE)


def crates(manifest):
    """Packages that get into the program: what the workspace's members need, without what only builds or tests them."""
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", TARGET, "--manifest-path", manifest]
    data = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    packages = {p["id"]: p for p in data["packages"]}
    nodes = {n["id"]: n for n in data["resolve"]["nodes"]}
    root = [m for m in data["workspace_members"] if packages[m]["name"] == "trainer"] or data["workspace_members"]
    seen, todo = set(), list(root)
    while todo:
        this = todo.pop()
        if this in seen:
            continue
        seen.add(this)
        for dep in nodes[this]["deps"]:
            if any(k["kind"] is None for k in dep["dep_kinds"]):
                todo.append(dep["pkg"])
    members = set(data["workspace_members"])
    return [packages[i] for i in seen if i not in members and packages[i]["source"]]


def texts(package):
    folder = pathlib.Path(package["manifest_path"]).parent
    files = [f for f in folder.iterdir() if f.is_file() and NAMES.match(f.name) and f.suffix not in (".rs", ".toml", ".html")]
    for sub in ("LICENSES", "LICENSE", "licenses"):
        if (folder / sub).is_dir():
            files += [f for f in (folder / sub).iterdir() if f.is_file()]
    if package.get("license_file"):
        files.append((folder / package["license_file"]).resolve())
    found = {}
    for file in sorted(set(files)):
        if file.is_file():
            found[file.name] = file.read_text(encoding="utf-8", errors="replace").strip()
    return found


def main():
    packages = {}
    for manifest in sys.argv[1:]:
        for package in crates(manifest):
            packages[(package["name"], package["version"])] = package
    if not packages:
        sys.exit("licenses.py: no crates; give the manifests of the workspaces")
    generic, missing, sections = {}, [], []
    for key in sorted(packages):
        package = packages[key]
        if not package["license"] and not package["license_file"]:
            sys.exit(f"licenses.py: {key[0]} {key[1]} names no licence")
        own = texts(package)
        for name, text in own.items():
            if any(mark in text[:400] for mark in ("Apache License", "Apache Software License")):
                generic.setdefault("Apache-2.0", text)
            elif package["license"] and re.fullmatch(r"[A-Za-z0-9.-]+", package["license"]) and not re.match("notice|copyright", name, re.IGNORECASE):
                generic.setdefault(package["license"], text)
        if not own:
            missing.append(key)
        sections.append((key, package, own))
    bodies, out = {}, []
    for (name, version), package, own in sections:
        if not own:
            wanted = [part for part in re.split(r"[^A-Za-z0-9.-]+", package["license"] or "") if part in generic]
            if not wanted:
                sys.exit(f"licenses.py: there is no text of {package['license']} for {name} {version}")
            own = {wanted[0]: generic[wanted[0]]}
        out.append(f"{name} {version}  ({package['license'] or 'see its text'})")
        if package.get("repository"):
            out.append(f"    {package['repository']}")
        if (name, version) in missing and package["authors"]:
            out.append(f"    by {', '.join(package['authors'])}")
        for title, text in own.items():
            digest = hashlib.sha256(re.sub(r"\s+", " ", text).encode()).hexdigest()[:12]
            bodies.setdefault(digest, (title, text))
            out.append(f"    text {digest}")
        out.append("")
    print(f"This program contains {len(sections)} crates of others, and the standard library of Rust (https://www.rust-lang.org,")
    print("MIT or Apache-2.0). Each is listed with its licence and the numbers of its texts, which follow below.\n")
    print("\n".join(out))
    for digest, (title, text) in sorted(bodies.items()):
        print(f"{'=' * 100}\ntext {digest}\n{'=' * 100}\n{text}\n")
    print(f"{len(sections)} crates, {len(bodies)} texts", file=sys.stderr)


main()
