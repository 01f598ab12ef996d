"""Sessions over SSH, their lanes, and the agent at the far end."""
