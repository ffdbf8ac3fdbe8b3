"""What can go wrong in a way that a user can mend.

Every message says what was found, what was expected and what to do; the steps print it without a traceback.

    JukeboxError
    ├── DataUnavailable          the data cannot be fetched, or is not the data that the run was started for
    ├── DataInvalid              the data breaks its contract
    ├── HyperparametersInvalid   an unknown hyperparameter, or a value outside its range
    ├── GateRefused              the model is not good enough to be published
    ├── ParityBroken             the ONNX model does not do what the Keras model does
    ├── StoreBroken              the model store cannot be read or written
    ├── SettingsInvalid          the settings file or an option is wrong
    └── ServerUnavailable        the pipeline server does not answer, or refuses
"""


class JukeboxError(Exception):
    """The root of all errors that a user can mend."""


class DataUnavailable(JukeboxError):
    """The data cannot be fetched, or is not the data that the run was started for."""


class DataInvalid(JukeboxError):
    """The data breaks its contract."""


class HyperparametersInvalid(JukeboxError):
    """An unknown hyperparameter, or a value outside its range."""


class GateRefused(JukeboxError):
    """The model is not good enough to be published."""


class ParityBroken(JukeboxError):
    """The ONNX model does not do what the Keras model does."""


class StoreBroken(JukeboxError):
    """The model store cannot be read or written."""


class SettingsInvalid(JukeboxError):
    """The settings file or an option is wrong."""


class ServerUnavailable(JukeboxError):
    """The pipeline server does not answer, or refuses."""
