"""The twin: the same methods by module hooks, written to be read; the reference of the tests."""

from rfc.eager.model import CachedEager, cached

__all__ = ["CachedEager", "cached"]
