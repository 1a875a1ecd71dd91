"""What becomes of a model: which one is the champion, what a person may promote or revoke, which files devices get."""
