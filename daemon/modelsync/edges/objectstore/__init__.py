"""The object store of ``shared`` models, as a place and as one more peer."""
