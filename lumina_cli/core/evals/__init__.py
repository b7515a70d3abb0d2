"""Evaluation: benchmark prompts, judges, scoring rules and reports."""
