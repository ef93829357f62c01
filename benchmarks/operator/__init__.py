"""What the operator takes, on a real API server with KubeRay played by a mimic: `make bench-operator`."""
