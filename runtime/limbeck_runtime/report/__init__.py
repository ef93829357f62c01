"""What a run leaves to be read: report.json, report.html, the model card, and the gate's verdict."""
