"""A controller's tools over the Kubernetes API, for any kind of object; no word of this project's domain in here.

`transport` asks and watches, `reflector` keeps a `cache` in step, `queue` and `workers` act on keys, `lease` lets one
replica act, `apply` writes, `events` tells the story. Layers: errors <- transport <- all others.
"""
