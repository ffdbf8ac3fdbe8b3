"""The project's Git host: a real Gitea in a pod, with an organisation, its repository and users.

Its administrator is who develops the fork. The project's token is that of another user, who has no more rights than
it needs; a third one reviews.
"""

import base64
from typing import Any

from tests import gitea
from tests.cluster import build, images
from tests.cluster.kubectl import Kubectl
from tests.gitea import Gitea

NAME = "git"
PORT = 8080
REPOSITORY = "acme/jukebox"
BOT, REVIEWER = "jukebox", "grace"
SCOPES = ("write:repository", "write:issue", "read:user")  # of the project's token
TOKEN = "git-administrator"
COMMAND = ("gitea", "--config=/data/app.ini")
# It writes to its settings, as nobody can to what is mounted.
START = ["sh", "-c", f"cp /settings/app.ini /data/app.ini && exec {' '.join(COMMAND)} web"]
VOLUMES = {"settings": {"secret": {"secretName": NAME}}, "data": {"emptyDir": {}}}
STATIC = "usr/local/share/gitea"


def image() -> str:
    """Push the image with it."""
    built = build.build("gitea")
    files = {"usr/local/bin/gitea": built / gitea.PROGRAM, f"{STATIC}/options": built / gitea.OPTIONS}
    return images.of_debian("gitea", *images.PACKAGES, files=files, User="1001")


def settings(host: str) -> dict[str, Any]:
    """The Secret with its settings; others address it by this name."""
    text = gitea.settings("/data", f"/{STATIC}", f"http://{host}", "0.0.0.0", PORT)
    return _secret(NAME, **{"app.ini": text})


def populate(kubectl: Kubectl) -> str:
    """Make its users and the repository, which is empty; return the project's token. It must be there."""
    inside = ("exec", f"deployment/{NAME}", "--", *COMMAND)
    kubectl(*inside, *gitea.CREATE_ADMIN)
    token = gitea.token_in(kubectl(*inside, *gitea.CREATE_TOKEN))
    kubectl.apply(_secret(TOKEN, token=token))
    host = reach(kubectl)
    host.repository(REPOSITORY)
    bot = host.user(BOT, *SCOPES)
    for user in (bot, host.user(REVIEWER)):
        host.allow(REPOSITORY, user.name)
    return bot.token


def reach(kubectl: Kubectl) -> Gitea:
    """It, from this machine, as its administrator."""
    token = kubectl.get(f"secret/{TOKEN}")["data"]["token"]
    return Gitea(f"http://{kubectl.reach(NAME)}", base64.b64decode(token).decode())


def _secret(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}
