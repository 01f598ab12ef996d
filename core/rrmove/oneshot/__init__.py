"""One-shot servers: one file over HTTP for as long as it is wanted, here or on a node, under a token used once.

server.py is the server itself, a text of its own that also runs on nodes; here.py gives a local file away,
there.py starts the server on a node; certificate.py and endpoint.py are what they need.
"""
