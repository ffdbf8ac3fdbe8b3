"""Install what the lock names into a new virtual environment: the same for the Containerfile and for Tekton.

    python3 install_packages.py FOLDER --training    the packages of a step of the pipeline
    python3 install_packages.py FOLDER --all         those of the command line and the tests as well, and `jukebox`

It runs in the checkout, with uv on the PATH and the Python of the base image, which has no packages of its own.
``--index=URL`` names another package index than PyPI.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from pipeline.trusted_ca import trust

COMMAND = """#!{folder}/bin/python3
import sys
from scripts.cli import main
sys.exit(main())
"""


def install(folder: Path, *, everything: bool, index: str) -> None:
    """Make ``folder`` a virtual environment with the packages."""
    environment = {
        **os.environ,
        "UV_NO_CACHE": "1",
        "UV_LINK_MODE": "copy",
        "UV_COMPILE_BYTECODE": "1",
        "UV_PYTHON_DOWNLOADS": "never",
        "PYTHONDONTWRITEBYTECODE": "1",  # of the base's own modules
        # Not by a file's time, which an image's layer does not keep.
        "PYC_INVALIDATION_MODE": "UNCHECKED_HASH",
    }
    # Not that of uv's own environment, which may come first on the PATH.
    python = Path(sys.executable).resolve()
    subprocess.run([python, "-m", "venv", "--without-pip", "--clear", folder], env=environment, check=True)
    what = ["sync", "requirements.lock"] if everything else ["install", "--requirements=pyproject.toml"]
    if not everything:
        what.append("--constraints=requirements.lock")
    source = [f"--default-index={index}"] if index else []
    subprocess.run(["uv", "pip", *what, "--quiet", f"--python={folder}", *source], env=environment, check=True)
    (folder / ".lock").unlink(missing_ok=True)  # uv's, for as long as it runs
    if everything:
        [packages] = folder.glob("lib/python*/site-packages")
        (packages / "jukebox.pth").write_text("/opt/jukebox\n")
        command = folder / "bin" / "jukebox"
        command.write_text(COMMAND.format(folder=folder))
        command.chmod(0o755)


def main() -> None:
    """Read the command line, and install; ends with 1 if uv fails, which says why."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--training", action="store_true")
    what.add_argument("--all", action="store_true")
    parser.add_argument("--index", default="")
    given = parser.parse_args()
    os.umask(0o022)
    trust()
    try:
        install(given.folder, everything=given.all, index=given.index)
    except subprocess.CalledProcessError as error:
        sys.exit(f"The packages cannot be installed: {error.cmd[0]} ended with {error.returncode}; see above.")


if __name__ == "__main__":
    main()
