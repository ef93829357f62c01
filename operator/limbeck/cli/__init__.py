"""The command line, one file a verb. Heavy imports live inside the verbs, so that `limbeck --help` is quick."""
