"""The student's training: sample order, loop, checkpoints, and the gang of workers that runs them."""
