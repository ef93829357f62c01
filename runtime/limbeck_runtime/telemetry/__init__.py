"""What a run says while it runs: events, metrics for Prometheus, history for the report."""
