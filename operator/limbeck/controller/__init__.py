"""The controller of CompressionJobs: pure where it decides, thin where it acts."""
