"""From files to batches: shards, samples, the index, decoding, views, and a loader that decodes ahead."""
