"""The errors that a user can fix.

Every message says what was found, what was expected and what to do; the steps print it without a traceback.

    JukeboxError
    ├── DataUnavailable          the data cannot be fetched, or is not the data that the run was started for
    ├── DataInvalid              the data breaks its contract
    ├── ArtifactsGone            the output of an earlier step does not exist any more
    ├── HyperparametersInvalid   an unknown hyperparameter, or a value outside its range
    ├── NotFinite                a training has diverged, or a result is NaN or infinite
    ├── GateRefused              the model is not good enough to be published
    ├── CommitOutdated           a newer commit has run, or its model is published already
    ├── ParityBroken             the ONNX model and the Keras model differ
    ├── CandidateInvalid         the log of a run has a damaged record of what it published
    ├── StoreBroken              the model store cannot be read or written
    │   └── VersionBroken        a version in it is damaged or does not exist
    ├── SettingsInvalid          the settings file or an option is wrong
    ├── SpecRefused              a compiled pipeline requests what the cluster does not allow
    ├── RunFailed                a run did not succeed
    ├── NotServed                production does not serve the version that Git pins, or serves it with wrong answers
    ├── BuildFailed              the training image cannot be built or pushed
    └── ServerUnavailable        a server does not answer, or refuses a request
        ├── ServerAway           the pipeline server is unavailable; a retry may succeed
        ├── AccessDenied         the pipeline server denies access
        ├── SingleUser           the pipeline server runs everything in its own namespace, not in the project's
        ├── RequestRefused       the pipeline server refuses a request
        ├── ClusterAway          the cluster's API does not answer
        ├── ClusterRefuses       the cluster's API refuses a request
        ├── HostRefuses          the Git host does not answer, or refuses a request
        ├── RegistryRefuses      the image registry refuses a request
        ├── ChatRefuses          the chat does not accept a message
        ├── ListenerRefuses      the listener does not accept an event
        └── ModelServerRefuses   the model server does not answer with a prediction
"""


class JukeboxError(Exception):
    """The base of all errors that a user can fix."""


class DataUnavailable(JukeboxError):
    """The data cannot be fetched, or is not the data that the run was started for."""


class DataInvalid(JukeboxError):
    """The data breaks its contract."""


class ArtifactsGone(JukeboxError):
    """The output of an earlier step does not exist any more."""


class HyperparametersInvalid(JukeboxError):
    """An unknown hyperparameter, or a value outside its range."""


class NotFinite(JukeboxError):
    """A training has diverged, or a result is NaN or infinite."""


class GateRefused(JukeboxError):
    """The model is not good enough to be published."""


class CommitOutdated(JukeboxError):
    """A newer commit has run, or its model is published already."""


class ParityBroken(JukeboxError):
    """The ONNX model and the Keras model differ."""


class CandidateInvalid(JukeboxError):
    """The log of a run has a damaged record of what it published."""


class StoreBroken(JukeboxError):
    """The model store cannot be read or written."""


class VersionBroken(StoreBroken):
    """A version in the model store is damaged or does not exist; the store itself can be used."""


class SettingsInvalid(JukeboxError):
    """The settings file or an option is wrong."""


class SpecRefused(JukeboxError):
    """A compiled pipeline requests what the cluster does not allow."""


class RunFailed(JukeboxError):
    """A run did not succeed; ``state`` is its state, ``why`` the cause in one line."""

    def __init__(self, message: str, state: str, why: str = "") -> None:
        super().__init__(message)
        self.state = state
        self.why = why or message.partition("\n")[0]


class NotServed(JukeboxError):
    """Production does not serve the version that Git pins, or serves it with wrong answers."""


class BuildFailed(JukeboxError):
    """The training image cannot be built or pushed."""


class ServerUnavailable(JukeboxError):
    """A server does not answer, or refuses a request."""


class ServerAway(ServerUnavailable):
    """The pipeline server is unavailable or out of order; a retry may succeed."""


class AccessDenied(ServerUnavailable):
    """The pipeline server denies access."""


class SingleUser(ServerUnavailable):
    """The pipeline server has no namespaces: it runs everything in its own, not in the project's."""


class RequestRefused(ServerUnavailable):
    """The pipeline server refuses the request; ``status`` is the HTTP status, ``reason`` its message."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"The server answers {status}: {reason}.")
        self.status = status
        self.reason = reason


class ClusterAway(ServerUnavailable):
    """The cluster's API does not answer."""


class ClusterRefuses(ServerUnavailable):
    """The cluster's API refuses a request.

    ``status`` is the HTTP status, ``reason`` its message, ``webhook`` the admission webhook that refused, if any.
    """

    def __init__(self, status: int, reason: str, webhook: str = "") -> None:
        super().__init__(f"The cluster refuses: {reason}")
        self.status = status
        self.reason = reason
        self.webhook = webhook


class HostRefuses(ServerUnavailable):
    """The Git host refuses a request; ``status`` is the HTTP status, 0 if it did not answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class RegistryRefuses(ServerUnavailable):
    """The image registry refuses a request."""


class ChatRefuses(ServerUnavailable):
    """The chat does not accept a message."""


class ListenerRefuses(ServerUnavailable):
    """The listener does not accept an event."""


class ModelServerRefuses(ServerUnavailable):
    """The model server does not answer with a prediction."""
