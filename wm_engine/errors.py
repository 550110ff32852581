"""Errors that the person at the keyboard can mend.

The command line prints the message of a :class:`WMEngineError` without a traceback and exits with status 2. Wrong
arguments to the Python API are plain ``ValueError`` and ``TypeError``.
"""

from __future__ import annotations


class WMEngineError(Exception):
    """Something outside the code is wrong; the message names the thing, what it is, and what to do."""


class ConfigError(WMEngineError):
    """A preset, key or value of the configuration is unknown or ill-typed."""


class RunMismatchError(WMEngineError):
    """A run folder belongs to another configuration."""


class RunBusyError(WMEngineError):
    """Another process is working in the run folder."""


class MissingRunError(WMEngineError):
    """A folder holds no run, or nothing published yet."""


class CorruptFileError(WMEngineError):
    """A file cannot be read back as it was written: truncated, damaged, or not what its name says."""


class MissingDependencyError(WMEngineError):
    """An optional package, environment or compiled part is not installed."""


class WorkerError(WMEngineError):
    """A process that works for this one has died, as when the machine runs out of memory."""


class StorageError(WMEngineError):
    """The disk is full or a path cannot be written."""


class DeviceMemoryError(WMEngineError):
    """A device has too little free memory for what was asked of it."""


class DeviceLimitError(WMEngineError):
    """A kernel needs more shared memory, registers or threads than a device gives to one."""
