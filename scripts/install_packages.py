"""Install what the lock names into a new virtual environment: the same for the Containerfile and for Tekton.

    python3 install_packages.py FOLDER --training    the packages of a step of the pipeline
    python3 install_packages.py FOLDER --all         those of the command line and the tests as well, and `jukebox`

It runs beside the lock and pyproject.toml, with uv on the PATH and the Python of the base image, which has no packages
of its own. It unpacks wheels and runs nothing of them; what has no wheel is built only if ``BUILT`` names it.
``--index=URL`` names another package index than PyPI; so does a file ``package-index`` there.
"""

import argparse
import compileall
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from py_compile import PycInvalidationMode

# In a checkout and in the CI image, the program is one folder below the rest of the code.
sys.path.append(str(Path(__file__).resolve().parents[1]))

from pipeline.core.trusted_ca import trust

# What its makers publish without a wheel. `jukebox read-lock` takes it only by the hashes of its own lock.
BUILT = ("kfp-server-api",)
BUILD_TOOLS = ("setuptools", "wheel")  # by the hashes of that lock, too
INDEX = "package-index"
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
        "UV_NO_CONFIG": "1",
        "UV_LINK_MODE": "copy",
        "UV_COMPILE_BYTECODE": "0",  # uv would start the new Python for it; see below
        "UV_PYTHON_DOWNLOADS": "never",
        "PYTHONDONTWRITEBYTECODE": "1",  # of the base's own modules
    }
    # Not that of uv's own environment, which may come first on the PATH.
    python = Path(sys.executable).resolve()
    subprocess.run([python, "-m", "venv", "--without-pip", "--clear", folder], env=environment, check=True)
    lock = Path("requirements.lock").resolve()
    with tempfile.TemporaryDirectory() as empty:  # ignores other files next to the lock
        what = ["sync", str(lock)]
        if not everything:
            names = Path(empty, "names.in")
            project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
            names.write_text("".join(f"{name}\n" for name in project["dependencies"]))
            what = ["install", f"--requirements={names}", f"--constraints={lock}"]
        tools = Path(empty, "tools.txt")
        tools.write_text("".join(locked(name) for name in BUILD_TOOLS))
        options = ["--only-binary=:all:", *(f"--no-binary={name}" for name in BUILT), f"--build-constraints={tools}"]
        source = [f"--default-index={index}"] if index else []
        command = ["uv", "pip", *what, "--quiet", f"--python={folder}", *options, *source]
        subprocess.run(command, env=environment, cwd=empty, check=True)
    (folder / ".lock").unlink(missing_ok=True)  # uv's, for as long as it runs
    [packages] = folder.glob("lib/python*/site-packages")
    # By this Python, not by the new one, which would run what a package has for its start. Not by a file's time, which
    # an image's layer does not keep.
    compileall.compile_dir(packages, quiet=2, workers=0, invalidation_mode=PycInvalidationMode.UNCHECKED_HASH)
    if everything:
        (packages / "jukebox.pth").write_text("/opt/jukebox\n")
        command_file = folder / "bin" / "jukebox"
        command_file.write_text(COMMAND.format(folder=folder))
        command_file.chmod(0o755)


def locked(name: str) -> str:
    """The entry of a package in the program's own lock, which is next to it while the CI image is built."""
    here = Path(__file__).resolve().parent
    lock = next(each for folder in (here.parent, here) if (each := folder / "requirements.lock").is_file())
    found = re.search(rf"^{name}==(.*\\\n)*.*\n?", lock.read_text(), re.MULTILINE)
    return found[0] if found else ""


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
    index = given.index or (Path(INDEX).read_text() if Path(INDEX).is_file() else "")
    try:
        install(given.folder, everything=given.all, index=index)
    except subprocess.CalledProcessError as error:
        sys.exit(
            f"The packages cannot be installed: {error.cmd[0]} ended with {error.returncode}; see its output above."
        )


if __name__ == "__main__":
    main()
