"""The CompressionJob API: the only source of the schema, imported by the operator, the server, the CLI and the runtime."""
