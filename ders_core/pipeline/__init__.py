"""The verbs: plan, compress, synthesize, verify, export."""
