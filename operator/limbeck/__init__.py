"""limbeck: compress large multimodal models on Kubernetes. This package never imports torch, ray or limbeck_runtime."""
