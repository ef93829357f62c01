"""limbeck's server: takes progress from runs, keeps its history, shows it, and writes it to the jobs' status."""
