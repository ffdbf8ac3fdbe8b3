"""The Git host of the repository by its API: pull requests, merges and statuses of commits."""

from pipeline.settings import Settings
from scripts.clients.git_hosts.base import CONTEXT, Checks, GitHost, Host, PullRequest, State, find_api
from scripts.clients.git_hosts.gitea import Gitea
from scripts.clients.git_hosts.github import GitHub
from scripts.clients.git_hosts.gitlab import GitLab

__all__ = ["CONTEXT", "Checks", "GitHost", "Host", "PullRequest", "State", "connect"]

HOSTS: dict[Host, type[GitHost]] = {Host.GITHUB: GitHub, Host.GITLAB: GitLab, Host.GITEA: Gitea}


def connect(settings: Settings, token: str) -> GitHost:
    """Return the Git host of the settings, to which ``token`` is shown. It is not asked anything yet.

    Raises SettingsInvalid if the repository's address is invalid.
    """
    kind = Host(settings.git_host)
    api, repository = find_api(kind, settings.repository, settings.git_api)
    return HOSTS[kind](api, repository, settings.repository, token)
