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
