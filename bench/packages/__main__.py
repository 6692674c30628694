"""Has one package quantize a model at several settings and hands over what it made.

    python -m bench.packages versions                       the packages that are installed here, as JSON
    python -m bench.packages PACKAGE REQUEST.json           one folder for each setting of the request

A folder has `weights.safetensors` and `handover.json`, or, where the package failed, `error.json` with its words.
"""

import json
import sys
import time
import traceback
from importlib import metadata
from pathlib import Path

from bench.packages import PACKAGES, Asked, package


def versions() -> dict[str, str]:
    """{package: version} of those that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(package(name).DISTRIBUTION)
        except metadata.PackageNotFoundError:
            continue
    return found


def quantize(name: str, request: dict) -> None:
    """Every setting of a request (`peers.request`), each into the folder that it names; what fails is written down."""
    from safetensors.torch import load_file, save_file

    windows = load_file(request["windows"])["input_ids"]
    asked = Asked(request["folder"], windows, request["weights"])
    for job in request["jobs"]:
        folder, setting = Path(job["folder"]), job["setting"]
        folder.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        try:
            made = package(name).quantize(asked, **setting)
            if not made.rows:
                raise RuntimeError("none of the model's weights was quantized")
        except Exception as error:
            traceback.print_exc()
            words = str(error).strip().splitlines() or [""]
            (folder / "error.json").write_text(json.dumps({"error": f"{type(error).__name__}: {words[0]}"}), "utf-8")
            continue
        seconds = round(time.monotonic() - began, 3)
        save_file({row.name: row.matrix for row in made.rows}, folder / "weights.safetensors")
        rows = [
            {key: value for key, value in row._asdict().items() if key != "matrix" and value is not None}
            for row in made.rows
        ]
        document = {
            "format": "karipap-handover",
            "version": 1,
            "package": name,
            "package_version": metadata.version(package(name).DISTRIBUTION),
            "method": setting["method"],
            "model": request["model"],
            "bits": setting["bits"],
            "group": setting["group"],
            "rank": setting.get("rank"),
            "seconds": seconds,
            "notes": made.notes,
            "weights": rows,
        }
        (folder / "handover.json").write_text(json.dumps(document, indent=1), "utf-8")  # last: with it, it is finished
        print(f"{name} {setting}: {seconds:.0f} s", flush=True)


def main(arguments: list[str]) -> None:
    if arguments == ["versions"]:
        print(json.dumps(versions()))
    else:
        quantize(arguments[0], json.loads(Path(arguments[1]).read_text("utf-8")))


if __name__ == "__main__":
    main(sys.argv[1:])
