"""The exceptions of this package."""


class Error(Exception):
    """A failure of any operation of braid. Its text is one line: what, where, what was expected, what to do."""


class ParameterError(Error, ValueError):
    """An argument is not usable; `field` is its name in the library."""

    field: str = ""


class FileError(Error, OSError):
    """The operating system refused an operation on the file `path`."""

    path: str = ""


class MalformedFileError(Error, ValueError):
    """The file `path` does not follow its format."""

    path: str = ""


class ChangedFileError(Error, RuntimeError):
    """The file `path` was written to while it was mapped. Load the pipeline again, or with `mmap=False`."""

    path: str = ""


class MismatchError(Error, ValueError):
    """The file `path` is sound and does not fit here: another model family, another encoder, other tensors."""

    path: str = ""


class ConfigError(Error, ValueError):
    """A setting in the configuration file `path` is not supported."""

    path: str = ""


class OutOfMemoryError(Error, MemoryError):
    """More memory is needed than is available."""


class NotFiniteError(Error, ArithmeticError):
    """A computation gave NaN or infinity."""


class Cancelled(Error):
    """The request was cancelled."""


class Busy(Error):
    """The engine's queue is full."""


class Late(Error, TimeoutError):
    """The request had not begun by its deadline."""


class InCallback(Error, RuntimeError):
    """A callback called what would wait for its own end: its pipeline, or a ticket of its engine."""


class Stopped(Error):
    """The engine takes no more requests."""


class DeviceError(Error, RuntimeError):
    """A device cannot be used, or failed at its work."""
