"""What can go wrong in a way that a user can mend.

Every message says what was found, what was expected and what to do; the steps print it without a traceback.

    JukeboxError
    ├── DataUnavailable          the data cannot be fetched, or is not the data that the run was started for
    ├── DataInvalid              the data breaks its contract
    ├── ArtifactsGone            what another step has handed on is not there any more
    ├── HyperparametersInvalid   an unknown hyperparameter, or a value outside its range
    ├── NotFinite                a training has diverged, or a result is NaN or infinite
    ├── GateRefused              the model is not good enough to be published
    ├── CommitOutdated           a newer commit has run, or its model is published already
    ├── ParityBroken             the ONNX model and the Keras model differ
    ├── StoreBroken              the model store cannot be read or written
    │   └── VersionBroken        a version in it is not whole, or not there
    ├── SettingsInvalid          the settings file or an option is wrong
    ├── SpecRefused              a compiled pipeline asks for what the cluster does not give
    ├── RunFailed                a run has not succeeded
    ├── BuildFailed              the training image cannot be built, or not be pushed
    └── ServerUnavailable        a server does not answer, or refuses
        ├── ServerAway           the pipeline server is away in a way that another try may mend
        ├── AccessDenied         the pipeline server does not let us in
        ├── SingleUser           the pipeline server runs all in its own namespace, not in the project's
        ├── RequestRefused       the pipeline server refuses a request
        ├── ClusterAway          the cluster's API does not answer
        ├── ClusterRefuses       the cluster's API refuses a request
        ├── HostRefuses          the Git host does not give a commit, or does not take its status
        ├── RegistryRefuses      the image registry does not tell what it has
        ├── ChatRefuses          the chat does not take a message
        ├── ListenerRefuses      the listener does not take an event
        └── ModelServerRefuses   the model server does not answer with a prediction
"""


class JukeboxError(Exception):
    """The root of all errors that a user can mend."""


class DataUnavailable(JukeboxError):
    """The data cannot be fetched, or is not the data that the run was started for."""


class DataInvalid(JukeboxError):
    """The data breaks its contract."""


class ArtifactsGone(JukeboxError):
    """What another step has handed on is not there any more."""


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


class StoreBroken(JukeboxError):
    """The model store cannot be read or written."""


class VersionBroken(StoreBroken):
    """A version in the model store is not whole, or not there; the store itself can be used."""


class SettingsInvalid(JukeboxError):
    """The settings file or an option is wrong."""


class SpecRefused(JukeboxError):
    """A compiled pipeline asks for what the cluster does not give."""


class RunFailed(JukeboxError):
    """A run has not succeeded; ``state`` is the word for it, ``why`` the cause alone: a line for those in a hurry."""

    def __init__(self, message: str, state: str, why: str = "") -> None:
        super().__init__(message)
        self.state = state
        self.why = why or message.partition("\n")[0]


class BuildFailed(JukeboxError):
    """The training image cannot be built, or not be pushed."""


class ServerUnavailable(JukeboxError):
    """A server does not answer, or refuses."""


class ServerAway(ServerUnavailable):
    """The pipeline server is away or out of order in a way that another try may mend."""


class AccessDenied(ServerUnavailable):
    """The pipeline server does not let us in."""


class SingleUser(ServerUnavailable):
    """The pipeline server knows no namespaces: it runs all in its own, not in the project's."""


class RequestRefused(ServerUnavailable):
    """The pipeline server refuses the request; ``status`` is the HTTP status, ``reason`` what it says."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"The server answers {status}: {reason}.")
        self.status = status
        self.reason = reason


class ClusterAway(ServerUnavailable):
    """The cluster's API does not answer."""


class ClusterRefuses(ServerUnavailable):
    """The cluster's API refuses a request.

    ``status`` is the HTTP status, ``reason`` what it says, ``webhook`` the admission webhook that has refused, if one
    has.
    """

    def __init__(self, status: int, reason: str, webhook: str = "") -> None:
        super().__init__(f"The cluster refuses: {reason}")
        self.status = status
        self.reason = reason
        self.webhook = webhook


class HostRefuses(ServerUnavailable):
    """The Git host does not give a commit, or does not take its status."""


class RegistryRefuses(ServerUnavailable):
    """The image registry does not tell what it has."""


class ChatRefuses(ServerUnavailable):
    """The chat does not take a message."""


class ListenerRefuses(ServerUnavailable):
    """The listener does not take an event."""


class ModelServerRefuses(ServerUnavailable):
    """The model server does not answer with a prediction."""
