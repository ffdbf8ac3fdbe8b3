"""``jukebox notify``: tell a chat what became of a training, in one line."""

import re
from pathlib import Path
from typing import Annotated

import requests
import typer
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from pipeline.core.errors import ChatRefuses
from pipeline.core.texts import one_line
from pipeline.core.trusted_ca import REMEDY
from pipeline.settings import read_settings
from scripts.clients.pipeline_server import TIMEOUT
from scripts.commit_status import read_secret
from scripts.outcome import Last, PipelineRun, Served, State, SupersededBy, Tests, link, look_up, outcome


class _Passing(ChatRefuses):
    """The chat is unavailable or busy."""


def command(
    text: Annotated[str, typer.Argument(help="What the message is about; line breaks become spaces.")],
    state: Annotated[State, typer.Argument(help="The outcome; Tekton's statuses are accepted too.")],
    url_file: Annotated[
        Path, typer.Option(help="File with the address of an incoming webhook. The address is secret.")
    ],
    last: Last = State.SUCCESS,
    tests: Tests = State.SUCCESS,
    served: Served = State.SUCCESS,
    superseded_by: SupersededBy = "",
    pipeline_run: PipelineRun = "",
) -> None:
    """Print the outcome of a training and send it to a chat's incoming webhook, if the file has one.

    Slack, Mattermost, Rocket.Chat and Google Chat are supported. The message includes the cause if the run failed, a
    link to the run's page if the settings have one, and whether the CI image is stale.

    Example: `jukebox notify "push of 0a1b2c3" Succeeded --url-file webhook`
    """
    word, phrase = outcome(state, last, superseded_by, tests, served)
    settings = read_settings()
    told = look_up(pipeline_run, settings)
    why = f": {told.why}" if told.why and word in (State.FAILURE, State.ERROR) else ""
    said, page = f"{text}: {phrase}{why}{told.notice}", link(settings.run_page, pipeline_run, told)
    print(f"{one_line(said)} {page}".strip())
    url = read_secret(url_file)
    if not url:
        print(f"No message was sent: {url_file} contains no address")
        return
    retrying = Retrying(
        stop=stop_after_attempt(4),
        wait=wait_exponential_jitter(multiplier=1, max=10),
        retry=retry_if_exception_type(_Passing),
        reraise=True,
    )
    retrying(_send, url, f"{_as_text(said)} {page}".strip())


def _as_text(text: str) -> str:
    """The text on one line, so that no chat takes a part of it for a link, or for somebody to be called.

    Each chat escapes in another way, and shows another's escapes. So the signs themselves are broken: those around a
    mention or a link of Slack, Google Chat and Teams, and those in one of Markdown.
    """
    text = one_line(text).translate({ord("<"): "‹", ord(">"): "›"})
    return re.sub(r"(?<!\w)@(?=\w)|(?<=\])(?=\()|(?<=\w):(?=//)", lambda found: f"{found[0]}\u200b", text)


def _send(url: str, line: str) -> None:
    # No message names more of the address than its host: who knows the rest may post there.
    where = re.match(r"https?://[^/@]+", url)
    if not where:
        raise ChatRefuses("the chat's address is not valid: expected https://host/…")
    try:
        answer = requests.post(url, json={"text": line}, timeout=TIMEOUT, allow_redirects=False)
    except requests.exceptions.SSLError:
        raise ChatRefuses(f"{where[0]}: the certificate is not trusted; {REMEDY}") from None
    except (OSError, ValueError) as error:
        raise _Passing(f"{where[0]} does not answer: {type(error).__name__}") from None
    if not answer.ok or answer.is_redirect:
        kind = _Passing if answer.status_code in (429, 500, 502, 503, 504) else ChatRefuses
        raise kind(f"{where[0]} answers {answer.status_code}; check that the webhook still exists")
