"""Typed errors of the data package."""

from __future__ import annotations

from bus.errors import FedbusError


class DatasetError(FedbusError):
    """A dataset folder is missing, malformed or does not match its manifest."""

    code = "dataset_invalid"


class DatasetIntegrityError(DatasetError):
    """A part of a dataset folder has another SHA-256 or size than its manifest says."""

    code = "dataset_hash_mismatch"


class SourceMissingError(FedbusError):
    """The files that a dataset is built from are not on this machine."""

    code = "dataset_source_missing"


class IdxError(FedbusError):
    """A file is not a well-formed IDX file of the expected rank."""

    code = "idx_malformed"


class ShardError(FedbusError):
    """The bytes of a shard are malformed or exceed the limits."""

    code = "shard_malformed"


class PartitionError(FedbusError):
    """A partition was asked for that the dataset cannot give."""

    code = "partition_impossible"


class PictureError(FedbusError):
    """A file is no picture, is broken, or is too large to decode."""

    code = "picture_unreadable"


class PreparationError(FedbusError):
    """Pictures cannot be prepared as they were asked for."""

    code = "preparation_failed"


class ClassNamesError(FedbusError):
    """A file of class names cannot be read, or names fewer than two classes."""

    code = "class_names_invalid"


class ExchangeError(FedbusError):
    """A file of the earlier system cannot be read or written."""

    code = "exchange_malformed"
