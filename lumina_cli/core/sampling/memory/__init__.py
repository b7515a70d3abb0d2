"""Sampling within a memory budget: planning, offloading and streaming weights."""
