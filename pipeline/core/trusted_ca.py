"""A company's private CAs, which are trusted in addition to the public ones.

This uses the standard library only: the program that installs the packages imports it, too.
"""

import atexit
import os
from contextlib import suppress
from pathlib import Path
from tempfile import NamedTemporaryFile

CONFIG_MAP = "jukebox-trusted-ca"
# Where each pod has that ConfigMap, if there is one; the key is that of OpenShift's own bundle.
FILE = Path("/etc/trusted-ca/ca-bundle.crt")
# Of Python's ssl, Go (skopeo) and uv; of requests; of botocore; of git.
VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE", "GIT_SSL_CAINFO")
# Of Debian, of Red Hat.
SYSTEM = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")
# What to do if a server is not trusted.
REMEDY = f"put the private CA that has signed it into the ConfigMap {CONFIG_MAP} (key {FILE.name})"


def trust() -> None:
    """Make this process and its children trust the CAs in ``FILE`` (PEM), if that file exists.

    The file that a variable names replaces all other CAs. So the variables name a new file, which also contains the
    public CAs and those that the variables named before, as the pipeline server's operator sets them for its steps.
    """
    if not FILE.is_file():
        return
    named = [os.environ[name] for name in VARIABLES if os.environ.get(name)]
    known = dict.fromkeys(path for path in (*SYSTEM, *_certifi(), *named, str(FILE)) if Path(path).is_file())
    with NamedTemporaryFile(prefix="ca-bundle-", suffix=".crt", delete=False) as whole:
        for path in known:
            whole.write(Path(path).read_bytes() + b"\n")
    atexit.register(Path(whole.name).unlink, missing_ok=True)
    os.environ.update(dict.fromkeys(VARIABLES, whole.name))


def _certifi() -> list[str]:
    with suppress(ImportError):
        import certifi

        return [certifi.where()]
    return []
