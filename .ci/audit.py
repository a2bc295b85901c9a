"""Says what pip-audit found in the report that it wrote, and whether it could look anything up at all."""

import json
import sys
from pathlib import Path

path = Path(sys.argv[1])
try:
    packages = json.loads(path.read_text())["dependencies"]
except (OSError, ValueError, KeyError):
    packages = []
audited = [package for package in packages if "skip_reason" not in package]
found = [(package, fault) for package in audited for fault in package["vulns"]]
for package, fault in found:
    fixed = ", ".join(fault["fix_versions"]) or "no version"
    print(f"{package['name']} {package['version']}: {fault['id']}, fixed in {fixed}")
print(f"{len(audited)} of {len(packages)} locked packages were looked up, {len(found)} advisories")
if not audited:
    print("The advisory service could not be reached: NOTHING was audited", file=sys.stderr)
raise SystemExit(bool(found) or len(audited) < len(packages) or not packages)
