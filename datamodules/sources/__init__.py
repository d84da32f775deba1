"""Places of data: tables, folders and shards, here or on a server, read into one form; see `source`."""

from datamodules.sources.reading import read_source

__all__ = ["read_source"]
