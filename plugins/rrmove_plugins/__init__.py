"""The built-in transports: how to move bytes, one module each."""
