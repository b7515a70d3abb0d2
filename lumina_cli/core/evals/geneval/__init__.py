"""GenEval: prompts, layout, rules and ground truth."""
