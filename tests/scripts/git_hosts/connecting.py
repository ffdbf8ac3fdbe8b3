"""A Git host of ours at the address of a stub."""

from dataclasses import replace

from pipeline.settings import read_settings
from scripts.clients.git_hosts import GitHost, connect
from tests.settings_file import SETTINGS_FILE

TOKEN = "a-token-that-nobody-may-read"


def host_at(api: str, kind: str, repository: str = "https://git.example.com/acme/jukebox") -> GitHost:
    settings = replace(read_settings(SETTINGS_FILE), repository=repository, git_host=kind, git_api=api)
    return connect(settings, TOKEN)
