"""Jobs from beginning to end: training, erasure, and the commands that start, show, stop and report them."""
