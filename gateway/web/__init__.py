"""Pages and API: the worklist, the viewer, drift, health and metrics."""
