"""Independent work items in this process, in worker processes, or on a Ray cluster."""
