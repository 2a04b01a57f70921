"""What the pages share: the session's state, cached reads, the frame, small widgets."""
