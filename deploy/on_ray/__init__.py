"""Isthmus on Ray: cluster launch configs of several clouds, and a run as actors of a running cluster."""
