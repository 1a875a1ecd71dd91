"""The rounds that jobs are made of: asking the sites, checking and merging what they send, attacking what comes out.

In go a :class:`Fleet` of connected nodes and a model's arrays; out come arrays, scores and a verdict. Whatever one site
sends, it is named, left out, and the round goes on.
"""
