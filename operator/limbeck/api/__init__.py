"""The CompressionJob API: the only source of the schema, for operator, server, CLI and runtime alike."""
