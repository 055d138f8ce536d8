"""Prints a software bill of materials, CycloneDX 1.5 as JSON, of what `cargo metadata` says is built into the packages named.

cargo metadata --format-version 1 --locked | python tools/sbom.py Cargo.lock braid braid-c
Dependencies of tests are left out; those of build scripts and of every platform are in. The same sources give the same bytes.
"""
import json
import re
import sys


def checksums(lock):
    """(name, version) -> SHA-256 of the crate's file."""
    entry = re.compile(r'\[\[package\]\]\nname = "(.*)"\nversion = "(.*)"\n(?:source = .*\n)?(?:checksum = "(.*)"\n)?')
    return {match[:2]: match[2] for match in entry.findall(lock)}


def reached(nodes, roots):
    """The packages that the roots need, in no order."""
    found, waiting = set(), list(roots)
    while waiting:
        package = waiting.pop()
        if package not in found:
            found.add(package)
            waiting += needs(nodes[package])
    return found


def needs(node):
    wanted = lambda dependency: any(kind["kind"] != "dev" for kind in dependency["dep_kinds"])
    return sorted({dependency["pkg"] for dependency in node["deps"] if wanted(dependency)})


def main():
    lock, names = sys.argv[1], sys.argv[2:]
    metadata = json.load(sys.stdin)
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    members = set(metadata["workspace_members"])
    roots = [next(id for id in members if packages[id]["name"] == name) for name in names]
    with open(lock) as file:
        sums = checksums(file.read())

    def purl(id):
        return f"pkg:cargo/{packages[id]['name']}@{packages[id]['version']}"

    def component(id):
        package = packages[id]
        entry = {"type": "library", "bom-ref": purl(id), "name": package["name"], "version": package["version"], "purl": purl(id)}
        if package["license"]:
            entry["licenses"] = [{"expression": package["license"].replace("/", " OR ")}]
        if digest := sums.get((package["name"], package["version"])):
            entry["hashes"] = [{"alg": "SHA-256", "content": digest}]
        if package["repository"]:
            entry["externalReferences"] = [{"type": "vcs", "url": package["repository"]}]
        return entry

    found = sorted(reached(nodes, roots), key=purl)
    subject = component(roots[0])
    json.dump({
        "bomFormat": "CycloneDX", "specVersion": "1.5", "version": 1, "metadata": {"component": {**subject, "type": "application"}},
        "components": [component(id) for id in found if id != roots[0]],
        "dependencies": [{"ref": purl(id), "dependsOn": [purl(need) for need in needs(nodes[id])]} for id in found],
    }, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
