"""What runs inside the Ray cluster and under `limbeck local`: data, teacher, store, student, steps, export, report."""
