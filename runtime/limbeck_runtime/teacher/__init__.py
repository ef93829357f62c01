"""Teacher capture: what the teacher says about the training data, computed once and kept in the store.

Reading order: plan.py (what is wanted), capture.py (one shard), queue.py (who does which), pool.py (the actors).
"""
