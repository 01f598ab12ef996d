"""Siblings: nodes that get the same file at the same time, and pass it on to one another.

choice.py decides (pure), door.py opens a giver on a node, give.py is what runs there, batch.py knows who has what.
"""
