"""limbeck.dev/v1alpha1: the CompressionJob resource as pydantic models, one file a concern."""
